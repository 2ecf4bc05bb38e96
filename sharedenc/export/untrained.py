"""Graphs of networks before any training, for their speed alone: it does not depend on weights."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

import sharedenc
from jetson_agent.protocol import model_name
from sharedenc.data.batch import IMAGENET_MEAN, IMAGENET_STD
from sharedenc.errors import SharedencError
from sharedenc.export.calibration import Calibration
from sharedenc.export.folder import model_data
from sharedenc.export.onnx import PARITY_IMAGES, TASKS_OF
from sharedenc.export.registered import UNTRAINED, OpenRun, Registered, row_of
from sharedenc.export.registry import Registry
from sharedenc.files import file_sha256
from sharedenc.models.build import build_network
from sharedenc.models.encoders import batch_norms
from sharedenc.models.network import Network
from sharedenc.models.weights import load_encoder_weights, resolve_weights
from sharedenc.spec import BACKBONES, GRAPHS, Graph, Recipe

CELL = "untrained"
# Batch norms of a random network divide by what hardly varies, rounding errors too.
TOLERANCE = 1e-2
# Photos for ranges and batch norms: neither can change the speed, so a few do.
IMAGES = 8
_BATCH = 4


def export_untrained(
    uri: str,
    study: str,
    backbones: Sequence[str],
    graphs: Sequence[Graph] = GRAPHS,
    *,
    int8: Calibration,
    recipe: Recipe | None = None,
    weights: str = "none",
    on_row: Callable[[Registered], None] | None = None,
) -> list[Registered]:
    """Register graphs of freshly built networks as ``<model>-untrained``, float and INT8.

    Each architecture is that of the trained network's export. A ready version that was made of the
    same parts, by whichever study, is reused without building anything. Their files hang on runs of
    kind ``export`` in the study's experiment, which are no cells. One that cannot be exported is a
    row with its reason.

    Args:
        study: whose experiment holds the runs; it is made if need be.
        int8: the study's data; its classes size the heads. Its first photos give ranges and
            batch-norm statistics, and nothing is scored.
        recipe: gives ``image_px``.
        weights: of the encoders, in the grammar of ``--weights``; ``none`` is random.

    Returns:
        One row per backbone and graph that the data's tasks allow.

    Raises:
        TrackingError: no server.
    """
    registry = Registry(uri)
    image_px = (recipe or Recipe()).image_px
    few = Calibration(pack=int8.pack, images=IMAGES, seed=int8.seed, threads=int8.threads)
    rows: list[Registered] = []
    for backbone in backbones:
        wanted = [graph for graph in graphs if set(TASKS_OF[graph]) <= set(few.pack.tasks)]
        for row in _of_backbone(registry, study, backbone, wanted, few, image_px, weights):
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return rows


def _of_backbone(
    registry: Registry,
    study: str,
    backbone: str,
    graphs: Sequence[Graph],
    int8: Calibration,
    image_px: int,
    weights: str,
) -> Iterator[Registered]:
    meta = _meta(study, backbone, int8, image_px)
    parts = identity(backbone, meta)
    run: OpenRun | None = None
    with tempfile.TemporaryDirectory(prefix="sharedenc-untrained-") as folder:
        for graph in graphs:
            model = f"{model_name(model_data(meta), backbone, graph)}{UNTRAINED}"
            try:
                known = registry.find(model, graph, parts)
                if known is not None:
                    yield row_of(CELL, graph, "present", model, known)
                    continue
                if run is None:
                    run = _open(registry, study, backbone, int8, meta, parts, weights)
                photos = np.stack([*int8.photos(image_px, PARITY_IMAGES)])
                yield registry.register(run, graph, Path(folder), torch.from_numpy(photos), int8)
            except SharedencError as error:
                yield Registered(
                    cell=CELL, graph=graph, outcome="failed", model=model, reason=str(error)
                )


def _open(
    registry: Registry,
    study: str,
    backbone: str,
    int8: Calibration,
    meta: dict[str, Any],
    parts: str,
    weights: str,
) -> OpenRun:
    run_id = registry.export_run(study, f"{backbone}/{CELL}", parts)
    photos = torch.from_numpy(np.stack([*int8.photos(int(meta["image_px"]))]))
    network = fresh_network(backbone, int8, photos, weights)
    meta = {**meta, "run_id": run_id}
    return OpenRun(run_id, network, meta, parts, tolerance=TOLERANCE, untrained=True)


def fresh_network(backbone: str, int8: Calibration, photos: Tensor, weights: str) -> Network:
    """A network with the heads of the data's tasks whose batch norms know ``photos``.

    Without that, deep features of a random network vanish, and a dead output cannot be checked.
    The heads are always random, so theirs are settled whatever the encoder's weights are.
    """
    network = build_network(backbone, int8.pack.tasks, int8.pack.classes.num_classes, seed=0)
    initial = resolve_weights(weights, backbone)
    if initial.load is not None:
        load_encoder_weights(network.encoder, initial.load())
    network.eval()
    for norm in batch_norms(network).values():
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in torch.split(photos, _BATCH):
            if len(batch) > 1:  # one photo has one value in the smallest map: nothing to average
                network(batch)
    return network.eval()


def identity(backbone: str, meta: dict[str, Any]) -> str:
    """sha256 (64 hex) of all that decides the architectures of a backbone's graphs.

    What writes the files is in it, our own code too: another exporter may write another graph, and
    making the files again costs seconds.
    """
    parts = [
        backbone,
        BACKBONES[backbone].digest,
        meta["num_classes"],
        meta["image_px"],
        torch.__version__,
        onnx.__version__,
        onnxruntime.__version__,
        *_sources(),
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _sources() -> list[str]:
    package = Path(sharedenc.__file__).parent
    files = (file for part in ("export", "models") for file in (package / part).glob("*.py"))
    return [file_sha256(file) for file in sorted(files)]


def _meta(study: str, backbone: str, int8: Calibration, image_px: int) -> dict[str, Any]:
    pack = int8.pack
    return {
        "backbone": backbone,
        "tasks": list(pack.tasks),
        "num_classes": pack.classes.num_classes,
        "classes": list(pack.classes.names),
        "class_list": pack.classes.name,
        "image_px": image_px,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "cell": CELL,
        "study": study,
        "data": pack.name,
        "data_digest": pack.digest,
    }
