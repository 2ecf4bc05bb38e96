"""The two task losses and their sum. All of them are computed in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedenc.data.batch import Batch
from sharedenc.errors import DataError
from sharedenc.models.boxes import encode
from sharedenc.models.network import Network
from sharedenc.spec import Task
from sharedenc.training.matching import match

IGNORE = 255
NEGATIVES_PER_POSITIVE = 3


def task_losses(
    network: Network, outputs: Mapping[str, Tensor], batch: Batch, anchors: Tensor | None
) -> dict[Task, Tensor]:
    """Return the loss of each task of the network, each a scalar.

    Args:
        outputs: What the network gave for the batch.
        anchors: Default boxes ``[A, 4]`` px; None for a network without detection head.
    """
    losses: dict[Task, Tensor] = {}
    if anchors is not None:
        losses["det"] = detection_loss(
            outputs["cls_logits"], outputs["bbox_regression"], anchors, batch.boxes, batch.labels
        )
    if "seg" in network.tasks:
        if batch.masks is None:
            raise DataError("the data set has no masks, so segmentation cannot be trained on it.")
        losses["seg"] = segmentation_loss(outputs["seg_logits"], batch.masks)
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
    that a batch without any box has loss 0.

    Args:
        cls_logits: ``[B, A, C]``, class 0 is background.
        bbox_regression: Offsets to anchors, ``[B, A, 4]``.
        anchors: ``[A, 4]`` xyxy px.
        boxes: Per image ``[N_i, 4]`` xyxy px; N_i may be 0.
        labels: Per image ``[N_i]`` in 1..C-1.
    Source: Liu et al. (SSD), ECCV 2016, arXiv 1512.02325; torchvision's SSD.compute_loss.
    """
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

    scores = cls_logits.float().flatten(0, 1)
    classification = F.cross_entropy(scores, targets.flatten(), reduction="none")
    classification = classification.view_as(targets)
    chosen = positive | _hard_negatives(classification.detach(), positive)
    return (regression + classification[chosen].sum()) / positive.sum().clamp(min=1)


def _hard_negatives(loss: Tensor, positive: Tensor) -> Tensor:
    """Mark the background anchors with the largest loss, three for each positive of the image."""
    wanted = NEGATIVES_PER_POSITIVE * positive.sum(dim=1, keepdim=True)
    order = loss.masked_fill(positive, -torch.inf).argsort(dim=1, descending=True)
    return order.argsort(dim=1) < wanted


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy over all pixels that are not 255; 0 when there is none.

    Args:
        logits: ``[B, C, H, W]``.
        masks: Class of each pixel, or 255, uint8 ``[B, H, W]``.
    """
    if logits.device.type == "cpu":
        loss: Tensor = _PixelCrossEntropy.apply(logits, masks)
        return loss
    labelled = (masks != IGNORE).sum().clamp(min=1)
    total = F.cross_entropy(logits.float(), masks.long(), ignore_index=IGNORE, reduction="sum")
    return total / labelled


class _PixelCrossEntropy(torch.autograd.Function):
    """The loss above for CPUs: one picture at a time, with a pixel's logits side by side.

    At 320 px and 21 classes this part costs more than half of a small network's step. Torch's own
    backward pass fills and reads a mostly empty gradient of the log-probabilities; writing
    ``softmax - one_hot`` at once takes half the time on channels_last logits and three quarters on
    contiguous ones.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> Tensor:
        classes = logits.shape[1]
        labelled = (masks != IGNORE).sum().clamp(min=1)
        rows = [picture.reshape(-1, classes) for picture in logits.permute(0, 2, 3, 1)]
        logs = [torch.log_softmax(picture.float(), dim=1) for picture in rows]
        sums = [
            F.nll_loss(log, mask.flatten().long(), ignore_index=IGNORE, reduction="sum")
            for log, mask in zip(logs, masks, strict=True)
        ]
        ctx.save_for_backward(masks, labelled, *logs)
        ctx.dtype = logits.dtype
        return torch.stack(sums).sum() / labelled

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        masks, labelled, *logs = ctx.saved_tensors
        batch, height, width = masks.shape
        gradient = torch.empty(batch, height * width, logs[0].shape[1])
        for rows, log, mask in zip(gradient, logs, masks, strict=True):
            target = mask.flatten().long()
            counts = target != IGNORE
            weight = (counts * (grads[0] / labelled))[:, None]
            torch.exp(log, out=rows)
            rows.mul_(weight)
            rows.scatter_add_(1, torch.where(counts, target, 0)[:, None], -weight)
        gradient = gradient.view(batch, height, width, -1).permute(0, 3, 1, 2)
        return gradient.to(ctx.dtype), None
