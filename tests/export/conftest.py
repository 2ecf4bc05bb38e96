"""Networks that are untrained but alive, and their exports, built once per process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sharedenc.data.classes import ClassList
from sharedenc.data.packed import PackedDataset, prepare
from sharedenc.data.synthetic import write_synthetic
from sharedenc.export.onnx import ExportInfo, export_graph
from sharedenc.export.parity import natural_images
from sharedenc.models.build import build_network
from sharedenc.models.network import Network
from sharedenc.spec import Graph, Task

CLASSES = ("cat", "dog", "rubber duck")


def alive_network(
    backbone: str, tasks: tuple[Task, ...], *, classes: int = len(CLASSES), seed: int = 0
) -> Network:
    """A random network whose batch norms know their inputs: without that, deep features vanish.

    Several images, since the smallest map has one value per image; two at a time, for memory.
    """
    network = build_network(backbone, tasks, classes + 1, seed=seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    network.train()
    with torch.no_grad():
        for at in range(0, 6, 2):
            network(natural_images(6, 320, seed=seed)[at : at + 2])
    return network.eval()


def meta_of(network: Network, **more: Any) -> dict[str, Any]:
    """What a checkpoint of ``network`` says about itself."""
    names = [*CLASSES, *(f"class {i}" for i in range(100))][: network.num_classes - 1]
    return {
        "backbone": network.backbone,
        "tasks": list(network.tasks),
        "num_classes": network.num_classes,
        "classes": names,
        "class_list": "ducks",
        "image_px": 320,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "cell": f"{network.backbone}/dual",
        "key": "0" * 64,
        "data": "Pond",
        "data_digest": "1" * 64,
        "plugins": [],
        **more,
    }


@pytest.fixture(scope="session")
def resnet_dual() -> Network:
    return alive_network("resnet18", ("det", "seg"))


@pytest.fixture(scope="session")
def exported(
    resnet_dual: Network, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Graph], ExportInfo]:
    """Exports of `resnet_dual` by graph; tests must not change the files."""
    folder: Path = tmp_path_factory.mktemp("exported")
    made: dict[Graph, ExportInfo] = {}

    def export(graph: Graph) -> ExportInfo:
        if graph not in made:
            made[graph] = export_graph(
                resnet_dual, graph, folder / f"{graph}.onnx", meta=meta_of(resnet_dual)
            )
        return made[graph]

    return export


@pytest.fixture(scope="session")
def pond(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """A drawn data set with the classes of `meta_of`: 8 training, 4 validation, 6 test pictures."""
    folder = tmp_path_factory.mktemp("pond")
    classes = ClassList("ducks", CLASSES)
    data = write_synthetic(folder / "data", (8, 4, 6), seed=0, classes=classes, name="Pond")
    return prepare(data, cache=folder / "cache", progress=False)
