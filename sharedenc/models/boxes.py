"""Boxes: offsets to anchors and back, and the step from raw outputs to detections."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

# How much each offset weighs in the loss and in the coding: x, y, width, height.
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Widths and heights grow by at most this factor, so that exp() cannot overflow.
MAX_LOG_SCALE = math.log(1000.0 / 16)


class PostprocessSettings(Protocol):
    """What of a recipe the step to detections reads."""

    @property
    def score_threshold(self) -> float: ...
    @property
    def nms_iou(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def detections_per_image(self) -> int: ...


@dataclass(frozen=True)
class Detections:
    """One image's detections by falling score: boxes ``[N, 4]`` xyxy px, scores, labels ``[N]``."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def _centres_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets ``[..., 4]`` of boxes to anchors, both xyxy px of the same shape.

    Source: Ren et al. (Faster R-CNN), arXiv 1506.01497; weights as torchvision's SSD.
    """
    centre, size = _centres_sizes(boxes)
    anchor_centre, anchor_size = _centres_sizes(anchors)
    # By plain numbers: a GPU waits for a tensor that is made from them, and a step must not.
    of_centre, of_size = WEIGHTS[0], WEIGHTS[2]
    offset = (centre - anchor_centre) / anchor_size * of_centre
    return torch.cat((offset, torch.log(size / anchor_size) * of_size), dim=-1)


def decode_boxes(bbox_regression: Tensor, anchors: Tensor) -> Tensor:
    """Boxes ``[..., A, 4]`` xyxy px from offsets ``[..., A, 4]`` and anchors ``[A, 4]``."""
    # A GPU divides by a plain number as by its reciprocal, which rounds differently; scoring waits
    # for the GPU anyway.
    offsets = bbox_regression / bbox_regression.new_tensor(WEIGHTS)
    anchor_centre, anchor_size = _centres_sizes(anchors)
    centre = offsets[..., :2] * anchor_size + anchor_centre
    half = 0.5 * torch.exp(offsets[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_size
    return torch.cat((centre - half, centre + half), dim=-1)


def postprocess(
    cls_logits: Tensor,
    bbox_regression: Tensor,
    anchors: Tensor,
    image_px: int,
    settings: PostprocessSettings,
) -> list[Detections]:
    """Detections per image: the best ``top_k`` per class above the threshold, then NMS per class.

    Args:
        cls_logits: ``[B, A, C]``, class 0 is the background.
        bbox_regression: ``[B, A, 4]``.
        anchors: ``[A, 4]`` xyxy px.
        image_px: Side of the square input; boxes are clipped to it.
        settings: Thresholds; a `sharedenc.spec.Recipe` has them.
    Source: torchvision's `SSD.postprocess_detections`, with one top-k for all classes.
    """
    boxes = clip_boxes_to_image(
        decode_boxes(bbox_regression.float(), anchors), (image_px, image_px)
    )
    scores = cls_logits.float().softmax(dim=-1)[..., 1:]
    top, index = scores.topk(min(settings.top_k, scores.shape[1]), dim=1)
    return [
        _one_image(image_boxes, image_top.T, image_index.T, settings)
        for image_boxes, image_top, image_index in zip(boxes, top, index, strict=True)
    ]


def _one_image(
    boxes: Tensor, scores: Tensor, index: Tensor, settings: PostprocessSettings
) -> Detections:
    """NMS for boxes ``[A, 4]`` with the best scores ``[C - 1, K]`` and their anchor ``index``."""
    kept_class, kept_rank = torch.where(scores > settings.score_threshold)
    scores = scores[kept_class, kept_rank]
    boxes = boxes[index[kept_class, kept_rank]]
    labels = kept_class + 1
    keep = batched_nms(boxes, scores, labels, settings.nms_iou)[: settings.detections_per_image]
    return Detections(boxes[keep], scores[keep], labels[keep])
