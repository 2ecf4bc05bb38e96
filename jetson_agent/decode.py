"""Raw outputs to boxes and masks, by what the ONNX file's own metadata says; numpy only.

Outputs without a batch axis: ``cls_logits`` ``[A, C]``, ``bbox_regression`` ``[A, 4]``,
``seg_logits`` ``[C, H, W]``; class 0 is the background.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jetson_agent.errors import AgentError

Floats = npt.NDArray[np.float32]
PREFIX = "sharedenc."
DET_OUTPUTS = ("cls_logits", "bbox_regression")
SEG_OUTPUT = "seg_logits"
MAX_LABELS = 256


@dataclass(frozen=True, kw_only=True)
class BoxRule:
    """How raw detections become boxes; `anchors` is ``[A, 4]`` xyxy in pixels of the input."""

    anchors: Floats
    coder_weights: tuple[float, ...]
    clip: float
    score_threshold: float
    nms_iou: float
    top_k: int
    detections_per_image: int


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a file is fed and read; `labels` has the background first, `boxes` is None without them.

    `image_px` is the side of the square input; `mean` and `std` are of pixels in 0..1.
    """

    input_name: str
    image_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    boxes: BoxRule | None


@dataclass(frozen=True)
class Detections:
    """One image's detections by falling score: boxes ``[N, 4]`` xyxy px, scores, labels ``[N]``."""

    boxes: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]


def read_decoding(metadata: Mapping[str, str], where: str) -> Decoding:
    """Read what `sharedenc export` wrote into the file's metadata.

    Raises:
        AgentError: entries are missing or damaged.
    """
    try:
        given = json.loads(metadata[PREFIX + "input"])
        labels = json.loads(metadata[PREFIX + "classes"])
        mean, std = (tuple(float(v) for v in given[name]) for name in ("mean", "std"))
        channels, height, width = (int(size) for size in given["shape"][1:])
        if (channels, len(mean), len(std)) != (3, 3, 3) or height != width or min(std) <= 0:
            raise ValueError(f"input {given['shape']} is not three channels of a square")
        if not 1 < len(labels) <= MAX_LABELS:
            raise ValueError(f"{len(labels)} classes")
        return Decoding(
            input_name=str(given["name"]),
            image_px=width,
            mean=mean,
            std=std,
            labels=tuple(str(name) for name in labels),
            boxes=_box_rule(metadata),
        )
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise AgentError(
            f"{where} lacks the metadata of a sharedenc export or has it damaged "
            f"({type(error).__name__}: {error}). Use a file that `sharedenc export` wrote."
        ) from error


def _box_rule(metadata: Mapping[str, str]) -> BoxRule | None:
    if PREFIX + "boxes" not in metadata:
        return None
    boxes = json.loads(metadata[PREFIX + "boxes"])
    rule: dict[str, Any] = json.loads(metadata[PREFIX + "postprocess"])
    data = base64.b64decode(boxes["anchors"], validate=True)
    if hashlib.sha256(data).hexdigest() != boxes["anchors_sha256"]:
        raise ValueError("the anchors do not match their sha256")
    weights = tuple(float(weight) for weight in boxes["coder_weights"])
    if len(weights) != 4 or not all(weights):
        raise ValueError(f"coder_weights {weights}")
    return BoxRule(
        anchors=np.frombuffer(data, "<f4").reshape(int(boxes["count"]), 4).astype(np.float32),
        coder_weights=weights,
        clip=float(boxes["clip"]),
        score_threshold=float(rule["score_threshold"]),
        nms_iou=float(rule["nms_iou"]),
        top_k=int(rule["top_k"]),
        detections_per_image=int(rule["detections_per_image"]),
    )


def decode_boxes(offsets: Floats, rule: BoxRule, image_px: int) -> Floats:
    """Boxes ``[A, 4]`` xyxy px, clipped to the input, from raw offsets ``[A, 4]``.

    Source: Ren et al. (Faster R-CNN), arXiv 1506.01497; the file's ``sharedenc.boxes``.
    """
    size = rule.anchors[:, 2:] - rule.anchors[:, :2]
    centre = rule.anchors[:, :2] + 0.5 * size
    scaled = np.asarray(offsets, np.float32) / np.array(rule.coder_weights, np.float32)
    middle = scaled[:, :2] * size + centre
    half = 0.5 * np.exp(np.minimum(scaled[:, 2:], np.float32(rule.clip))) * size
    corners: Floats = np.concatenate([middle - half, middle + half], axis=1)
    return corners.clip(0, image_px)


def detections(logits: Floats, offsets: Floats, rule: BoxRule, image_px: int) -> Detections:
    """Per class the `top_k` best above the threshold, then NMS; of all, the best.

    Args:
        logits: ``[A, C]``, class 0 is the background.
        offsets: ``[A, 4]``.
    """
    boxes = decode_boxes(offsets, rule, image_px)
    logits = np.asarray(logits, np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True)
    anchors: list[npt.NDArray[np.int64]] = []
    labels: list[npt.NDArray[np.int64]] = []
    for label in range(1, scores.shape[1]):
        of_class = scores[:, label]
        candidates = np.flatnonzero(of_class > rule.score_threshold)
        order = np.argsort(-of_class[candidates], kind="stable")[: rule.top_k]
        chosen = candidates[order]
        kept = chosen[suppress(boxes[chosen], rule.nms_iou)]
        anchors.append(kept)
        labels.append(np.full(len(kept), label, np.int64))
    anchor = np.concatenate(anchors) if anchors else np.zeros(0, np.int64)
    label_of = np.concatenate(labels) if labels else np.zeros(0, np.int64)
    found = scores[anchor, label_of]
    best = np.argsort(-found, kind="stable")[: rule.detections_per_image]
    return Detections(boxes[anchor[best]], found[best], label_of[best])


def suppress(boxes: Floats, iou_limit: float) -> npt.NDArray[np.int64]:
    """Positions that survive non-maximum suppression; boxes ``[N, 4]`` come by falling score."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    kept: list[int] = []
    while left.size:
        best, rest = left[0], left[1:]
        kept.append(int(best))
        shared = _shared_area(boxes[best], boxes[rest])
        # Two boxes without area share nothing and suppress nothing.
        left = rest[shared <= iou_limit * (area[best] + area[rest] - shared)]
    return np.array(kept, np.int64)


def iou(box: Floats, others: Floats) -> npt.NDArray[np.float64]:
    """Overlap of one box with others ``[N, 4]``, xyxy: shared area over joint area, 0..1."""
    box, others = np.asarray(box, np.float64), np.asarray(others, np.float64)
    area = np.prod(box[2:] - box[:2])
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    shared = _shared_area(box, others)
    joint = area + areas - shared
    overlaps: npt.NDArray[np.float64] = np.zeros_like(shared)
    np.divide(shared, joint, out=overlaps, where=joint > 0)
    return overlaps


def _shared_area(box: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[Any]:
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    area: npt.NDArray[Any] = (high - low).clip(0).prod(axis=1)
    return area


def label_mask(logits: Floats) -> npt.NDArray[np.uint8]:
    """The label of each pixel, ``[H, W]``, from ``seg_logits`` ``[C, H, W]``."""
    mask: npt.NDArray[np.uint8] = np.asarray(logits).argmax(axis=0).astype(np.uint8)
    return mask
