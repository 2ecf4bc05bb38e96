"""Scores of a network on one split, by one pass over it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from sharedenc.data.batch import Batch, eval_batches
from sharedenc.data.classes import ClassList
from sharedenc.evaluation.detection import coco_ap
from sharedenc.evaluation.segmentation import ConfusionMatrix
from sharedenc.models.boxes import Detections, postprocess
from sharedenc.models.network import Network
from sharedenc.spec import Numerics, Recipe
from sharedenc.training.losses import task_losses
from sharedenc.training.numerics import forward

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedSplit

SUMMARY = ("loss", "loss_det", "loss_seg", "mAP", "mAP50", "mAP75", "mIoU", "pixel_acc")
"""The figures that are worth a curve over epochs."""
FIRST_IOU, IOU_STEP = 0.5, 0.05


def evaluate_network(
    network: Network,
    split: PackedSplit,
    recipe: Recipe,
    classes: ClassList,
    numerics: Numerics,
    device: str,
    limit: int | None = None,
    workers: int = 0,
    before_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Return losses and scores of the network's tasks, in evaluation mode, without augmentation.

    Keys: ``loss`` (``L_det + alpha L_seg`` for two tasks), ``loss_det``, ``loss_seg``; ``mAP``,
    ``mAP50``, ``mAP75``, ``AP_0.50`` to ``AP_0.95`` and ``AP_class/<name>``, in source pixels;
    ``mIoU`` and ``IoU_class/<name>`` with background, and ``pixel_acc``, at network size. A figure
    without any truth to score against is left out.

    Args:
        limit: Score the first images only.
        workers: Loader processes.
        before_batch: Called before each batch; what it raises ends the evaluation.
    """
    was_training = network.training
    network.eval()
    anchors = None if network.det_head is None else network.det_head.anchors(recipe.image_px)
    sums: dict[str, float] = defaultdict(float)
    images = 0
    rows: list[np.ndarray] = []
    confusion = ConfusionMatrix(network.num_classes)
    try:
        with torch.inference_mode():
            for batch in eval_batches(split, recipe, workers=workers, limit=limit):
                if before_batch is not None:
                    before_batch()
                batch = batch.to(device)
                outputs = forward(network, batch.images, numerics)
                for task, loss in task_losses(network, outputs, batch, anchors).items():
                    sums[f"loss_{task}"] += float(loss) * len(batch)
                images += len(batch)
                if anchors is not None:
                    found = postprocess(
                        outputs["cls_logits"],
                        outputs["bbox_regression"],
                        anchors,
                        recipe.image_px,
                        recipe,
                    )
                    rows += detection_rows(batch, found, recipe.image_px)
                if batch.masks is not None and "seg" in network.tasks:
                    predicted = outputs["seg_logits"].argmax(dim=1).to(torch.uint8)
                    confusion.update(predicted.cpu().numpy(), batch.masks.cpu().numpy())
    finally:
        network.train(was_training)

    metrics = {name: total / images for name, total in sums.items()}
    weights = {"loss_det": 1.0, "loss_seg": recipe.alpha if len(network.tasks) > 1 else 1.0}
    metrics["loss"] = sum(weights[name] * value for name, value in metrics.items())
    if anchors is not None:
        detections = np.concatenate(rows) if rows else np.zeros((0, 7))
        metrics |= _detection_scores(split, detections, limit)
    if "seg" in network.tasks:
        metrics |= _segmentation_scores(confusion, classes)
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


def _detection_scores(
    split: PackedSplit, detections: np.ndarray, limit: int | None
) -> dict[str, float]:
    result = coco_ap(split.ground_truth(limit), detections)
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
