"""Three scorers behind one function: columns in, COCO's precision and recall arrays out.

hotcoco (Rust) reads the columns as they are. faster-coco-eval (C++) and pycocotools want an object
per annotation; the former gets an index that holds just what it asks for, since its own index takes
longer to build than the scores to compute.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections import defaultdict
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sharedenc.evaluation.coco_tables import Columns, IouType, Truth

Backend = Literal["auto", "hotcoco", "faster-coco-eval", "pycocotools"]
Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def precision_recall(truth: Truth, found: Columns, iou_type: IouType, backend: Backend) -> Arrays:
    """Precision ``[T, R, K, A, M]`` and recall ``[T, K, A, M]``; -1 where nothing is defined.

    T IoU thresholds, R recall points, K categories, A areas, M detection limits.
    """
    scorers = {
        "hotcoco": _hotcoco,
        "faster-coco-eval": _faster,
        "pycocotools": _pycocotools,
    }
    return scorers[_installed() if backend == "auto" else backend](truth, found, iou_type)


def _installed() -> Backend:
    """The fastest scorer that is there."""
    if importlib.util.find_spec("hotcoco") is not None:
        return "hotcoco"
    return "faster-coco-eval" if importlib.util.find_spec("faster_coco_eval") else "pycocotools"


def _categories(truth: Truth) -> list[dict[str, Any]]:
    return [{"id": place + 1, "name": name} for place, name in enumerate(truth.names)]


def _hotcoco(truth: Truth, found: Columns, iou_type: IouType) -> Arrays:
    from hotcoco import COCO, COCOeval

    known = truth.annotations
    index = COCO.from_arrays(
        [{key: value for key, value in row.items() if value is not None} for row in truth.images],
        _categories(truth),
        known.images,
        known.categories,
        known.boxes,
        ids=np.arange(1, len(known) + 1),
        area=known.areas,
        iscrowd=known.crowd,
        segmentation=known.outlines,
    )
    rows = np.column_stack([found.images, found.boxes, found.scores, found.categories])
    results = index.load_res(rows, segmentation=found.outlines)
    if found.outlines is not None:
        # Those of the boxes otherwise, by which a mask could be of another size class.
        results.update_anns(ids=np.arange(1, len(found) + 1), area=found.areas)
    scorer = COCOeval(index, results, iou_type)
    scorer.evaluate()
    scorer.accumulate()
    arrays = scorer.eval
    assert arrays is not None, "accumulate() has just made them"
    return np.asarray(arrays["precision"]), np.asarray(arrays["recall"])


def _objects(columns: Columns) -> list[dict[str, Any]]:
    """An object per row, numbered from 1, as scorers in Python want them."""
    values = zip(
        range(1, len(columns) + 1),
        columns.images.tolist(),
        columns.categories.tolist(),
        columns.boxes.tolist(),
        columns.areas.tolist(),
        columns.scores.tolist(),
        columns.crowd.tolist(),
        strict=True,
    )
    rows = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": area,
            "score": score,
            "iscrowd": crowd,
        }
        for number, image, category, box, area, score, crowd in values
    ]
    for row, outline in zip(rows, columns.outlines or (), strict=False):
        row["segmentation"] = outline
    return rows


class _Index:
    """What `COCOeval_faster` asks of an index: all of it, in order of image."""

    def __init__(self, truth: Truth, columns: Columns) -> None:
        self.imgs = {row["id"]: row for row in truth.images}
        self.cats = {row["id"]: row for row in _categories(truth)}
        self._rows = _objects(columns)

    def getImgIds(self) -> list[int]:
        return list(self.imgs)

    def getCatIds(self) -> list[int]:
        return list(self.cats)

    def getAnnIds(self, **_: Any) -> range:
        return range(1, len(self._rows) + 1)

    def loadAnns(self, _ids: Any) -> list[dict[str, Any]]:
        return self._rows


def _faster(truth: Truth, found: Columns, iou_type: IouType) -> Arrays:
    from faster_coco_eval import COCOeval_faster

    scorer = COCOeval_faster(
        _Index(truth, truth.annotations),
        _Index(truth, found),
        iouType=iou_type,
        print_function=_silent,
        rle_iou_max_workers=1,
    )
    scorer.evaluate()
    scorer.accumulate()
    return np.asarray(scorer.eval["precision"]), np.asarray(scorer.eval["recall"])


def _silent(*_text: object) -> None:
    """Stands in for the scorer's log."""


def _pycocotools(truth: Truth, found: Columns, iou_type: IouType) -> Arrays:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        scorer = COCOeval(
            _fill(COCO(), truth, truth.annotations), _fill(COCO(), truth, found), iou_type
        )
        scorer.evaluate()
        scorer.accumulate()
    return np.asarray(scorer.eval["precision"]), np.asarray(scorer.eval["recall"])


def _fill(index: Any, truth: Truth, columns: Columns) -> Any:
    """Fill an empty COCO index by hand: its own constructor prints, and refuses an empty list."""
    annotations, categories = _objects(columns), _categories(truth)
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
