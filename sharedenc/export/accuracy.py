"""Scores of exported files on photos with annotations, all through ONNX Runtime.

The very files that are timed are scored, by the same step to boxes and the same scorer as a trial's
own test scores, so that a drop from float to INT8 is that of the file and of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetson_agent.protocol import INT8_FILES, MODEL_FILE
from sharedenc.data.batch import Batch, eval_batches, normalise
from sharedenc.data.packed import PackedDataset
from sharedenc.data.progress import progress
from sharedenc.evaluation.detection import coco_ap
from sharedenc.evaluation.evaluate import detection_rows
from sharedenc.evaluation.segmentation import ConfusionMatrix
from sharedenc.export.calibration import Calibration
from sharedenc.export.folder import Exported
from sharedenc.export.metadata import GraphMetadata, read_metadata
from sharedenc.export.parity import open_session
from sharedenc.models.boxes import postprocess
from sharedenc.spec import Recipe

FLOAT = "float"
# What a file is called in metrics and tags.
KINDS = {MODEL_FILE: FLOAT} | {name: f"int8-{recipe}" for recipe, name in INT8_FILES.items()}
FIGURES = ("mAP", "mAP50", "mIoU", "pixel_acc")
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Scores (0..1, those of `FIGURES` that the graph has) by kind of file, on so many photos."""

    images: int
    split: str
    scores: Mapping[str, Mapping[str, float]]

    @property
    def drops(self) -> dict[str, dict[str, float]]:
        """By quantised kind and figure: float's score minus its own, absolute."""
        exact = self.scores.get(FLOAT, {})
        return {
            kind: {name: exact[name] - own[name] for name in exact if name in own}
            for kind, own in self.scores.items()
            if kind != FLOAT
        }

    def metrics(self, graph: str) -> dict[str, float]:
        """What the trial's run records: ``export/<graph>/<kind>/<figure>``, ``.._drop``, ..."""
        place = f"export/{graph}"
        values: dict[str, float] = {f"{place}/images": self.images}
        for kind, own in self.scores.items():
            values |= {f"{place}/{kind}/{name}": value for name, value in own.items()}
        for kind, own in self.drops.items():
            values |= {f"{place}/{kind}/{name}_drop": value for name, value in own.items()}
        return values

    def to_dict(self) -> dict[str, Any]:
        """Short plain values: five digits, which is more than these scores are good for."""
        scores = {
            kind: {name: round(value, 5) for name, value in own.items()}
            for kind, own in self.scores.items()
        }
        return {"images": self.images, "split": self.split, **scores}


def measure_accuracy(
    folder: Path,
    files: Sequence[str],
    pack: PackedDataset,
    *,
    recipe: Recipe | None = None,
    limit: int | None = None,
    threads: int = 0,
    workers: int = 0,
    shown: bool = True,
) -> Accuracy | None:
    """Score ``files`` of an exported folder on the test split, in one pass over its photos.

    Args:
        files: names within ``folder``, all of one graph and with one input size.
        pack: the data; its validation split stands in where it has no test split.
        recipe: says by which path photos are resized; size and thresholds are the files' own.
        limit: score the first photos only.
        threads: see `open_session`.
        workers: loader processes.

    Returns:
        None for an encoder, which finds nothing.

    Raises:
        ExportError: a file is damaged.
        DataError: there is no photo.
    """
    scorers = {KINDS[name]: _Scorer(folder / name, pack, threads) for name in files}
    given = next(iter(scorers.values())).given
    if given.graph == "encoder":
        return None
    name = "test" if len(pack.split("test")) else "val"
    split = pack.split(name)
    count = len(split) if limit is None else min(limit, len(split))
    settings = {**(recipe or Recipe()).to_dict(), "image_px": given.image_px, "batch_size": BATCH}
    batches = eval_batches(split, Recipe.from_dict(settings), workers=workers, limit=count)
    with progress(f"accuracy of {given.graph}", count, unit="photos", shown=shown) as advance:
        for batch in batches:
            images = normalise(batch.images).numpy()
            for scorer in scorers.values():
                scorer.add(images, batch)
            advance(len(batch))
    truth = split.ground_truth(count)
    scores = {kind: scorer.scores(truth, pack) for kind, scorer in scorers.items()}
    return Accuracy(images=count, split=name, scores=scores)


def score_export(
    exported: Exported, meta: Mapping[str, Any], int8: Calibration | None
) -> Accuracy | None:
    """`measure_accuracy` of an exported folder, as its calibration says; None without one.

    Args:
        meta: a checkpoint's meta; ``recipe`` in it says how photos are resized.
    """
    if int8 is None:
        return None
    return measure_accuracy(
        exported.folder,
        exported.onnx_files,
        int8.pack,
        recipe=Recipe.from_dict(meta.get("recipe") or {}),
        limit=int8.accuracy_images,
        threads=int8.threads,
        workers=int8.workers,
        shown=int8.shown,
    )


@dataclass
class _Scorer:
    """One file, and what it found so far."""

    path: Path
    pack: PackedDataset
    threads: int
    given: GraphMetadata = field(init=False)

    def __post_init__(self) -> None:
        as_written = self.path.name == INT8_FILES["trt"]
        self._session = open_session(self.path, threads=self.threads, as_written=as_written)
        raw = self._session.get_modelmeta().custom_metadata_map
        self.given = read_metadata(raw, str(self.path))
        self._names = [output.name for output in self._session.get_outputs()]
        self._boxes: list[Any] = []
        self._pixels = ConfusionMatrix(self.pack.classes.num_classes)

    def add(self, images: Any, batch: Batch) -> None:
        rows = [
            self._session.run(self._names, {"images": images[at : at + 1]})
            for at in range(len(images))
        ]
        outputs: dict[str, Tensor] = {
            name: torch.from_numpy(np.concatenate([row[at] for row in rows]))
            for at, name in enumerate(self._names)
        }
        given = self.given
        if given.anchors is not None and given.postprocess is not None:
            found = postprocess(
                outputs["cls_logits"],
                outputs["bbox_regression"],
                torch.from_numpy(given.anchors.copy()),
                given.image_px,
                given.postprocess,
            )
            self._boxes += detection_rows(batch, found, given.image_px)
        if "seg_logits" in outputs and batch.masks is not None:
            # The same indices as those of argmax, which takes three times as long over channels.
            predicted = outputs["seg_logits"].max(dim=1).indices.to(torch.uint8)
            self._pixels.update(predicted.numpy(), batch.masks.numpy())

    def scores(self, truth: Mapping[str, Any], pack: PackedDataset) -> dict[str, float]:
        """Those of `FIGURES` that the graph's heads give and the truth defines."""
        values: dict[str, float] = {}
        if self.given.anchors is not None:
            rows = np.concatenate(self._boxes) if self._boxes else np.zeros((0, 7))
            stats = coco_ap(truth, rows).stats
            values |= {"mAP": stats["AP"], "mAP50": stats["AP50"]}
        if "seg_logits" in self._names:
            pixels = self._pixels.result(pack.classes)
            values |= {"mIoU": pixels.mIoU, "pixel_acc": pixels.pixel_acc}
        return {name: float(value) for name, value in values.items() if value >= 0}
