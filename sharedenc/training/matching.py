"""Which anchor is responsible for which true box."""

from __future__ import annotations

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
