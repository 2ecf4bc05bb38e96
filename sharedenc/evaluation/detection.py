"""COCO average precision of detections, by hotcoco, by faster-coco-eval or by pycocotools.

All are given the same columns of numbers and asked for the same thing, the precision and recall
arrays; all figures are read from those in one place. pycocotools is the oracle in the tests and
stands in where neither of the others is installed.
Source: the COCO evaluation (Lin et al., ECCV 2014, arXiv 1405.0312), `COCOeval` with 10 IoU
thresholds .50:.05:.95, 101 recall points, areas split at 32^2 and 96^2, at most 100 detections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy.typing as npt

from sharedenc.errors import DataError, check_choice
from sharedenc.evaluation.coco_tables import Detections, IouType, Truth, detection_columns
from sharedenc.evaluation.scorers import Backend, precision_recall

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
AREAS = ("all", "small", "medium", "large")
MAX_DETECTIONS = (1, 10, 100)
UNDEFINED = -1.0


@dataclass(frozen=True)
class ApResult:
    """COCO figures in 0..1; -1 where there is no truth to score against.

    ``stats`` has AP, AP50, AP75, AP_small, AP_medium, AP_large, AR_1, AR_10, AR_100, AR_small,
    AR_medium, AR_large; ``ap_per_iou`` the AP at each of `IOU_THRESHOLDS`; ``per_class`` the AP
    by category name.
    """

    iou_type: IouType
    stats: dict[str, float]
    ap_per_iou: list[float]
    per_class: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The object that `sharedenc evaluate --json` prints."""
        return {
            "iou_type": self.iou_type,
            "stats": self.stats,
            "ap_per_iou": self.ap_per_iou,
            "per_class": self.per_class,
        }


def coco_ap(
    ground_truth: Mapping[str, Any] | Truth,
    detections: Detections,
    iou_type: IouType = "bbox",
    *,
    backend: Backend = "auto",
) -> ApResult:
    """Score detections on all images and categories of ``ground_truth``.

    Args:
        ground_truth: COCO format: images, annotations, categories. Not changed. A `Truth` of the
            same ``iou_type`` saves reading it again.
        detections: Rows (image_id, x, y, w, h, score, label) in source pixels, ``[N, 7]``, or the
            list of a COCO results file. N may be 0. Not changed.
        iou_type: Overlap of boxes, or of masks (results need a ``segmentation`` then).
        backend: ``auto`` is the first that is installed of hotcoco, faster-coco-eval and
            pycocotools.

    Raises:
        DataError: an unknown image or category, a number that is not finite, a missing key.
        SpecError: an unknown ``iou_type`` or ``backend``.
    """
    check_choice("iou_type", iou_type, get_args(IouType))
    check_choice("backend", backend, get_args(Backend))
    truth = ground_truth if isinstance(ground_truth, Truth) else Truth(ground_truth, iou_type)
    found = detection_columns(detections, truth, iou_type)
    if not truth.images or not truth.names:
        raise DataError(
            f"the ground truth has {len(truth.images)} images and {len(truth.names)} categories; "
            "both are needed"
        )
    precision, recall = precision_recall(truth, found, iou_type, backend)
    return _figures(precision, recall, truth.names, iou_type)


def _mean(values: npt.NDArray[Any]) -> float:
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def _figures(
    precision: npt.NDArray[Any], recall: npt.NDArray[Any], names: list[str], iou_type: IouType
) -> ApResult:
    """All figures from precision ``[T, R, K, A, M]`` and recall ``[T, K, A, M]``.

    T IoU thresholds, R recall points, K categories, A areas, M detection limits.
    """
    ap = precision[..., 0, -1]
    stats = {
        "AP": _mean(ap),
        "AP50": _mean(ap[IOU_THRESHOLDS.index(0.5)]),
        "AP75": _mean(ap[IOU_THRESHOLDS.index(0.75)]),
    }
    for place, area in enumerate(AREAS[1:], start=1):
        stats[f"AP_{area}"] = _mean(precision[..., place, -1])
    for place, limit in enumerate(MAX_DETECTIONS):
        stats[f"AR_{limit}"] = _mean(recall[..., 0, place])
    for place, area in enumerate(AREAS[1:], start=1):
        stats[f"AR_{area}"] = _mean(recall[..., place, -1])
    return ApResult(
        iou_type=iou_type,
        stats=stats,
        ap_per_iou=[_mean(ap[place]) for place in range(len(IOU_THRESHOLDS))],
        per_class={name: _mean(ap[:, :, place]) for place, name in enumerate(names)},
    )
