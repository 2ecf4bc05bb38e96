"""Where time goes: parts add up on a made-up clock, and a real epoch is told by part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import profile
from benchmarks.spans import Spans
from sharedenc.data.packed import PackedDataset
from sharedenc.evaluation import evaluate
from sharedenc.spec import Cell, Recipe
from sharedenc.training import learner


class Clock:
    """Seconds that pass when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def test_a_part_is_without_the_parts_that_it_calls() -> None:
    clock = Clock()
    spans = Spans(clock)
    clock.work(1)
    with spans.part("validation"):
        clock.work(2)
        with spans.part("scores"):
            clock.work(4)
        clock.work(8)
    clock.work(16)
    assert spans.close() == {"rest": 17, "validation": 10, "scores": 4}


def test_items_charge_their_making_and_not_their_use() -> None:
    clock = Clock()
    spans = Spans(clock)

    def items() -> list[int]:
        made = []
        for number in range(2):
            clock.work(3)
            made.append(number)
        return made

    for _ in spans.each("data", (number for _ in range(1) for number in items())):
        clock.work(5)
    assert spans.close() == {"data": 6, "rest": 10}


def test_what_is_raised_in_a_part_ends_it() -> None:
    clock = Clock()
    spans = Spans(clock)
    fail = spans.of("losses", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fail()
    clock.work(1)
    assert spans.close()["rest"] == 1


def test_a_restart_forgets_what_was_and_keeps_what_runs() -> None:
    clock = Clock()
    spans = Spans(clock)
    with spans.part("checkpoint"):
        clock.work(7)
        spans.restart()
        clock.work(2)
    assert spans.close() == {"checkpoint": 2, "rest": 0}


@pytest.mark.slow
@pytest.mark.parametrize("reference", [False, True])
def test_an_epoch_is_told_by_part(
    reference: bool, tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=2, batch_size=4, image_px=64, calibration_images=4)
    if reference:
        recipe = Recipe.from_dict(recipe.to_dict() | profile.REFERENCE)
    before = (learner.task_losses, evaluate.coco_ap)
    cell = Cell.parse("mobilenet_v3_large/dual")
    row = profile.epoch(cell, recipe, tiny_pack, tmp_path, reference=reference)
    assert (learner.task_losses, evaluate.coco_ap) == before
    assert set(row["seconds"]) == set(profile.PARTS)
    assert all(row["seconds"][part] > 0 for part in profile.PARTS)
    assert sum(row["seconds"].values()) == pytest.approx(row["total"])
    assert row["memory_format"] == ("contiguous" if reference else "channels_last")


@pytest.mark.slow
def test_both_ways_train_the_same_thing(tiny_pack: PackedDataset, tmp_path: Path) -> None:
    recipe = Recipe(
        epochs=2,
        batch_size=4,
        image_px=64,
        calibration_images=4,
        augment=False,
        precision="float32",
    )
    cell = Cell.parse("resnet18/dual")
    losses = [
        profile.epoch(cell, recipe, tiny_pack, tmp_path / str(way), reference=way)["val_loss"]
        for way in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_table_is_per_training_image() -> None:
    seconds = {part: 0.0 for part in profile.PARTS} | {"data": 0.05, "backward": 0.1}
    row = {"cell": "resnet18/dual", "seconds": seconds, "total": 0.15}
    report = {
        "way": "ours",
        "data": "synthetic pictures",
        "images": {"train": 10, "val": 2},
        "image_px": 64,
        "batch": 2,
        "load": 0.5,
        "rows": [row],
    }
    head, names, figures = profile.table(json.loads(json.dumps(report))).splitlines()
    assert "10 training and 2 validation pictures of synthetic pictures" in head
    found = dict(zip(names.split()[3:], figures.split()[1:], strict=True))
    assert (found["data"], found["backward"], found["total"]) == ("5.00", "10.00", "15.00")
