"""One folder per exported graph: ``model.onnx`` and the ``manifest.json`` that the agent reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from jetson_agent.protocol import MANIFEST_FILE, MODEL_FILE, ExportManifest
from sharedenc.data.classes import VOC20
from sharedenc.errors import ExportError
from sharedenc.export.onnx import INPUT, ExportInfo, export_graph
from sharedenc.models.network import Network
from sharedenc.spec import Graph
from sharedenc.training.checkpoint import write_atomic


@dataclass(frozen=True)
class Exported:
    """One written folder."""

    folder: Path
    info: ExportInfo
    manifest: ExportManifest


def default_graphs(tasks: Iterable[str]) -> tuple[Graph, ...]:
    """What is exported of a network unless told otherwise; a dual also gives its encoder."""
    match tuple(sorted(tasks)):
        case ("det",):
            return ("det",)
        case ("seg",):
            return ("seg",)
        case ("det", "seg"):
            return ("dual", "encoder")
        case other:
            raise ExportError(f"a network with the tasks {other} has no graph to export.")


def model_data(meta: Mapping[str, Any]) -> str:
    """The first part of a registered model's name: the built-in class list, or the data set."""
    if meta.get("class_list") == VOC20.name:
        return VOC20.name
    return str(meta.get("data") or meta.get("class_list") or "unnamed")


def export_folder(
    network: Network,
    graph: Graph,
    folder: Path,
    *,
    meta: Mapping[str, Any],
    images: Tensor | None = None,
    export: Callable[..., ExportInfo] = export_graph,
) -> Exported:
    """Write ``folder/model.onnx``, proved against ``network``, then ``folder/manifest.json``.

    Raises:
        ExportError: see `export_graph`.
    """
    image_px = int(meta["image_px"])
    info = export(network, graph, folder / MODEL_FILE, meta=meta, image_px=image_px, images=images)
    manifest = ExportManifest(
        data=model_data(meta),
        backbone=network.backbone,
        graph=graph,
        architecture=info.architecture,
        files={MODEL_FILE: info.sha256},
        input_name=INPUT,
        input_shape=[1, 3, image_px, image_px],
        outputs=list(info.outputs),
        study=str(meta.get("study") or "none"),
        cell=str(meta.get("cell") or "none"),
        key=str(meta.get("key") or "none"),
        run_id=str(meta.get("run_id") or ""),
        classes=list(meta["classes"]),
    )
    write_atomic(folder / MANIFEST_FILE, manifest.to_json().encode())
    return Exported(folder, info, manifest)
