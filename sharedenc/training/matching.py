"""Which anchor is responsible for which true box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND = -1
MIN_IOU = 0.5


def match(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return for each anchor the index of its box, or -1: int64 ``[A]``.

    An anchor takes the box it overlaps most, if their IoU is at least .5; each box also takes its
    best anchor whatever the IoU, the later box winning where two want the same.

    Args:
        boxes: True boxes, xyxy px, float ``[N, 4]``; N may be 0.
        anchors: Default boxes, xyxy px, float ``[A, 4]``.
    Source: Liu et al. (SSD), ECCV 2016, arXiv 1512.02325, section 2.2; torchvision's SSDMatcher.
    """
    if len(boxes) == 0:
        return torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    iou: Tensor = box_iou(boxes, anchors)
    best_iou, matched = iou.max(dim=0)
    matched[best_iou < MIN_IOU] = BACKGROUND
    matched[iou.argmax(dim=1)] = torch.arange(len(boxes), device=boxes.device)
    return matched


@dataclass(frozen=True)
class PaddedTruth:
    """A batch's true boxes as one tensor: ``boxes [B, N, 4]`` xyxy px and ``labels [B, N]``.

    N is the most boxes of an image, at least 1; a label of 0 marks what is padding.
    """

    boxes: Tensor
    labels: Tensor


def pad_truth(boxes: list[Tensor], labels: list[Tensor]) -> PaddedTruth:
    """Lay the boxes ``[N_i, 4]`` and labels ``[N_i]`` (from 1) of B images side by side.

    The place of each box follows from the shapes, so that nothing is asked of the device.
    """
    counts = torch.tensor([len(one) for one in labels])
    most = max(1, int(counts.max()))
    image = torch.repeat_interleave(counts)
    rank = torch.arange(len(image)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    flat_boxes, flat_labels = torch.cat(boxes), torch.cat(labels)
    place = (image * most + rank).to(flat_labels.device, non_blocking=True)
    padded = flat_boxes.new_zeros(len(boxes) * most, 4).index_copy_(0, place, flat_boxes)
    marked = flat_labels.new_zeros(len(boxes) * most).index_copy_(0, place, flat_labels)
    return PaddedTruth(padded.view(-1, most, 4), marked.view(-1, most))


def match_batch(truth: PaddedTruth, anchors: Tensor) -> Tensor:
    """`match` for all images at once: int64 ``[B, A]``."""
    images, most = truth.labels.shape
    iou: Tensor = box_iou(truth.boxes.flatten(0, 1), anchors).view(images, most, -1)
    there = truth.labels > 0
    # Below any overlap: an anchor that overlaps nothing still prefers a true box to padding.
    iou = iou.masked_fill(~there[..., None], -1)
    best_iou, matched = iou.max(dim=1)
    matched = matched.masked_fill(best_iou < MIN_IOU, BACKGROUND)
    number = torch.arange(most, device=anchors.device).expand(images, -1)
    claims = torch.full_like(matched, BACKGROUND).scatter_reduce(
        1, iou.argmax(dim=2), number.masked_fill(~there, BACKGROUND), "amax"
    )
    return torch.where(claims >= 0, claims, matched)
