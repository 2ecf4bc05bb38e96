"""Scores of predictions: COCO average precision of boxes, mIoU and pixel accuracy of label maps.

Source of the first: the COCO evaluation (Lin et al., ECCV 2014, arXiv 1405.0312) by pycocotools:
10 IoU thresholds .50:.05:.95, 101 recall points, at most 100 detections per image. Of the second:
torchvision's references/segmentation; background counts, a class without a pixel in the truth does
not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetson_agent.coco import IGNORE, Photo


def why_no_scores() -> str:
    """What is missing to score, or nothing."""
    if importlib.util.find_spec("pycocotools") is None:
        return "pycocotools is not installed, so nothing is scored: pip install pycocotools"
    return ""


def average_precision(
    photos: Sequence[Photo], rows: npt.NDArray[np.float64], labels: Sequence[str]
) -> dict[str, Any]:
    """``mAP``, ``mAP50``, ``mAP75`` and ``AP_class`` by name, in 0..1; without truth, left out.

    Args:
        rows: ``[N, 7]``: place of the photo in `photos`, x, y, w, h in its pixels, score, label.
        labels: Class names, the background first.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [
        {"id": place, "height": photo.height, "width": photo.width}
        for place, photo in enumerate(photos, start=1)
    ]
    truth = [
        _row(place, t.label, (*t.box[:2], t.box[2] - t.box[0], t.box[3] - t.box[1]), t.area)
        | {"iscrowd": int(t.crowd)}
        for place, photo in enumerate(photos, start=1)
        for t in photo.things
    ]
    found = [
        _row(int(at) + 1, int(label), (x, y, w, h), w * h) | {"iscrowd": 0, "score": score}
        for at, x, y, w, h, score, label in rows.tolist()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        scorer = COCOeval(
            _index(COCO(), images, truth, labels), _index(COCO(), images, found, labels), "bbox"
        )
        scorer.evaluate()
        scorer.accumulate()
    # IoU thresholds, recall points, classes, areas, limits.
    precision = np.asarray(scorer.eval["precision"])[..., 0, -1]
    scores = {"mAP": precision, "mAP50": precision[0], "mAP75": precision[5]}
    result: dict[str, Any] = {name: _mean(values) for name, values in scores.items()}
    by_class = {name: _mean(precision[:, :, at]) for at, name in enumerate(labels[1:])}
    result["AP_class"] = {name: value for name, value in by_class.items() if value is not None}
    return {name: value for name, value in result.items() if value is not None}


def _row(image: int, label: int, box: tuple[float, ...], area: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": label, "bbox": list(box), "area": area}


def _index(
    index: Any, images: list[dict[str, Any]], rows: list[dict[str, Any]], labels: Sequence[str]
) -> Any:
    """Fill an empty COCO index by hand: its own constructor prints, and refuses an empty list."""
    categories = [{"id": label, "name": name} for label, name in enumerate(labels)][1:]
    # Numbered from 1: the scorer takes 0 for "no match".
    numbered = [{"id": number, **row} for number, row in enumerate(rows, start=1)]
    index.dataset = {"images": images, "annotations": numbered, "categories": categories}
    index.imgs = {row["id"]: row for row in images}
    index.cats = {row["id"]: row for row in categories}
    index.anns = {row["id"]: row for row in numbered}
    index.imgToAnns, index.catToImgs = defaultdict(list), defaultdict(list)
    for row in numbered:
        index.imgToAnns[row["image_id"]].append(row)
        index.catToImgs[row["category_id"]].append(row["image_id"])
    return index


def _mean(values: npt.NDArray[Any]) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


class Confusion:
    """Pixels by truth (row) and prediction (column), background included."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self.counts = np.zeros((len(labels), len(labels)), np.int64)

    def add(self, predicted: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> None:
        """Count the pixels of one photo, both of one shape; those with truth 255 do not count."""
        labelled = truth != IGNORE
        classes = len(self._labels)
        pairs = truth[labelled].astype(np.int64) * classes + predicted[labelled]
        self.counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def scores(self) -> dict[str, Any]:
        """``mIoU``, ``pixel_acc`` and ``IoU_class`` by name, in 0..1; without truth, nothing."""
        right, truth = np.diag(self.counts), self.counts.sum(axis=1)
        if not truth.sum():
            return {}
        union = truth + self.counts.sum(axis=0) - right
        by_class = {
            name: float(right[at] / union[at]) for at, name in enumerate(self._labels) if truth[at]
        }
        return {
            "mIoU": float(np.mean(list(by_class.values()))),
            "pixel_acc": float(right.sum() / truth.sum()),
            "IoU_class": by_class,
        }
