"""The two task losses and their sum. All of them are computed in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedenc.data.batch import Batch
from sharedenc.errors import DataError
from sharedenc.models.boxes import encode
from sharedenc.models.network import Network
from sharedenc.spec import Task
from sharedenc.training.matching import match, match_batch, pad_truth
from sharedenc.training.segmentation_loss import segmentation_loss

__all__ = [
    "batched_detection_loss",
    "detection_loss",
    "detection_loss_by_image",
    "segmentation_loss",
    "task_losses",
    "total_loss",
]

NEGATIVES_PER_POSITIVE = 3


def task_losses(
    network: Network,
    outputs: Mapping[str, Tensor],
    batch: Batch,
    anchors: Tensor | None,
    *,
    compiled: bool = False,
) -> dict[Task, Tensor]:
    """Return the loss of each task of the network, each a scalar.

    Args:
        outputs: What the network gave for the batch; segmentation logits of any size.
        anchors: Default boxes ``[A, 4]`` px; None for a network without detection head.
        compiled: Whether the segmentation loss goes through torch.compile
            (`Numerics.compile_loss`).
    """
    losses: dict[Task, Tensor] = {}
    if anchors is not None:
        losses["det"] = detection_loss(
            outputs["cls_logits"], outputs["bbox_regression"], anchors, batch.boxes, batch.labels
        )
    if "seg" in network.tasks:
        if batch.masks is None:
            raise DataError("the data set has no masks, so segmentation cannot be trained on it.")
        losses["seg"] = segmentation_loss(outputs["seg_logits"], batch.masks, compiled=compiled)
    return losses


def total_loss(losses: Mapping[Task, Tensor], alpha: float) -> Tensor:
    """Return the loss of the only task, or ``L_det + alpha * L_seg`` (thesis, section 3.5)."""
    if len(losses) == 1:
        return next(iter(losses.values()))
    return losses["det"] + alpha * losses["seg"]


def detection_loss(
    cls_logits: Tensor,
    bbox_regression: Tensor,
    anchors: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
) -> Tensor:
    """SSD's loss: smooth L1 of matched anchors plus cross-entropy with hard negatives 3:1.

    Both sums run over the batch and are divided by its number of matched anchors (at least 1), so
    that a batch without any box has loss 0. A GPU gets the whole batch at once, since launching a
    kernel costs it more than the padding does; on a CPU it is the other way round (R12).

    Args:
        cls_logits: ``[B, A, C]``, class 0 is background.
        bbox_regression: Offsets to anchors, ``[B, A, 4]``.
        anchors: ``[A, 4]`` xyxy px.
        boxes: Per image ``[N_i, 4]`` xyxy px; N_i may be 0.
        labels: Per image ``[N_i]`` in 1..C-1.
    Source: Liu et al. (SSD), ECCV 2016, arXiv 1512.02325; torchvision's SSD.compute_loss.
    """
    on_cpu = cls_logits.device.type == "cpu"
    way = detection_loss_by_image if on_cpu else batched_detection_loss
    return way(cls_logits, bbox_regression, anchors, boxes, labels)


def detection_loss_by_image(
    cls_logits: Tensor,
    bbox_regression: Tensor,
    anchors: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
) -> Tensor:
    """`detection_loss` with a loop over the images for everything that has to do with boxes."""
    matched = torch.stack([match(boxes_of_image, anchors) for boxes_of_image in boxes])
    positive = matched >= 0
    targets = torch.zeros_like(matched)
    wanted = []
    for row, image in enumerate(positive):
        index = matched[row, image]
        targets[row, image] = labels[row][index]
        wanted.append(encode(boxes[row][index], anchors[image]))
    regression = F.smooth_l1_loss(
        bbox_regression[positive].float(), torch.cat(wanted), reduction="sum"
    )

    classification = _classification(cls_logits, targets)
    chosen = positive | _hard_negatives(classification.detach(), positive)
    return (regression + classification[chosen].sum()) / positive.sum().clamp(min=1)


def batched_detection_loss(
    cls_logits: Tensor,
    bbox_regression: Tensor,
    anchors: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
) -> Tensor:
    """`detection_loss` without a loop, and without waiting for the device to say a size."""
    truth = pad_truth(boxes, labels)
    matched = match_batch(truth, anchors)
    positive = matched >= 0
    index = matched.clamp(min=0)
    targets = truth.labels.gather(1, index).masked_fill(~positive, 0)
    box = truth.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    # An anchor without a box stands for itself: its offsets are 0 and finite.
    offsets = encode(torch.where(positive[..., None], box, anchors), anchors.expand_as(box))
    distance = F.smooth_l1_loss(bbox_regression.float(), offsets, reduction="none")
    regression = distance.masked_fill(~positive[..., None], 0).sum()

    classification = _classification(cls_logits, targets)
    chosen = positive | _hard_negatives(classification.detach(), positive)
    total = regression + classification.masked_fill(~chosen, 0).sum()
    return total / positive.sum().clamp(min=1)


def _classification(cls_logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each anchor, ``[B, A]``."""
    scores = cls_logits.float().flatten(0, 1)
    return F.cross_entropy(scores, targets.flatten(), reduction="none").view_as(targets)


def _hard_negatives(loss: Tensor, positive: Tensor) -> Tensor:
    """Mark the background anchors with the largest loss, three for each positive of the image."""
    wanted = NEGATIVES_PER_POSITIVE * positive.sum(dim=1, keepdim=True)
    order = loss.masked_fill(positive, -torch.inf).argsort(dim=1, descending=True)
    return order.argsort(dim=1) < wanted
