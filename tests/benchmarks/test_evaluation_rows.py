"""R1 and R7 at small sizes: both sides give one answer, and a wrong answer is no row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import confusion, mean_ap
from benchmarks.protocol import Unequal

SMALL = {"images": 12, "objects": 60, "per_image": 30}


def test_r1_has_a_row_for_each_fast_backend() -> None:
    rows = mean_ap.run(1, **SMALL)
    assert [row["case"].rsplit(", ", 1)[1] for row in rows] == ["hotcoco", "faster-coco-eval"]
    for row in rows:
        assert (row["id"], row["unit"]) == ("R1", "s")
        assert row["ratio"] == row["reference"] / row["ours"]
        assert 0 < row["limit_share"]
        assert "12 images, 60 boxes, 360 detections" in row["case"]
    assert rows[0]["check"] == "twelve figures equal"


def test_r1_leaves_out_a_backend_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(mean_ap.MODULES, "hotcoco", "no_such_module")
    (row,) = mean_ap.run(1, **SMALL)
    assert row["case"].endswith("faster-coco-eval")
    assert capsys.readouterr().err == "R1: hotcoco is not installed and has no row\n"


def test_r1_data_scores_between_nothing_and_everything() -> None:
    truth, rows = mean_ap.made_up(**SMALL)
    stats = mean_ap.reference(truth, rows)
    assert len(stats) == 12
    assert 0.005 < stats[0] < 0.9
    assert len(np.unique(rows[:, 5])) < len(rows)


def test_r1_refuses_a_scorer_that_is_a_little_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*args: Any, **more: Any) -> Any:
        found = real(*args, **more)
        found.stats["AP"] += 1e-9
        return found

    real = mean_ap.coco_ap
    monkeypatch.setattr(mean_ap, "coco_ap", off)
    with pytest.raises(Unequal):
        mean_ap.run(1, **SMALL)


def test_r7_counts_the_same_both_ways() -> None:
    (row,) = confusion.run(1, images=2)
    assert (row["id"], row["unit"], row["check"]) == ("R7", "ms/image", "every count the same")
    assert row["ratio"] == row["reference"] / row["ours"]
    assert 0 < row["limit_share"] < 1
    truth, guess = confusion.made_up(2)
    assert confusion.ours(truth, guess).sum() == (truth != 255).sum()


def test_r7_refuses_a_matrix_that_is_one_pixel_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(truth: Any, guess: Any) -> Any:
        counts = real(truth, guess)
        counts[3, 4] += 1
        return counts

    real = confusion.ours
    monkeypatch.setattr(confusion, "ours", off)
    with pytest.raises(Unequal):
        confusion.run(1, images=2)
