"""R10: the reference by hand, and rows that say what they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import makespan
from benchmarks.protocol import Unequal
from sharedenc.spec import Cell, Recipe
from sweeps.simulate import Virtual, gpus, simulate


def trial(name: str, cell: str, seconds: float, after: tuple[str, ...] = ()) -> Virtual:
    return Virtual(
        id=name,
        cell=Cell.parse(cell),
        recipe=Recipe(),
        epochs=1,
        epoch_s=seconds,
        after=after,
    )


TRIALS = [
    trial("dual", "resnet18/dual", 3 * 3600),
    trial("short", "resnet18/baseline/det", 3600),
    trial("long", "resnet18/baseline/seg", 4 * 3600),
    trial("swap", "resnet18/swap-frozen/seg", 2 * 3600, after=("short",)),
]


def test_phases_wait_for_the_last_of_each() -> None:
    # baselines until 4 h, then the swap until 6 h, then the dual until 9 h
    side = makespan.phases(TRIALS, 2)
    assert side.figure == pytest.approx(9)
    assert side.answer == ["dual", "long", "short", "swap"]
    # ours: long 0-4, short 0-1 and dual 1-4, swap 4-6; or short, swap 1-3, dual 3-6
    assert simulate(TRIALS, gpus(2)).makespan <= 6 * 3600


def test_a_wrong_schedule_is_no_result() -> None:
    outcome = simulate(TRIALS, gpus(2))
    makespan.check(TRIALS, outcome)
    with pytest.raises(Unequal, match="4 trials, 3 attempts"):
        makespan.check(TRIALS, replace(outcome, spans=outcome.spans[:3]))
    late = [replace(s, start=0.0, end=7200.0) if s.id == "swap" else s for s in outcome.spans]
    with pytest.raises(Unequal, match="swap started before short had ended"):
        makespan.check(TRIALS, replace(outcome, spans=late))


def test_rows_cover_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makespan, "TABLE", ((44, 8),))
    known, estimated = makespan.run(rounds=2)
    assert (known["id"], known["unit"]) == ("R10", "h")
    assert known["case"] == "44 trials on 8 GPUs, durations known"
    assert estimated["case"] == "44 trials on 8 GPUs, durations estimated"
    # published for a simulation of the same sizes: 2.0 times, and within a few percent of the bound
    assert 1.5 < known["ratio"] < 3
    assert 0.97 < known["limit_share"] <= 1
