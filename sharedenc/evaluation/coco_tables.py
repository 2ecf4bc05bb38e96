"""COCO annotations and results as columns of numbers, checked, with errors that name the row.

Columns are read at once; where that fails, row by row, to say which row is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sharedenc.errors import DataError

IouType = Literal["bbox", "segm"]
Detections = npt.NDArray[np.floating[Any]] | Sequence[Mapping[str, Any]]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """N annotations or detections.

    ``images`` and ``categories`` ``[N]`` are numbers of a `Truth`, ``boxes`` ``[N, 4]`` x, y, w, h
    and ``areas`` ``[N]`` pixels. Annotations have ``crowd`` ``[N]``, 0 or 1, detections ``scores``
    ``[N]``; what does not apply is zeros. ``outlines`` are N RLEs if masks are compared.
    """

    images: Integers
    categories: Integers
    boxes: Floats
    areas: Floats
    scores: Floats
    crowd: Integers
    outlines: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(np.isfinite(column).all() for column in (self.boxes, self.areas, self.scores))


class Truth:
    """Ground truth with images, categories and annotations numbered from 1, in order of id.

    New numbers, because scorers use 0 as a mark for "no match" and ids may have 64 bits. The order
    decides between equal scores of different images, so it is kept.

    Attributes:
        names: Of the categories, in order of their ids.
        images: ``{"id": number, "height": ..., "width": ...}`` of each; sides may be None.
        annotations: The columns.
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
            self.annotations = self._read(source["annotations"], iou_type)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"the ground truth is not in COCO format: {type(error).__name__} {error}"
            ) from error
        if len(set(self.names)) < len(self.names):
            double = sorted({name for name in self.names if self.names.count(name) > 1})
            raise DataError(f"category names occur twice in the ground truth: {', '.join(double)}")

    def _read(self, rows: Sequence[Mapping[str, Any]], iou_type: IouType) -> Columns:
        columns = self._at_once(rows) if iou_type == "bbox" else None
        if columns is None:
            columns = _from_rows(
                [self._annotation(row, place + 1, iou_type) for place, row in enumerate(rows)]
            )
        return columns

    def _at_once(self, rows: Sequence[Mapping[str, Any]]) -> Columns | None:
        """The columns of boxes; None if some row needs a closer look."""
        try:
            boxes = _boxes([row["bbox"] for row in rows])
            default = (boxes[:, 2] * boxes[:, 3]).tolist()
            areas = [row.get("area", area) for row, area in zip(rows, default, strict=True)]
            columns = Columns(
                images=_integers([self.image_numbers[row["image_id"]] for row in rows]),
                categories=_integers([self.category_numbers[row["category_id"]] for row in rows]),
                boxes=boxes,
                areas=np.array(areas, np.float64),
                scores=np.zeros(len(rows)),
                crowd=_integers([int(row.get("iscrowd", 0)) for row in rows]),
            )
        except (KeyError, TypeError, AttributeError, ValueError):
            return None
        return columns if columns.finite else None

    def _annotation(self, row: Mapping[str, Any], number: int, iou_type: IouType) -> dict[str, Any]:
        box = [float(value) for value in row["bbox"]]
        if len(box) != 4 or not np.isfinite(box).all():
            raise DataError(f"annotation {row.get('id', number)} has bbox {row['bbox']}")
        kept: dict[str, Any] = {
            "image": self.image(row["image_id"], "annotation"),
            "category": self.category(row["category_id"], "annotation"),
            "box": box,
            "area": float(row.get("area", box[2] * box[3])),
            "crowd": int(row.get("iscrowd", 0)),
        }
        if iou_type == "segm":
            image = self.images[kept["image"] - 1]
            whose = f"annotation {row.get('id', number)}"
            kept["outline"] = _rle(row.get("segmentation"), image, whose)
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


def detection_columns(detections: Detections, truth: Truth, iou_type: IouType) -> Columns:
    """Detections as columns; see `sharedenc.evaluation.detection.coco_ap`.

    Raises:
        DataError: as there.
    """
    if isinstance(detections, np.ndarray):
        if iou_type == "segm" and detections.size:
            raise DataError(
                "detections in an array are boxes; to compare masks, pass the list of a COCO "
                "results file, with a segmentation in each"
            )
        return _from_array(detections, truth)
    columns = _results_at_once(detections, truth) if iou_type == "bbox" else None
    if columns is None:
        columns = _from_rows(
            [_result(truth, row, place, iou_type) for place, row in enumerate(detections)]
        )
    return columns


def _number(identities: Any) -> dict[int, int]:
    return {identity: place + 1 for place, identity in enumerate(sorted(set(identities)))}


def _integers(values: list[int]) -> Integers:
    return np.array(values, np.int64)


def _boxes(rows: list[Any]) -> Floats:
    """``[N, 4]`` of N lists of four; ValueError if one is of another length."""
    return np.array(rows, np.float64).reshape(len(rows), 4)


def _from_rows(rows: list[dict[str, Any]]) -> Columns:
    """Columns of checked rows."""
    return Columns(
        images=_integers([row["image"] for row in rows]),
        categories=_integers([row["category"] for row in rows]),
        boxes=_boxes([row["box"] for row in rows]),
        areas=np.array([row["area"] for row in rows], np.float64),
        scores=np.array([row.get("score", 0.0) for row in rows], np.float64),
        crowd=_integers([row.get("crowd", 0) for row in rows]),
        outlines=[row["outline"] for row in rows] if rows and "outline" in rows[0] else None,
    )


def _from_array(rows: npt.NDArray[Any], truth: Truth) -> Columns:
    """Columns of ``[N, 7]``.

    Raises:
        DataError: another shape, an unknown id, a number that is not finite, or a float type too
            short for this ground truth's ids.
    """
    if rows.size == 0:
        return _from_rows([])
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
    boxes = rows[:, 1:5].astype(np.float64)
    return Columns(
        images=_numbers(rows[:, 0], truth.image_numbers, truth.image),
        categories=_numbers(rows[:, 6], truth.category_numbers, truth.category),
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        scores=rows[:, 5].astype(np.float64),
        crowd=np.zeros(len(rows), np.int64),
    )


def _numbers(
    identities: npt.NDArray[Any], known: Mapping[int, int], look_up: Callable[[Any, str], int]
) -> Integers:
    """Our numbers, which count from 1 in order of the ids; ``look_up`` names what is unknown."""
    wanted = identities.astype(np.int64)
    ordered = np.array(list(known), np.int64)
    place = np.searchsorted(ordered, wanted)
    unknown = place == len(ordered)
    unknown[~unknown] = ordered[place[~unknown]] != wanted[~unknown]
    if unknown.any():
        look_up(int(wanted[unknown.argmax()]), "detection")
    return place.astype(np.int64) + 1


def _results_at_once(rows: Sequence[Mapping[str, Any]], truth: Truth) -> Columns | None:
    """The columns of boxes in COCO results; None if some row needs a closer look."""
    try:
        boxes = _boxes([row["bbox"] for row in rows])
        columns = Columns(
            images=_integers([truth.image_numbers[row["image_id"]] for row in rows]),
            categories=_integers([truth.category_numbers[row["category_id"]] for row in rows]),
            boxes=boxes,
            areas=boxes[:, 2] * boxes[:, 3],
            scores=np.array([row["score"] for row in rows], np.float64),
            crowd=np.zeros(len(rows), np.int64),
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    return columns if columns.finite else None


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


def _result(truth: Truth, row: Mapping[str, Any], place: int, iou_type: IouType) -> dict[str, Any]:
    """One checked detection; the area is that of what is compared."""
    from pycocotools import mask as masks

    try:
        result: dict[str, Any] = {
            "image": truth.image(row["image_id"], "detection"),
            "category": truth.category(row["category_id"], "detection"),
            "score": float(row["score"]),
        }
        if iou_type == "segm":
            image = truth.images[result["image"] - 1]
            outline = _rle(row.get("segmentation"), image, f"detection {place}")
            result["outline"] = outline
            result["area"] = float(masks.area(outline))
            result["box"] = [float(value) for value in masks.toBbox(outline)]
        else:
            box = row["bbox"] if "bbox" in row else masks.toBbox(row["segmentation"])
            x, y, width, height = (float(value) for value in box)
            result["box"] = [x, y, width, height]
            result["area"] = width * height
    except (KeyError, TypeError, ValueError) as error:
        need = "segmentation" if iou_type == "segm" else "bbox"
        raise DataError(
            f"detection {place} is not a COCO result ({type(error).__name__}: {error}); it needs "
            f"image_id, category_id, score and {need}"
        ) from error
    if not np.isfinite([result["score"], result["area"], *result["box"]]).all():
        raise DataError(f"detection {place} has a score or box that is not finite: {dict(row)}")
    return result
