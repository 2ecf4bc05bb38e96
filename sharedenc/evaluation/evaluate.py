"""Scores of networks on one split, by one pass over it."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sharedenc.data.batch import Batch, eval_batches, normalise
from sharedenc.data.classes import ClassList
from sharedenc.errors import DataError
from sharedenc.evaluation.coco_tables import Truth
from sharedenc.evaluation.detection import coco_ap
from sharedenc.evaluation.segmentation import ConfusionMatrix
from sharedenc.evaluation.tap_file import DamagedTapError
from sharedenc.models.boxes import Detections, postprocess
from sharedenc.models.encoders import LEVELS, Level
from sharedenc.models.network import Network
from sharedenc.spec import Numerics, Recipe, Task
from sharedenc.training.losses import detection_loss
from sharedenc.training.prefetch import on_device
from sharedenc.training.segmentation_loss import segment

if TYPE_CHECKING:
    from sharedenc.data.loaders import Loaders
    from sharedenc.data.packed import PackedSplit
    from sharedenc.evaluation.taps import TapCache

SUMMARY = ("loss", "loss_det", "loss_seg", "mAP", "mAP50", "mAP75", "mIoU", "pixel_acc")
"""The figures that are worth a curve over epochs."""
FIRST_IOU, IOU_STEP = 0.5, 0.05
READ: dict[Task, tuple[Level, ...]] = {"det": ("mid", "high"), "seg": ("low", "high")}
"""The maps that each task's head reads."""


def evaluate_network(
    network: Network,
    split: PackedSplit,
    recipe: Recipe,
    classes: ClassList,
    numerics: Numerics,
    device: str,
    limit: int | None = None,
    workers: int | Loaders = 0,
    before_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Return losses and scores of the network's tasks, in evaluation mode, without augmentation.

    Keys: ``loss`` (``L_det + alpha L_seg`` for two tasks), ``loss_det``, ``loss_seg``; ``mAP``,
    ``mAP50``, ``mAP75``, ``AP_0.50`` to ``AP_0.95`` and ``AP_class/<name>``, in source pixels;
    ``mIoU`` and ``IoU_class/<name>`` with background, and ``pixel_acc``, at network size. A figure
    without any truth to score against is left out.

    Args:
        limit: Score the first images only.
        workers: Loader processes, or who finds out how many there should be.
        before_batch: Called before each batch; what it raises ends the evaluation.
    """
    (outcome,) = evaluate_members(
        [network],
        split,
        [recipe],
        classes,
        numerics,
        device,
        limit=limit,
        workers=workers,
        before_batch=before_batch,
    )
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def evaluate_members(
    networks: Sequence[Network],
    split: PackedSplit,
    recipes: Sequence[Recipe],
    classes: ClassList,
    numerics: Numerics,
    device: str,
    *,
    limit: int | None = None,
    workers: int | Loaders = 0,
    before_batch: Callable[[], None] | None = None,
    taps: TapCache | None = None,
) -> list[dict[str, float] | Exception]:
    """Score several networks with equal encoders by one pass of the first one's encoder.

    Args:
        networks: They may be of different tasks.
        recipes: One for each network.
        taps: Of this encoder on this whole split: maps that are there are read instead of computed,
            and their pictures are not decoded; others are added.

    Returns:
        By member what `evaluate_network` returns for it alone, to the same bits, or the exception
        that its own part raised (heads, losses, scores): the others go on without it.

    Raises:
        ValueError: there is no network, or the recipes ask for different images.
        Exception: whatever the shared part raised: data, encoder, ``before_batch``.
    """
    images = {(recipe.image_px, recipe.batch_size) for recipe in recipes}
    if len(networks) != len(recipes) or len(images) != 1:
        raise ValueError(
            f"{len(networks)} networks with {len(recipes)} recipes of (image_px, batch_size) "
            f"{sorted(images)}: members of one pass need a recipe each, for the same images"
        )
    if taps is not None and limit is not None:
        raise ValueError(f"limit={limit}: taps are of all batches of a split")
    were_training = [network.training for network in networks]
    for network in networks:
        network.eval()

    def new_members() -> list[_Member]:
        return [_Member(*pair) for pair in zip(networks, recipes, strict=True)]

    def batches(blind: Container[int]) -> Iterator[Batch]:
        pin = torch.device(device).type == "cuda"
        found = eval_batches(split, recipes[0], workers=workers, limit=limit, blind=blind, pin=pin)
        for batch in on_device(found, device):
            if before_batch is not None:
                before_batch()
            yield batch

    maps = _Maps(networks, numerics, taps)
    try:
        with torch.inference_mode():
            for stored in (maps.stored, frozenset[int]()):
                maps.stored, members = stored, new_members()
                # Where one cannot be read, pictures have been left out that are needed after all.
                with contextlib.suppress(DamagedTapError):
                    _score(members, batches(stored), maps)
                    break
    finally:
        for network, was_training in zip(networks, were_training, strict=True):
            network.train(was_training)
    return [member.outcome(split, classes, limit) for member in members]


def _score(members: Sequence[_Member], batches: Iterable[Batch], maps: _Maps) -> None:
    """Let the members make what they make of each batch, until all have failed."""
    for number, batch in enumerate(batches):
        found = maps.of(number, batch)
        for member in members:
            member.add(found, batch, maps.autocast)
        if all(member.error is not None for member in members):
            return


class _Maps:
    """The encoder's maps of each batch, computed or read."""

    def __init__(
        self, networks: Sequence[Network], numerics: Numerics, taps: TapCache | None
    ) -> None:
        self._network, self._numerics, self._taps = networks[0], numerics, taps
        self._levels: tuple[Level, ...] = ()
        self.stored: frozenset[int] = frozenset()
        if taps is not None:
            read = {level for network in networks for task in network.tasks for level in READ[task]}
            self._levels = tuple(level for level in LEVELS if level in read)
            self.stored = taps.stored(self._levels)

    def autocast(self, device: torch.device) -> torch.autocast:
        """What encoder and heads run in."""
        mixed = self._numerics.precision == "bfloat16"
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed)

    def of(self, number: int, batch: Batch) -> Mapping[str, Tensor]:
        """The maps of a batch; only those that some member reads if they come from the disk.

        Raises:
            DamagedTapError: they were to be read and could not.
        """
        device = batch.images.device
        if self._taps is not None and number in self.stored:
            read = self._taps.read(number, self._levels)
            return {level: tensor.to(device) for level, tensor in read.items()}
        started = time.perf_counter()
        x = normalise(batch.images, memory_format=self._numerics.memory_format)
        with self.autocast(device):
            maps = self._network.encode(x)
        if self._taps is not None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self._taps.write(number, maps, self._levels, time.perf_counter() - started)
        return maps


class _Member:
    """What one network makes of the shared maps. After ``error`` it takes no further part."""

    def __init__(self, network: Network, recipe: Recipe) -> None:
        self.error: Exception | None = None
        self._network, self._recipe = network, recipe
        head = network.det_head
        self._anchors = None if head is None else head.anchors(recipe.image_px)
        self._sums: dict[str, float] = defaultdict(float)
        self._images = 0
        self._rows: list[np.ndarray] = []
        self._confusion = ConfusionMatrix(network.num_classes)

    def add(
        self, maps: Mapping[str, Tensor], batch: Batch, autocast: Callable[[torch.device], Any]
    ) -> None:
        """Take a batch's maps into account."""
        if self.error is not None:
            return
        try:
            with autocast(batch.images.device):
                # A copy of the dict: what one head puts there is nothing to the next.
                outputs = self._network.decode(dict(maps), None)
            if self._anchors is not None:
                self._detect(outputs, self._anchors, batch)
            if "seg" in self._network.tasks:
                self._segment(outputs, batch)
            self._images += len(batch)
        except Exception as error:
            self.error = error

    def _detect(self, outputs: Mapping[str, Tensor], anchors: Tensor, batch: Batch) -> None:
        logits, offsets = outputs["cls_logits"], outputs["bbox_regression"]
        loss = detection_loss(logits, offsets, anchors, batch.boxes, batch.labels)
        self._sums["loss_det"] += float(loss) * len(batch)
        px = self._recipe.image_px
        found = postprocess(logits, offsets, anchors, px, self._recipe)
        self._rows += detection_rows(batch, found, px)

    def _segment(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        if batch.masks is None:
            raise DataError("the data set has no masks, so segmentation cannot be scored on it.")
        loss, predicted = segment(outputs["seg_logits"], batch.masks)
        self._sums["loss_seg"] += float(loss) * len(batch)
        self._confusion.update(predicted.cpu().numpy(), batch.masks.cpu().numpy())

    def outcome(
        self, split: PackedSplit, classes: ClassList, limit: int | None
    ) -> dict[str, float] | Exception:
        """The metrics of all batches, or the error."""
        if self.error is not None:
            return self.error
        try:
            return self._metrics(split, classes, limit)
        except Exception as error:
            return error

    def _metrics(
        self, split: PackedSplit, classes: ClassList, limit: int | None
    ) -> dict[str, float]:
        metrics = {name: total / self._images for name, total in self._sums.items()}
        two = len(self._network.tasks) > 1
        weights = {"loss_det": 1.0, "loss_seg": self._recipe.alpha if two else 1.0}
        metrics["loss"] = sum(weights[name] * value for name, value in metrics.items())
        if self._anchors is not None:
            detections = np.concatenate(self._rows) if self._rows else np.zeros((0, 7))
            metrics |= _detection_scores(split, detections, limit)
        if "seg" in self._network.tasks:
            metrics |= _segmentation_scores(self._confusion, classes)
        return metrics


def detection_rows(batch: Batch, found: list[Detections], image_px: int) -> list[np.ndarray]:
    """Return per image ``[N, 7]``: image id, x, y, w, h in source pixels, score, label."""
    rows = []
    for image_id, (height, width), image in zip(batch.image_ids, batch.sizes, found, strict=True):
        scale = np.array([width, height, width, height], np.float64) / image_px
        boxes = image.boxes.double().cpu().numpy() * scale
        row = np.empty((len(boxes), 7), np.float64)
        row[:, 0] = image_id
        row[:, 1:3] = boxes[:, :2]
        row[:, 3:5] = boxes[:, 2:] - boxes[:, :2]
        row[:, 5] = image.scores.cpu().numpy()
        row[:, 6] = image.labels.cpu().numpy()
        rows.append(row)
    return rows


@lru_cache(maxsize=2)
def _truth(split: PackedSplit, limit: int | None) -> Truth:
    """A split's annotations, which are scored against in every epoch."""
    return Truth(split.ground_truth(limit), "bbox")


def _detection_scores(
    split: PackedSplit, detections: np.ndarray, limit: int | None
) -> dict[str, float]:
    result = coco_ap(_truth(split, limit), detections)
    scores = {
        "mAP": result.stats["AP"],
        "mAP50": result.stats["AP50"],
        "mAP75": result.stats["AP75"],
    }
    scores |= {
        f"AP_{FIRST_IOU + IOU_STEP * place:.2f}": value
        for place, value in enumerate(result.ap_per_iou)
    }
    scores |= {f"AP_class/{_safe(name)}": value for name, value in result.per_class.items()}
    return _defined(scores)


def _segmentation_scores(confusion: ConfusionMatrix, classes: ClassList) -> dict[str, float]:
    result = confusion.result(classes)
    scores = {"mIoU": result.mIoU, "pixel_acc": result.pixel_acc}
    scores |= {f"IoU_class/{_safe(name)}": value for name, value in result.iou_per_class.items()}
    return _defined(scores)


def _safe(class_name: str) -> str:
    """A class name as one part of a metric's name."""
    return class_name.replace("/", "_")


def _defined(scores: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items() if value >= 0}
