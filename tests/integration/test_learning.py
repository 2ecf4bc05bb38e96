"""What is trained learns: losses fall in every strategy, and scores beat a predictor that is blind.

Three classes of one hue each, on random encoders: colours can be learnt within a minute, and only
if losses, gradients, labels and evaluation agree. A result it is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sharedenc.data.classes import ClassList
from sharedenc.data.packed import PackedDataset, prepare
from sharedenc.data.synthetic import write_synthetic
from sharedenc.spec import Cell, Recipe, Trial, resolve_numerics
from sharedenc.tracking import MemoryTracker
from sharedenc.training.job import TrialResult
from sharedenc.training.run import TrialJob, run_and_record

BACKBONE = "resnet18"
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    image_px=128,
    precision="float32",
    augment=False,
    scheduler="constant",
    early_stop_patience=0,
    calibration_images=32,
)
LR = 1e-3


class Learner:
    """Trains cells on one data set, each once."""

    def __init__(self, data: Path, pack: PackedDataset, folder: Path) -> None:
        self.data, self.pack, self.folder = data, pack, folder
        self.tracker = MemoryTracker(folder / "artifacts")
        self.parent = self.tracker.study("learning", {})
        self.results: dict[str, TrialResult] = {}

    def train(self, rest: str, **more: Any) -> TrialResult:
        """The result of a cell; a swap trains its source first, if nobody has."""
        cell = Cell.parse(f"{BACKBONE}/{rest}")
        if cell.name in self.results:
            return self.results[cell.name]
        source = None
        if cell.source is not None:
            source = self.train(cell.source.name.partition("/")[2])
        trial = Trial(
            cell=cell,
            recipe=RECIPE,
            lr=LR,
            seed=0,
            data_digest=self.pack.digest,
            weights_digest="none",
            numerics=resolve_numerics(RECIPE, BACKBONE, "cpu", "2.14"),
            parent_key=None if source is None else source.key,
        )
        job = TrialJob(
            trial=trial,
            pack=self.pack.root,
            weights="none",
            parent=None if source is None else Path(source.checkpoint),
            work_dir=self.folder / trial.key[:16],
            device="cpu",
            predictions=False,
            test=rest == "baseline/seg",
        )
        outcome = run_and_record(job, self.tracker.child("learning", self.parent, cell.name, {}))
        assert outcome.result is not None, outcome.traceback
        self.results[cell.name] = outcome.result
        return outcome.result


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learner]:
    folder = tmp_path_factory.mktemp("learning")
    classes = ClassList("hues", ("red thing", "green thing", "blue thing"))
    data = write_synthetic(folder / "data", (64, 8, 24), seed=0, classes=classes, name="hues")
    pack = prepare(data, cache=folder / "cache", progress=False)
    learner = Learner(data, pack, folder)
    yield learner
    learner.tracker.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "rest",
    [
        *("baseline/seg", "baseline/det", "swap-frozen/seg", "swap-bias/det"),
        *("share-frozen/seg", "share-frozen/det", "share-bias/seg", "share-bias/det", "dual"),
    ],
)
def test_training_loss_falls(learner: Learner, rest: str) -> None:
    history = learner.train(rest).history
    tasks = ("det", "seg") if rest == "dual" else (rest.rsplit("/", 1)[1],)
    for task in tasks:
        losses = [row[f"train/loss_{task}"] for row in history]
        assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.slow
def test_a_trained_segmenter_beats_the_all_background_predictor(learner: Learner) -> None:
    blind = all_background_miou(learner.data / "annotations" / "test.json")
    trained = learner.train("baseline/seg").test
    assert trained["mIoU"] > blind + 0.1


def all_background_miou(annotations: Path) -> float:
    """mIoU of calling every pixel background, from the polygons alone.

    Its IoU is the share of background pixels for background, and 0 for every class; pixels of a
    crowd or of two objects do not count.
    """
    content = json.loads(annotations.read_text())
    background = labelled = 0
    classes: set[int] = set()
    for image in content["images"]:
        covered = np.zeros((image["height"], image["width"]), np.uint8)
        for entry in content["annotations"]:
            if entry["image_id"] != image["id"]:
                continue
            drawn = np.zeros_like(covered)
            if entry["iscrowd"]:
                runs = entry["segmentation"]["counts"]
                inside = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
                drawn[inside.reshape(drawn.shape, order="F")] = 2
            else:
                (polygon,) = entry["segmentation"]
                corners = np.round(np.reshape(polygon, (-1, 1, 2))).astype(np.int32)
                cv2.fillPoly(drawn, [corners], 1)
                classes.add(entry["category_id"])
            covered += drawn
        background += int((covered == 0).sum())
        labelled += int((covered <= 1).sum())
    return background / labelled / (1 + len(classes))
