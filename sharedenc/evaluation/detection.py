"""COCO average precision of detections, by faster-coco-eval or by pycocotools.

Both are given the same small tables and asked for the same thing, the precision and recall
arrays; all figures are read from those in one place. pycocotools is the oracle in the tests and
stands in where faster-coco-eval is not installed.
Source: the COCO evaluation (Lin et al., ECCV 2014, arXiv 1405.0312), `COCOeval` with 10 IoU
thresholds .50:.05:.95, 101 recall points, areas split at 32^2 and 96^2, at most 100 detections.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from sharedenc.errors import DataError, check_choice

IouType = Literal["bbox", "segm"]
Backend = Literal["auto", "faster-coco-eval", "pycocotools"]
Detections = npt.NDArray[np.floating[Any]] | Sequence[Mapping[str, Any]]

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
    ground_truth: Mapping[str, Any],
    detections: Detections,
    iou_type: IouType = "bbox",
    *,
    backend: Backend = "auto",
) -> ApResult:
    """Score detections on all images and categories of ``ground_truth``.

    Args:
        ground_truth: COCO format: images, annotations, categories. Not changed.
        detections: Rows (image_id, x, y, w, h, score, label) in source pixels, ``[N, 7]``, or the
            list of a COCO results file. N may be 0. Not changed.
        iou_type: Overlap of boxes, or of masks (results need a ``segmentation`` then).
        backend: ``auto`` is faster-coco-eval if it is installed.

    Raises:
        DataError: an unknown image or category, a number that is not finite, a missing key.
        SpecError: an unknown ``iou_type`` or ``backend``.
    """
    check_choice("iou_type", iou_type, get_args(IouType))
    check_choice("backend", backend, get_args(Backend))
    truth = _Truth(ground_truth, iou_type)
    found = _as_results(detections, truth) if isinstance(detections, np.ndarray) else detections
    results = [_result(truth, row, place, iou_type) for place, row in enumerate(found)]
    if not truth.images or not truth.names:
        raise DataError(
            f"the ground truth has {len(truth.images)} images and {len(truth.names)} categories; "
            "both are needed"
        )
    if backend == "auto":
        backend = "faster-coco-eval" if _has_faster() else "pycocotools"
    run = _run_faster if backend == "faster-coco-eval" else _run_pycocotools
    precision, recall = run(truth, results, iou_type)
    return _figures(precision, recall, truth.names, iou_type)


class _Truth:
    """The ground truth with images, categories and annotations numbered from 1, in order of id.

    New numbers, because both scorers use 0 as a mark for "no match" and ids may have 64 bits.
    The order decides between equal scores of different images, so it is kept.
    """

    def __init__(self, source: Mapping[str, Any], iou_type: IouType) -> None:
        for key in ("images", "annotations", "categories"):
            if not isinstance(source.get(key), list):
                raise DataError(
                    f"the ground truth has no list {key!r}; it needs images, annotations and "
                    "categories, as a COCO instances file has"
                )
        try:
            self.image_numbers = _number(row["id"] for row in source["images"])
            self.category_numbers = _number(row["id"] for row in source["categories"])
            names = {row["id"]: str(row.get("name", row["id"])) for row in source["categories"]}
            self.names = [names[identity] for identity in self.category_numbers]
            sizes = {row["id"]: (row.get("height"), row.get("width")) for row in source["images"]}
            self.images = [
                {"id": number, "height": sizes[identity][0], "width": sizes[identity][1]}
                for identity, number in self.image_numbers.items()
            ]
            self.annotations = [
                self._annotation(row, place + 1, iou_type)
                for place, row in enumerate(source["annotations"])
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"the ground truth is not in COCO format: {type(error).__name__} {error}"
            ) from error
        if len(set(self.names)) < len(self.names):
            double = sorted({name for name in self.names if self.names.count(name) > 1})
            raise DataError(f"category names occur twice in the ground truth: {', '.join(double)}")

    def _annotation(self, row: Mapping[str, Any], number: int, iou_type: IouType) -> dict[str, Any]:
        box = [float(value) for value in row["bbox"]]
        if len(box) != 4 or not np.isfinite(box).all():
            raise DataError(f"annotation {row.get('id', number)} has bbox {row['bbox']}")
        kept: dict[str, Any] = {
            "id": number,
            "image_id": self.image(row["image_id"], "annotation"),
            "category_id": self.category(row["category_id"], "annotation"),
            "bbox": box,
            "area": float(row.get("area", box[2] * box[3])),
            "iscrowd": int(row.get("iscrowd", 0)),
        }
        if iou_type == "segm":
            image = self.images[kept["image_id"] - 1]
            whose = f"annotation {row.get('id', number)}"
            kept["segmentation"] = _rle(row.get("segmentation"), image, whose)
        return kept

    def image(self, identity: Any, whose: str) -> int:
        """Our number of an image, or the error that names the unknown id."""
        if identity not in self.image_numbers:
            raise DataError(
                f"{whose} of image id {identity!r}, which is not among the ground truth's "
                f"{len(self.image_numbers)} images; do the two files belong together?"
            )
        return self.image_numbers[identity]

    def category(self, identity: Any, whose: str) -> int:
        """Our number of a category, or the error that names the unknown id."""
        if identity not in self.category_numbers:
            raise DataError(
                f"{whose} of category id {identity!r}, which is not among the ground truth's: "
                f"{', '.join(str(known) for known in self.category_numbers)}"
            )
        return self.category_numbers[identity]


def _number(identities: Any) -> dict[int, int]:
    return {identity: place + 1 for place, identity in enumerate(sorted(set(identities)))}


def _as_results(rows: npt.NDArray[Any], truth: _Truth) -> list[dict[str, Any]]:
    """COCO results from an array ``[N, 7]``.

    Raises:
        DataError: another shape, or a float type too short for this ground truth's ids.
    """
    if rows.size == 0:
        return []
    if rows.ndim != 2 or rows.shape[1] != 7:
        raise DataError(
            f"detections have shape {list(rows.shape)}; rows of 7 are needed: image_id, x, y, w, "
            "h, score, label"
        )
    exact = 2 ** (np.finfo(rows.dtype).nmant + 1) if rows.dtype.kind == "f" else 2**63
    largest = max((abs(identity) for identity in truth.image_numbers), default=0)
    if largest > exact:
        raise DataError(
            f"image id {largest} does not fit into {rows.dtype} detections (exact up to {exact}); "
            "pass float64, or COCO results as a list"
        )
    if not np.isfinite(rows).all():
        raise DataError(f"{int((~np.isfinite(rows)).any(axis=1).sum())} detections are not finite")
    return [
        {
            "image_id": int(row[0]),
            "bbox": row[1:5],
            "score": row[5],
            "category_id": int(row[6]),
        }
        for row in rows.tolist()
    ]


def _rle(outline: Any, image: Mapping[str, Any], whose: str) -> Any:
    """Compressed RLE of polygons, of an uncompressed or of a compressed RLE.

    Raises:
        DataError: there is none, it is malformed, or of another size than the image.
    """
    from pycocotools import mask as masks

    try:
        if isinstance(outline, list):
            return masks.merge(masks.frPyObjects(outline, image["height"], image["width"]))
        if list(outline["size"]) != [image["height"], image["width"]]:
            raise ValueError(f"size {outline['size']}")
        if isinstance(outline["counts"], list):
            return masks.frPyObjects(outline, image["height"], image["width"])
        masks.area(outline)
        return outline
    except Exception as error:  # pycocotools raises the bare class for a form it does not know
        raise DataError(
            f"{whose} has no usable segmentation ({type(error).__name__}: {error}); polygons or an "
            f"RLE of size [{image['height']}, {image['width']}] are needed"
        ) from error


def _result(truth: _Truth, row: Mapping[str, Any], place: int, iou_type: IouType) -> dict[str, Any]:
    """One detection as both scorers read it; the area is that of what is compared."""
    from pycocotools import mask as masks

    try:
        result: dict[str, Any] = {
            "id": place + 1,
            "image_id": truth.image(row["image_id"], "detection"),
            "category_id": truth.category(row["category_id"], "detection"),
            "score": float(row["score"]),
            "iscrowd": 0,
        }
        if iou_type == "segm":
            image = truth.images[result["image_id"] - 1]
            outline = _rle(row.get("segmentation"), image, f"detection {place}")
            result["segmentation"] = outline
            result["area"] = float(masks.area(outline))
            result["bbox"] = [float(value) for value in masks.toBbox(outline)]
        else:
            box = row["bbox"] if "bbox" in row else masks.toBbox(row["segmentation"])
            x, y, width, height = (float(value) for value in box)
            result["bbox"] = [x, y, width, height]
            result["area"] = width * height
    except (KeyError, TypeError, ValueError) as error:
        need = "segmentation" if iou_type == "segm" else "bbox"
        raise DataError(
            f"detection {place} is not a COCO result ({type(error).__name__}: {error}); it needs "
            f"image_id, category_id, score and {need}"
        ) from error
    if not np.isfinite([result["score"], result["area"], *result["bbox"]]).all():
        raise DataError(f"detection {place} has a score or box that is not finite: {dict(row)}")
    return result


def _has_faster() -> bool:
    return importlib.util.find_spec("faster_coco_eval") is not None


def _fill(index: Any, truth: _Truth, annotations: list[dict[str, Any]]) -> Any:
    """Fill an empty COCO index by hand: its own constructor prints, and refuses an empty list."""
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(truth.names)]
    index.dataset = {
        "images": truth.images,
        "annotations": annotations,
        "categories": categories,
    }
    index.imgs = {row["id"]: row for row in truth.images}
    index.cats = {row["id"]: row for row in categories}
    index.anns = {row["id"]: row for row in annotations}
    index.imgToAnns, index.catToImgs = defaultdict(list), defaultdict(list)
    for row in annotations:
        index.imgToAnns[row["image_id"]].append(row)
        index.catToImgs[row["category_id"]].append(row["image_id"])
    return index


def _run_faster(
    truth: _Truth, results: list[dict[str, Any]], iou_type: IouType
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    from faster_coco_eval import COCO, COCOeval_faster

    scorer = COCOeval_faster(
        _fill(COCO(), truth, truth.annotations),
        _fill(COCO(), truth, results),
        iouType=iou_type,
        print_function=_silent,
        rle_iou_max_workers=1,
    )
    scorer.evaluate()
    scorer.accumulate()
    return np.asarray(scorer.eval["precision"]), np.asarray(scorer.eval["recall"])


def _run_pycocotools(
    truth: _Truth, results: list[dict[str, Any]], iou_type: IouType
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        scorer = COCOeval(
            _fill(COCO(), truth, truth.annotations), _fill(COCO(), truth, results), iou_type
        )
        scorer.evaluate()
        scorer.accumulate()
    return np.asarray(scorer.eval["precision"]), np.asarray(scorer.eval["recall"])


def _silent(*_text: object) -> None:
    """Stands in for the scorer's log."""


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
