"""The effect of a precision: worked by hand, and of a real training of a dozen pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.precision import Effect, main, table

# By hand: differences -1, 1 and 3 points have the mean 1 and the standard deviation 2.
EFFECT = Effect("cell", "mIoU", {"float32": [0.30, 0.40, 0.50], "bfloat16": [0.29, 0.41, 0.53]})


def test_a_difference_stands_beside_its_error_and_the_spread_of_seeds() -> None:
    assert EFFECT.differences == pytest.approx([-0.01, 0.01, 0.03])
    assert EFFECT.mean_difference == pytest.approx(0.01)
    assert EFFECT.error == pytest.approx(0.02 / 3**0.5)
    assert EFFECT.spread == pytest.approx(0.1)
    last = table([EFFECT]).splitlines()[-1].split()
    assert last == ["cell", "mIoU", "40.00", "41.00", "1.00", "1.15", "10.00"]


def test_one_seed_has_no_spread() -> None:
    one = Effect("cell", "mIoU", {"float32": [0.3], "bfloat16": [0.4]})
    assert one.mean_difference == pytest.approx(0.1)
    assert table([one]).splitlines()[-1].split()[-2:] == ["nan", "nan"]


def test_a_swap_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--cells", "resnet18/swap-bias/seg"])
    assert "resnet18/swap-bias/seg: a swap needs another trial first" in capsys.readouterr().err


def test_both_precisions_are_trained_with_the_same_seeds(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    settings = ["--epochs", "1", "--batch", "4", "--image-px", "64", "--seeds", "2"]
    cell = "resnet18/share-frozen/seg"
    data = ["--data", str(tiny_dataset), "--json", str(out), "--device", "cpu"]
    assert main(["--cells", cell, *settings, *data]) == 0
    effects = json.loads(out.read_text())["effects"]
    assert [(effect["cell"], effect["score"]) for effect in effects] == [
        (cell, "mIoU"),
        (cell, "pixel_acc"),
    ]
    for effect in effects:
        assert {name: len(found) for name, found in effect["values"].items()} == {
            "float32": 2,
            "bfloat16": 2,
        }
    told = capsys.readouterr().err
    assert f"{cell}, seed 1, bfloat16: score" in told
