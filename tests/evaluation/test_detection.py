"""COCO AP: published figures, two scorers against each other, undefined figures, bad input."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pycocotools import mask as masks

from sharedenc.errors import DataError, SpecError
from sharedenc.evaluation.coco_tables import Truth, detection_columns
from sharedenc.evaluation.detection import ApResult, coco_ap
from sharedenc.evaluation.scorers import Backend, precision_recall

# The figures that the COCO API's own demo prints for its own files.
BBOX = {
    "AP": 0.505,
    "AP50": 0.697,
    "AP75": 0.573,
    "AP_small": 0.586,
    "AP_medium": 0.519,
    "AP_large": 0.501,
    "AR_1": 0.387,
    "AR_10": 0.594,
    "AR_100": 0.595,
    "AR_small": 0.640,
    "AR_medium": 0.566,
    "AR_large": 0.564,
}


BACKENDS = get_args(Backend)[1:]


def truth(boxes: list[list[float]], *, image_id: int = 1, crowd: int = 0) -> dict[str, Any]:
    """One image with boxes xywh of class 1; class 2 exists but has no box."""
    return {
        "images": [{"id": image_id, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": image_id, "category_id": 1, "bbox": b, "area": b[2] * b[3]}
            | {"iscrowd": crowd}
            for i, b in enumerate(boxes)
        ],
    }


def random_case(seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Images without truth, without detections, crowds, tied scores, > 100 detections per image."""
    rng = np.random.default_rng(seed)
    images = sorted(int(i) for i in rng.choice(10**9, 8, replace=False))
    classes = [0, 3, 7, 11]
    annotations: list[dict[str, Any]] = []
    detections: list[list[float]] = []
    for place, image in enumerate(images):
        for _ in range(0 if place == 0 else int(rng.integers(0, 9))):
            x, y = rng.integers(0, 80, 2).tolist()
            w, h = rng.integers(4, 140, 2).tolist()
            label = int(rng.choice(classes[:3]))
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image,
                    "category_id": label,
                    "bbox": [x, y, w, h],
                    "area": float(w * h) * rng.choice([1.0, 0.6]),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                box = np.array([x, y, w, h]) + rng.integers(-4, 5, 4)
                box[2:] = np.maximum(box[2:], 1)
                score = round(float(rng.random()), 1)
                detections.append([image, *box.tolist(), score, label])
        for _ in range(0 if place == 1 else int(rng.choice([3, 130]))):
            box = [*rng.integers(0, 100, 2).tolist(), *rng.integers(1, 60, 2).tolist()]
            score, label = round(float(rng.random()), 1), int(rng.choice(classes))
            detections.append([image, *box, score, label])
    ground_truth = {
        "images": [{"id": i, "height": 240, "width": 240} for i in images],
        "categories": [{"id": c, "name": f"class {c}"} for c in classes],
        "annotations": annotations,
    }
    return ground_truth, np.array(detections, np.float64)


def assert_same(left: ApResult, right: ApResult) -> None:
    """Equal in every figure, undefined ones included."""
    assert left.stats == pytest.approx(right.stats, abs=1e-12)
    assert left.ap_per_iou == pytest.approx(right.ap_per_iou, abs=1e-12)
    assert left.per_class == pytest.approx(right.per_class, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("seed", range(6))
def test_scorers_agree_on_crowds_ties_and_empty_images(seed: int, backend: Any) -> None:
    ground_truth, detections = random_case(seed)
    before = copy.deepcopy(ground_truth)
    fast = coco_ap(ground_truth, detections, backend=backend)
    assert_same(fast, coco_ap(ground_truth, detections, backend="pycocotools"))
    assert ground_truth == before
    assert 0 < fast.stats["AP"] < 1
    assert fast.per_class["class 11"] == -1
    assert np.mean(fast.ap_per_iou) == pytest.approx(fast.stats["AP"])


def hard_case(seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """What scorers could differ in: equal scores everywhere, boxes without area or of an area on
    the border between two sizes, equal overlaps, crowds over objects, crowds alone, more than 100
    detections of one class, classes and images without truth, without detections, without both."""
    rng = np.random.default_rng(seed)
    sides = [0, 1, 8, 32, 96, 40]
    images, classes = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    crowded = rng.choice([0.0, 0.3, 1.0])
    scores = rng.random(int(rng.integers(1, 4))).tolist()

    def box() -> list[float]:
        x, y = rng.integers(0, 5, 2) * 8
        return [float(v) for v in (x, y, rng.choice(sides), rng.choice(sides))]

    annotations: list[dict[str, Any]] = []
    rows: list[list[float]] = []
    for image in range(1, images + 1):
        for _ in range(int(rng.choice([0, 1, 7]))):
            bbox = box()
            area = bbox[2] * bbox[3] * rng.choice([1.0, 0.5])
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "bbox": bbox, "area": area}
                | {"category_id": int(rng.integers(1, classes + 1))}
                | {"iscrowd": int(rng.random() < crowded)}
            )
        for _ in range(int(rng.choice([0, 5, 150]))):
            bbox = box()
            if annotations and rng.random() < 0.5:
                bbox = list(annotations[int(rng.integers(len(annotations)))]["bbox"])
            rows.append([image, *bbox, rng.choice(scores), int(rng.integers(1, classes + 1))])
    ground_truth = {
        "images": [{"id": i, "height": 240, "width": 240} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, classes + 1)],
        "annotations": annotations,
    }
    return ground_truth, np.array(rows, np.float64).reshape(-1, 7)


def arrays(ground_truth: dict[str, Any], found: Any, iou_type: Any, backend: Any) -> Any:
    known = Truth(ground_truth, iou_type)
    return precision_recall(known, detection_columns(found, known, iou_type), iou_type, backend)


@pytest.mark.parametrize(("backend", "tolerance"), [("hotcoco", 0), ("faster-coco-eval", 1e-12)])
@pytest.mark.parametrize("seed", range(30))
def test_whole_arrays_are_those_of_pycocotools(seed: int, backend: Any, tolerance: float) -> None:
    ground_truth, rows = hard_case(seed)
    expected = arrays(ground_truth, rows, "bbox", "pycocotools")
    found = arrays(ground_truth, rows, "bbox", backend)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("backend", "tolerance"), [("hotcoco", 0), ("faster-coco-eval", 1e-12)])
@pytest.mark.parametrize("seed", range(10))
def test_whole_arrays_of_masks_too(seed: int, backend: Any, tolerance: float) -> None:
    ground_truth, rows = hard_case(seed)
    rng = np.random.default_rng(seed)

    def outline(box: list[float]) -> dict[str, Any]:
        """The box with holes: as runs down its columns, as COCO counts them."""
        x, y, w, h = (int(v) for v in box)
        mask = np.zeros((240, 240), np.uint8)
        mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.8
        flat = mask.T.ravel()
        ends = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
        return {"size": [240, 240], "counts": np.diff([0, *ends, flat.size]).tolist()}

    for row in ground_truth["annotations"]:
        row["segmentation"] = outline(row["bbox"])
    found = [
        {"image_id": int(row[0]), "category_id": int(row[6]), "score": float(row[5])}
        | {"segmentation": outline(row[1:5].tolist())}
        for row in rows
    ]
    expected = arrays(ground_truth, found, "segm", "pycocotools")
    for ours, theirs in zip(arrays(ground_truth, found, "segm", backend), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_a_list_scores_as_the_array_and_ground_truth_can_be_read_once() -> None:
    ground_truth, rows = random_case(1)
    named = ("image_id", "bbox", "score", "category_id")
    found = [
        dict(zip(named, (int(r[0]), r[1:5].tolist(), r[5], int(r[6])), strict=True)) for r in rows
    ]
    expected = coco_ap(ground_truth, rows, backend="pycocotools")
    assert coco_ap(ground_truth, found) == coco_ap(ground_truth, rows) == expected
    # One row without a box, whose outline says it, makes all be read row by row.
    first = found[0]["bbox"]
    x, y, w, h = first
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    rle = masks.merge(masks.frPyObjects([corners], 240, 240))
    del found[0]["bbox"]
    found[0]["segmentation"] = rle
    rows[0, 1:5] = masks.toBbox(rle)
    known = Truth(ground_truth, "bbox")
    assert coco_ap(known, found) == coco_ap(known, rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_official_files_give_the_published_figures(
    shared_data: Path, backend: Any, iou_type: Any
) -> None:
    folder = shared_data / "cocoapi_eval100"
    ground_truth = json.loads((folder / "instances_val2014_100.json").read_bytes())
    name = f"instances_val2014_fake{iou_type}100_results.json"
    found = json.loads((folder / name).read_bytes())
    stats = coco_ap(ground_truth, found, iou_type, backend=backend).stats
    expected = BBOX if iou_type == "bbox" else {"AP": 0.320, "AP50": 0.562}
    assert {key: round(stats[key], 3) for key in expected} == expected


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_masks_of_every_form_score_alike_on_all_scorers(backend: Any) -> None:
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    polygons = truth([[10, 10, 20, 20], [50, 50, 40, 40]])
    polygons["annotations"][0]["segmentation"] = square
    # Column-major runs: 50 empty columns, then 40 columns of 50 off, 40 on, 10 off.
    runs = [50 * 100 + 50] + [40, 60] * 39 + [40, 10 + 10 * 100]
    uncompressed = {"size": [100, 100], "counts": runs}
    polygons["annotations"][1]["segmentation"] = uncompressed
    found = [
        {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": uncompressed},
        {"image_id": 1, "category_id": 1, "score": 0.8, "segmentation": square},
    ]
    fast = coco_ap(polygons, found, "segm", backend=backend)
    assert fast.stats["AP"] == pytest.approx(1.0)
    assert_same(fast, coco_ap(polygons, found, "segm", backend="pycocotools"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hand_worked_overlap_counts_up_to_its_threshold(backend: Any) -> None:
    # 10x10 truth, 10x8 found: IoU .80, so right at .50 to .80 and wrong at .85, .90, .95.
    row = np.array([[1, 0, 0, 10, 8, 0.5, 1]])
    result = coco_ap(truth([[0, 0, 10, 10]]), row, backend=backend)
    assert result.ap_per_iou == pytest.approx([1.0] * 7 + [0.0] * 3)
    assert result.stats["AP"] == pytest.approx(0.7)
    assert result.stats["AP_small"] == pytest.approx(0.7)
    assert result.stats["AP_large"] == result.stats["AR_medium"] == -1
    assert result.per_class == pytest.approx({"cat": 0.7, "dog": -1})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("none", [[], np.zeros((0, 7)), np.zeros((0,))])
def test_no_detections_score_zero_and_no_truth_is_undefined(backend: Any, none: Any) -> None:
    assert coco_ap(truth([[0, 0, 10, 10]]), none, backend=backend).stats["AP"] == 0
    assert set(coco_ap(truth([]), none, backend=backend).stats.values()) == {-1}


def test_a_detection_on_a_crowd_is_neither_right_nor_wrong() -> None:
    ground_truth = truth([[0, 0, 20, 20]])
    crowd = {"id": 9, "image_id": 1, "category_id": 1, "bbox": [50, 50, 50, 50]}
    ground_truth["annotations"].append(crowd | {"area": 2500, "iscrowd": 1})
    rows = np.array([[1, 60, 60, 20, 20, 0.9, 1], [1, 0, 0, 20, 20, 0.8, 1]])
    assert coco_ap(ground_truth, rows).stats["AP"] == pytest.approx(1.0)
    ground_truth["annotations"].pop()
    assert coco_ap(ground_truth, rows).stats["AP"] == pytest.approx(0.5)


def test_image_ids_of_64_bits_are_kept_apart() -> None:
    big = 2**40 + 1
    rows = np.array([[big, 0, 0, 10, 10, 0.5, 1]])
    assert coco_ap(truth([[0, 0, 10, 10]], image_id=big), rows).stats["AP"] == pytest.approx(1)
    with pytest.raises(DataError, match=rf"{big} does not fit into float32"):
        coco_ap(truth([[0, 0, 10, 10]], image_id=big), rows.astype(np.float32))
    huge = 2**62 + 1
    found = [{"image_id": huge, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}]
    assert coco_ap(truth([[0, 0, 10, 10]], image_id=huge), found).stats["AP"] == pytest.approx(1)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for backend in BACKENDS:
        coco_ap(truth([[0, 0, 9, 9]]), np.array([[1, 0, 0, 9, 9, 0.5, 1]]), backend=backend)
    assert capfd.readouterr() == ("", "")


GOOD = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"image_id": 77}, "image id 77"),
        (GOOD | {"category_id": 5}, "category id 5.*1, 2"),
        (GOOD | {"score": float("nan")}, "detection 0 .*not finite"),
        (GOOD | {"bbox": [1, 2, 3]}, "detection 0 is not a COCO result"),
        ({"image_id": 1, "category_id": 1}, "detection 0 is not a COCO result.*score"),
        (7, "detection 0 is not a COCO result"),
    ],
)
def test_a_bad_detection_is_named(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        coco_ap(truth([[0, 0, 10, 10]]), [row])


@pytest.mark.parametrize("outline", [None, [], [[1, 2, 3]], {"size": [5, 5], "counts": "zz"}])
def test_a_bad_mask_is_named(outline: Any) -> None:
    with pytest.raises(DataError, match="detection 0 has no usable segmentation"):
        coco_ap(truth([]), [GOOD | {"segmentation": outline}], "segm")


def test_bad_ground_truth_is_named() -> None:
    rows = np.zeros((0, 7))
    with pytest.raises(DataError, match="no list 'annotations'"):
        coco_ap({"images": [], "categories": []}, rows)
    with pytest.raises(DataError, match="0 images and 0 categories"):
        coco_ap({"images": [], "categories": [], "annotations": []}, rows)
    double = truth([])
    double["categories"][1]["name"] = "cat"
    with pytest.raises(DataError, match=r"twice.*cat"):
        coco_ap(double, rows)
    stray = truth([[0, 0, 1, 1]])
    stray["annotations"][0]["image_id"] = 5
    with pytest.raises(DataError, match="annotation of image id 5"):
        coco_ap(stray, rows)
    with pytest.raises(SpecError, match="Did you mean 'bbox'"):
        coco_ap(truth([]), rows, "box")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="pass the list"):
        coco_ap(truth([]), np.ones((1, 7)), "segm")
    with pytest.raises(DataError, match="image id 9,"):
        coco_ap(truth([]), np.array([[1, 0, 0, 1, 1, 1, 1], [9, 0, 0, 1, 1, 1, 1.0]]))
    with pytest.raises(DataError, match="category id 7,"):
        coco_ap(truth([]), np.array([[1, 0, 0, 1, 1, 1, 7.0]]))
    with pytest.raises(DataError, match="1 detections are not finite"):
        coco_ap(truth([]), np.array([[1, 0, 0, 1, 1, np.nan, 1.0]]))
    with pytest.raises(DataError, match="annotation 4 has bbox"):
        coco_ap(truth([]) | {"annotations": [{"id": 4, "bbox": [1, 2, 3]}]}, rows)
    with pytest.raises(DataError, match=r"shape \[2, 3\]"):
        coco_ap(truth([]), np.zeros((2, 3)))
