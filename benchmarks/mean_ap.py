"""R1: COCO AP of a validation set's detections, ours against pycocotools.

Both sides are given the same annotations as Python objects and the same detections as one array
``[N, 7]``, and are timed from there to the twelve figures: index, conversion, matching,
accumulation. The data is made up: boxes near the truth and stray ones, scores that tie, crowds. It
has the size of the thesis's validation set, 4,031 images with 100 detections each. The limit is the
sort by score that any evaluation needs, class by class.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.protocol import interleaved, result, timed
from sharedenc.evaluation.detection import coco_ap
from sharedenc.evaluation.scorers import Backend

IMAGES, CLASSES, OBJECTS, PER_IMAGE = 4031, 20, 28_264, 100
WIDTH, HEIGHT = 640, 480
# Share of an image's detections that are a true box, moved a little.
NEAR = 0.2
# How far figures may be apart: faster-coco-eval adds in another order.
TOLERANCE: dict[Backend, float] = {"hotcoco": 0.0, "faster-coco-eval": 1e-12}
MODULES: dict[Backend, str] = {"hotcoco": "hotcoco", "faster-coco-eval": "faster_coco_eval"}

Rows = npt.NDArray[np.float64]


def run(
    rounds: int, images: int = IMAGES, objects: int = OBJECTS, per_image: int = PER_IMAGE
) -> list[dict[str, Any]]:
    """Measure each of our fast backends that is installed; both sides' figures must agree."""
    truth, rows = made_up(images, objects, per_image)
    theirs = copy.deepcopy(truth)  # pycocotools writes into what it is given
    limit = min(timed(lambda: sort_by_class(rows)).figure for _ in range(max(rounds, 5)))
    found = []
    for backend, tolerance in TOLERANCE.items():
        if importlib.util.find_spec(MODULES[backend]) is None:
            print(f"R1: {backend} is not installed and has no row", file=sys.stderr)
            continue

        def same(a: Rows, b: Rows, tolerance: float = tolerance) -> bool:
            return bool(np.abs(a - b).max() <= tolerance)

        def ours(backend: Backend = backend) -> Rows:
            return np.array(list(coco_ap(truth, rows, backend=backend).stats.values()))

        duel = interleaved(
            lambda: timed(lambda: reference(theirs, rows)),
            lambda ours=ours: timed(ours),  # type: ignore[misc]
            rounds,
            same=same,
        )
        case = f"{images} images, {objects} boxes, {len(rows)} detections, {backend}"
        check = "twelve figures " + (f"within {tolerance}" if tolerance else "equal")
        found.append(result("R1", case, duel, unit="s", limit=limit, check=check))
    return found


def reference(truth: dict[str, Any], rows: Rows) -> Rows:
    """What pycocotools' own demo does."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = truth
        index.createIndex()
        scorer = COCOeval(index, index.loadRes(rows), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return np.asarray(scorer.stats)


def sort_by_class(rows: Rows) -> list[Any]:
    """Sort the scores of each class, which no scorer can do without."""
    scores = [rows[rows[:, 6] == label, 5] for label in range(1, CLASSES + 1)]
    return [np.argsort(-values, kind="stable") for values in scores]


def made_up(images: int, objects: int, per_image: int) -> tuple[dict[str, Any], Rows]:
    """Annotations and detections, the same for the same sizes."""
    rng = np.random.default_rng(0)
    owner = np.sort(rng.integers(0, images, objects))
    corner = rng.uniform(0, (0.8 * WIDTH, 0.8 * HEIGHT), (objects, 2))
    size = np.exp(rng.uniform(np.log(8), np.log(300), (objects, 2)))
    boxes = np.concatenate([corner, np.minimum(size, (WIDTH, HEIGHT) - corner)], axis=1).round(2)
    labels = rng.integers(1, CLASSES + 1, objects)
    crowd = rng.random(objects) < 0.01
    fill = rng.uniform(0.5, 1, objects)
    annotations = [
        {
            "id": place + 1,
            "image_id": int(owner[place]) + 1,
            "category_id": int(labels[place]),
            "bbox": boxes[place].tolist(),
            "area": float(boxes[place, 2] * boxes[place, 3] * fill[place]),
            "iscrowd": int(crowd[place]),
        }
        for place in range(objects)
    ]
    truth = {
        "images": [{"id": i + 1, "width": WIDTH, "height": HEIGHT} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, CLASSES + 1)],
    }
    return truth, _detections(rng, owner, boxes, labels, images, per_image)


def _detections(
    rng: np.random.Generator,
    owner: npt.NDArray[Any],
    boxes: Rows,
    labels: npt.NDArray[Any],
    images: int,
    per_image: int,
) -> Rows:
    count = images * per_image
    rows = np.empty((count, 7))
    rows[:, 0] = np.repeat(np.arange(1, images + 1), per_image)
    rows[:, 1:3] = rng.uniform(0, (0.8 * WIDTH, 0.8 * HEIGHT), (count, 2))
    rows[:, 3:5] = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    rows[:, 5] = rng.random(count).round(4)
    rows[:, 6] = rng.integers(1, CLASSES + 1, count)
    starts = np.searchsorted(owner, np.arange(images + 1))
    for image in range(images):
        own = np.arange(starts[image], starts[image + 1])
        if not len(own):
            continue
        near = rng.choice(own, int(NEAR * per_image))
        place = slice(image * per_image, image * per_image + len(near))
        rows[place, 1:5] = boxes[near] * rng.uniform(0.9, 1.1, (len(near), 4))
        rows[place, 6] = labels[near]
    return rows
