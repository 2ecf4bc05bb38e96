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


def test_a_wrong_group_is_no_result() -> None:
    frozen = [
        replace(trial(name, f"resnet18/share-frozen/{task}", 3600), fusion="k", shared=0.5)
        for name, task in (("a", "det"), ("b", "seg"), ("c", "seg"))
    ]
    trials = [*TRIALS, *frozen]
    outcome = simulate(trials, gpus(1), fuse=True)
    makespan.check_together(trials, 1, outcome)
    assert [len(group) for group in outcome.groups if len(group) > 1] == [3]
    with pytest.raises(Unequal, match="7 trials, 6 attempts"):
        makespan.check_together(trials, 1, replace(outcome, spans=outcome.spans[:6]))
    short = [replace(s, end=s.start + 3600) if s.id in "abc" else s for s in outcome.spans]
    with pytest.raises(Unequal, match=r"a and others took 3600\.0 s"):
        makespan.check_together(trials, 1, replace(outcome, spans=short))
    mixed = [replace(t, fusion="other") if t.id == "c" else t for t in trials]
    with pytest.raises(Unequal, match="a, b, c have not one frozen encoder"):
        makespan.check_together(mixed, 1, outcome)
    both = simulate(trials, gpus(2), fuse=True)
    with pytest.raises(Unequal, match="more than 1 devices"):
        makespan.check_together(trials, 1, both)


def test_rows_cover_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makespan, "TABLE", ((44, 8),))
    monkeypatch.setattr(makespan, "FEW_TO_MANY", ((352, 8),))
    known, together, estimated, _ = makespan.run(rounds=2)
    assert (known["id"], known["unit"]) == ("R10", "h")
    assert known["case"] == "44 trials on 8 GPUs, durations known"
    assert estimated["case"] == "44 trials on 8 GPUs, durations estimated"
    # published for a simulation of the same sizes: 2.0 times, and within a few percent of the bound
    assert 1.5 < known["ratio"] < 3
    assert 0.97 < known["limit_share"] <= 1
    text = "352 trials on 8 GPUs, frozen ones together against alone, durations known"
    assert together["case"] == text
    # published for groups of four at the same size: 1.15 times
    assert 1.1 < together["ratio"] < 1.25
    assert 0.9 < together["limit_share"] <= 1
