"""COCO AP: published figures, two scorers against each other, undefined figures, bad input."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedenc.errors import DataError, SpecError
from sharedenc.evaluation.detection import ApResult, coco_ap

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


@pytest.mark.parametrize("seed", range(6))
def test_both_scorers_agree_on_crowds_ties_and_empty_images(seed: int) -> None:
    ground_truth, detections = random_case(seed)
    before = copy.deepcopy(ground_truth)
    fast = coco_ap(ground_truth, detections, backend="faster-coco-eval")
    assert_same(fast, coco_ap(ground_truth, detections, backend="pycocotools"))
    assert ground_truth == before
    assert 0 < fast.stats["AP"] < 1
    assert fast.per_class["class 11"] == -1
    assert np.mean(fast.ap_per_iou) == pytest.approx(fast.stats["AP"])


@pytest.mark.parametrize("backend", ["faster-coco-eval", "pycocotools"])
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


def test_masks_of_every_form_score_alike_on_both_scorers() -> None:
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
    fast = coco_ap(polygons, found, "segm", backend="faster-coco-eval")
    assert fast.stats["AP"] == pytest.approx(1.0)
    assert_same(fast, coco_ap(polygons, found, "segm", backend="pycocotools"))


@pytest.mark.parametrize("backend", ["faster-coco-eval", "pycocotools"])
def test_a_hand_worked_overlap_counts_up_to_its_threshold(backend: Any) -> None:
    # 10x10 truth, 10x8 found: IoU .80, so right at .50 to .80 and wrong at .85, .90, .95.
    row = np.array([[1, 0, 0, 10, 8, 0.5, 1]])
    result = coco_ap(truth([[0, 0, 10, 10]]), row, backend=backend)
    assert result.ap_per_iou == pytest.approx([1.0] * 7 + [0.0] * 3)
    assert result.stats["AP"] == pytest.approx(0.7)
    assert result.stats["AP_small"] == pytest.approx(0.7)
    assert result.stats["AP_large"] == result.stats["AR_medium"] == -1
    assert result.per_class == pytest.approx({"cat": 0.7, "dog": -1})


@pytest.mark.parametrize("backend", ["faster-coco-eval", "pycocotools"])
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
    for backend in ("faster-coco-eval", "pycocotools"):
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
    with pytest.raises(DataError, match=r"shape \[2, 3\]"):
        coco_ap(truth([]), np.zeros((2, 3)))
