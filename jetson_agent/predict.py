"""What an engine sees in one photo, and how that is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetson_agent.backends.base import Array, Run
from jetson_agent.coco import Annotated, Photo
from jetson_agent.decode import (
    DET_OUTPUTS,
    SEG_OUTPUT,
    Decoding,
    Detections,
    detections,
    label_mask,
)
from jetson_agent.errors import BackendError
from jetson_agent.images import Pixels, network_input


def predict(
    image: Pixels, run: Run, decoding: Decoding, where: Path
) -> tuple[Detections | None, Pixels | None]:
    """Detections in pixels of the photo, and the mask at the network's size, where it has them.

    Args:
        image: RGB ``[H, W, 3]``.

    Raises:
        BackendError: outputs that are not finite, of another shape, or neither boxes nor masks.
    """
    outputs = run({decoding.input_name: network_input(image, decoding)})
    for name, value in outputs.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise BackendError(f"output {name} has values that are not finite for {where}")
    found = None
    if decoding.boxes is not None and all(name in outputs for name in DET_OUTPUTS):
        logits, offsets = (_single(outputs, name, decoding) for name in DET_OUTPUTS)
        found = detections(logits, offsets, decoding.boxes, decoding.image_px)
        height, width = image.shape[:2]
        scale = np.array([width, height, width, height], np.float32)
        scale /= np.float32(decoding.image_px)
        found = replace(found, boxes=found.boxes * scale)
    mask = None
    if SEG_OUTPUT in outputs:
        mask = label_mask(_single(outputs, SEG_OUTPUT, decoding))
    if found is None and mask is None:
        raise BackendError(f"the outputs {', '.join(outputs)} are neither boxes nor masks")
    return found, mask


def _single(outputs: dict[str, Array], name: str, decoding: Decoding) -> Array:
    """The output of the only photo, once its shape is that which the metadata asks for."""
    classes = len(decoding.labels)
    anchors = 0 if decoding.boxes is None else len(decoding.boxes.anchors)
    wanted = {
        "cls_logits": (1, anchors, classes),
        "bbox_regression": (1, anchors, 4),
        SEG_OUTPUT: (1, classes, *outputs[name].shape[-2:]),
    }[name]
    if outputs[name].shape != wanted:
        raise BackendError(f"output {name} has shape {outputs[name].shape} instead of {wanted}")
    single: Array = outputs[name][0]
    return single


def rows_of(place: int, found: Detections) -> npt.NDArray[np.float64]:
    """``[N, 7]``: place, x, y, w, h, score, label."""
    rows = np.empty((len(found.labels), 7), np.float64)
    rows[:, 0] = place
    rows[:, 1:3] = found.boxes[:, :2]
    rows[:, 3:5] = found.boxes[:, 2:] - found.boxes[:, :2]
    rows[:, 5] = found.scores
    rows[:, 6] = found.labels
    return rows


def coco_results(
    photo: Photo, found: Detections, annotated: Annotated, least: float
) -> list[dict[str, Any]]:
    """Rows of a COCO results file, with the ids of the annotations."""
    return [
        {
            "image_id": photo.image_id,
            "category_id": annotated.category_ids[int(label)],
            "bbox": [x, y, w, h],
            "score": score,
        }
        for _, x, y, w, h, score, label in rows_of(0, found).tolist()
        if score >= least and int(label) in annotated.category_ids
    ]


def describe(
    photo: Photo,
    found: Detections,
    mask: Pixels | None,
    decoding: Decoding,
    least: float,
) -> dict[str, Any]:
    """What is seen in one photo; boxes x1, y1, x2, y2 in its pixels, shares of its area."""
    row: dict[str, Any] = {
        "image": photo.path.name,
        "detections": [
            {"class": decoding.labels[int(label)], "score": float(score), "box": box.tolist()}
            for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
            if score >= least
        ],
    }
    if mask is not None:
        labels, counts = np.unique(mask, return_counts=True)
        row["mask_shares"] = {
            decoding.labels[int(label)]: float(count / mask.size)
            for label, count in zip(labels, counts, strict=True)
        }
    return row
