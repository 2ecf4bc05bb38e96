"""The policy on a virtual clock: bounds of the published table, faults, and hand-worked cases."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedenc.cli.simulate import simulate as command
from sharedenc.errors import SpecError
from sharedenc.spec import Cell, Recipe
from sweeps.faults import Rules
from sweeps.order import Demand, Machine
from sweeps.resources import GIB, MEMBER_BYTES
from sweeps.simulate import (
    Chance,
    Outcome,
    Virtual,
    fused_bound,
    gpus,
    simulate,
    summary,
    workload,
)

SMALL = [
    (44, 8),
    (352, 8),
    (352, 32),
    pytest.param(1056, 32, marks=pytest.mark.slow),
    pytest.param(1056, 128, marks=pytest.mark.slow),
]
LARGE = [(4400, 128), (4400, 512)]
CELL = Cell.parse("resnet18/dual")


def trial(name: str, seconds: float, after: tuple[str, ...] = (), **more: object) -> Virtual:
    return Virtual(
        id=name,
        cell=CELL,
        recipe=Recipe(),
        epochs=1,
        epoch_s=seconds,
        after=after,
        **more,  # type: ignore[arg-type]
    )


@st.composite
def sweeps(draw: st.DrawFn) -> list[Virtual]:
    made = []
    for i in range(draw(st.integers(1, 12))):
        before = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        needs = {n for n in before if draw(st.booleans())}
        made.append(
            trial(
                str(i),
                draw(st.floats(1, 5000)),
                after=tuple(str(n) for n in sorted(before - needs)),
                needs=tuple(str(n) for n in sorted(needs)),
                demand=Demand(cpus=1, gpus=1),
            )
        )
    return made


def check(trials: list[Virtual], devices: int, outcome: Outcome) -> None:
    """The three rules, from the spans alone; a group is one trial to its device."""
    by_id = {t.id: t for t in trials}
    ends = {span.id: span.end for span in outcome.spans if span.final}
    for span in outcome.spans:
        for other in (*by_id[span.id].needs, *by_id[span.id].after):
            assert ends[other] <= span.start + 1e-9, "started too early"
    times = sorted({span.start for span in outcome.spans} | {s.end for s in outcome.spans})
    starts = {t.id: [s.start for s in outcome.spans if s.id == t.id] for t in trials}
    for now, later in pairwise(times):
        busy = len({s.group for s in outcome.spans if s.start <= now and s.end >= later})
        assert busy <= devices, "more trials than devices"
        if busy < devices:
            for t in trials:
                before = (*t.needs, *t.after)
                ready = all(ends.get(n, math.inf) <= now for n in before)
                first = min(starts[t.id], default=math.inf)
                assert not (ready and first > now), f"{t.id} waits beside an idle device"


@settings(max_examples=60, deadline=None)
@given(trials=sweeps(), devices=st.integers(1, 4))
def test_rules_hold_on_any_graph(trials: list[Virtual], devices: int) -> None:
    outcome = simulate(trials, gpus(devices))
    check(trials, devices, outcome)
    ends: dict[str, float] = {}
    for t in trials:
        ends[t.id] = t.seconds + max((ends[n] for n in (*t.needs, *t.after)), default=0.0)
    chain, work = max(ends.values()), sum(t.seconds for t in trials)
    assert outcome.makespan <= work / devices + chain + 1e-6
    assert outcome.makespan >= max(work / devices, chain) - 1e-6
    assert outcome.bound == pytest.approx(max(work / devices, chain))


@settings(max_examples=40, deadline=None)
@given(trials=sweeps(), devices=st.integers(1, 4), seed=st.integers(0, 99))
def test_rules_hold_with_machine_faults(trials: list[Virtual], devices: int, seed: int) -> None:
    rules = Rules(machine_attempts=30, backoff_s=0.0)
    chance = Chance(failures=0.3, checkpoint_s=50)
    outcome = simulate(trials, gpus(devices), chance=chance, rules=rules, seed=seed)
    assert sorted(s.id for s in outcome.spans if s.final) == sorted(t.id for t in trials)
    check(trials, devices, outcome)
    # What an attempt loses is at most what it did since its last checkpoint.
    spent = sum(span.end - span.start for span in outcome.spans)
    assert spent <= sum(t.seconds for t in trials) + 50 * outcome.retries + 1e-6


def test_a_failed_trial_holds_up_what_needs_it_and_nothing_else() -> None:
    trials = [
        trial("base", 100),
        trial("swap", 10, needs=("base",)),
        trial("after", 10, after=("base",)),
        trial("free", 10),
    ]
    rules = Rules(machine_attempts=2, backoff_s=1.0)
    outcome = simulate(trials, [Machine(cpus=1)], chance=Chance(failures=1.0), rules=rules)
    assert set(outcome.failed) == {"base", "after", "free"}
    assert outcome.skipped == ("swap",)
    assert outcome.retries == 3


def test_a_retry_waits_for_its_back_off_and_goes_on_from_its_checkpoint() -> None:
    rules = Rules(machine_attempts=50, backoff_s=40.0, backoff_max_s=40.0)
    chance = Chance(failures=0.5, checkpoint_s=10)
    outcome = simulate([trial("only", 1000)], gpus(1), chance=chance, rules=rules, seed=3)
    assert outcome.retries > 0
    left = 1000.0
    for attempt, following in pairwise(outcome.spans):
        assert following.start == pytest.approx(attempt.end + 40)
        left -= (attempt.end - attempt.start) // 10 * 10
    last = outcome.spans[-1]
    assert last.end - last.start == pytest.approx(left)


def test_the_workload_is_the_grid_with_more_rates() -> None:
    trials = workload(352, seed=0)
    assert len({t.id for t in trials}) == 352
    swap = next(t for t in trials if t.cell.name == "densenet121/swap-bias/seg")
    assert swap.after == tuple(f"densenet121/baseline/det #{i}" for i in range(8))
    assert all(t.epochs >= 20 for t in trials)
    # 22.0 GFLOP an image (counted), 90,515 images, 20 TFLOP/s
    base = next(t for t in trials if t.cell.name == "resnet18/baseline/det")
    assert base.epoch_s == pytest.approx(22.0e9 * 90_515 / 20e12, rel=0.03)
    assert workload(352, seed=0) == trials
    assert workload(352, seed=1) != trials


def test_stragglers_and_early_stops_are_as_many_as_asked_for() -> None:
    plain = workload(1056, seed=0)
    slow = workload(1056, seed=0, chance=Chance(stragglers=1.0))
    assert all(s.epoch_s == 2 * p.epoch_s for s, p in zip(slow, plain, strict=True))
    early = workload(1056, seed=0, chance=Chance(early_stops=0.5))
    assert 0.4 < sum(t.epochs == 24 for t in early) / 1056 < 0.6


@pytest.mark.parametrize(("trials", "devices"), SMALL)
def test_known_durations_come_within_three_percent_of_the_bound(trials: int, devices: int) -> None:
    row = summary(trials, devices, seeds=20, durations="known", fuse="off")
    assert row["ratio_to_bound_max"] <= 1.03


@pytest.mark.parametrize(("trials", "devices"), SMALL)
def test_estimates_come_within_eight_percent_of_the_bound(trials: int, devices: int) -> None:
    row = summary(trials, devices, seeds=20, durations="estimated", fuse="off")
    assert row["ratio_to_bound"] <= 1.08


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("trials", "devices"), LARGE)
@pytest.mark.parametrize(("durations", "limit"), [("known", 1.03), ("estimated", 1.08)])
def test_the_largest_sweeps_too(trials: int, devices: int, durations: str, limit: float) -> None:
    row = summary(trials, devices, seeds=20, durations=durations, fuse="off")  # type: ignore[arg-type]
    assert row["ratio_to_bound_max" if durations == "known" else "ratio_to_bound"] <= limit


@pytest.mark.parametrize(
    ("trials", "devices"),
    [(44, 1), (88, 8), (352, 8), (352, 32), pytest.param(1056, 32, marks=pytest.mark.slow)],
)
def test_frozen_trials_together_end_sooner_on_few_devices(trials: int, devices: int) -> None:
    row = summary(trials, devices, seeds=10)
    assert row["fused_speedup_min"] >= 1.0
    assert row["fused_speedup"] >= 1.02
    assert row["groups"] > 0
    assert row["fused_makespan_h"] < row["makespan_h"]  # type: ignore[operator]
    assert 0 < row["device_hours_saved"] < 0.2  # type: ignore[operator]


@pytest.mark.parametrize(
    ("trials", "devices"),
    [
        (44, 44),
        (88, 16),
        pytest.param(352, 48, marks=pytest.mark.slow),
        pytest.param(1056, 128, marks=pytest.mark.slow),
    ],
)
def test_frozen_trials_together_are_never_later_on_many_devices(trials: int, devices: int) -> None:
    row = summary(trials, devices, seeds=20)
    assert row["fused_speedup_min"] >= 1 - 1e-9
    estimated = summary(trials, devices, seeds=20, durations="estimated")
    assert estimated["fused_speedup"] >= 1 - 1e-9  # type: ignore[operator]
    assert estimated["fused_speedup_min"] >= 0.97  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.long
def test_the_largest_sweeps_are_not_longer_for_it() -> None:
    row = summary(4400, 512, seeds=3)
    assert row["fused_speedup_min"] >= 1 - 1e-9
    assert summary(4400, 128, seeds=3)["fused_speedup_min"] > 1.1


def test_a_device_for_each_trial_leaves_every_trial_alone() -> None:
    trials = workload(88, seed=0)
    apart = simulate(trials, gpus(88))
    assert simulate(trials, gpus(88), fuse=True) == apart
    assert {len(group) for group in apart.groups} == {1}


def frozen(name: str, seconds: float, key: str = "k", **more: object) -> Virtual:
    return trial(name, seconds, fusion=key, shared=0.8, demand=Demand(cpus=1, gpus=1), **more)


def test_a_group_on_one_device_by_hand() -> None:
    trials = [frozen("long", 100), frozen("short", 50), frozen("other", 40, key="l")]
    outcome = simulate(trials, gpus(1), fuse=True)
    found = {span.id: (span.start, span.end) for span in outcome.spans}
    # The short one is through at half of the long one's way: 40 + 10 and half of 20 seconds.
    assert found == {
        "long": (0.0, pytest.approx(110)),
        "short": (0.0, pytest.approx(60)),
        "other": (pytest.approx(110), pytest.approx(150)),
    }
    assert outcome.device_s == pytest.approx(150)
    assert outcome.bound == pytest.approx(190)
    assert fused_bound(trials, 1) == pytest.approx(150)


def sizes(outcome: Outcome) -> list[int]:
    return [len(group) for group in outcome.groups]


def test_a_group_is_as_wide_as_its_narrowest_member() -> None:
    trials = [frozen(str(i), 100) for i in range(5)]
    assert sizes(simulate(trials, gpus(1), fuse=True)) == [5]
    narrow = [replace(t, width=2) for t in trials]
    assert sizes(simulate(narrow, gpus(1), fuse=True)) == [2, 2, 1]
    assert sizes(simulate([*trials[:4], narrow[4]], gpus(1), fuse=True)) == [4, 1]


def test_members_need_memory_where_it_is_known() -> None:
    demand = Demand(cpus=1, gpus=1, memory=GIB)
    trials = [replace(frozen(str(i), 100), demand=demand, asked=GIB) for i in range(4)]

    def machine(devices: int, memory: int) -> list[Machine]:
        return [Machine(cpus=devices, gpus=devices, memory=memory)]

    assert sizes(simulate(trials, machine(1, 2 * GIB), fuse=True)) == [4]
    assert sizes(simulate(trials, machine(1, GIB + MEMBER_BYTES), fuse=True)) == [2, 2]
    # A demand that was fitted to a machine may hold more than its trial asked for.
    less = [replace(t, asked=GIB - 2 * MEMBER_BYTES) for t in trials]
    assert sizes(simulate(less, machine(1, GIB), fuse=True)) == [3, 1]
    # Two start at once, and what is left of their machine is there once.
    both = simulate(trials, machine(2, 2 * GIB + MEMBER_BYTES), fuse=True)
    assert sorted(map(len, both.groups[:2])) == [1, 2]
    assert sorted(span.id for span in both.spans) == ["0", "1", "2", "3"]


@settings(max_examples=60, deadline=None)
@given(trials=sweeps(), devices=st.integers(1, 4), keys=st.lists(st.integers(0, 2), min_size=12))
def test_rules_hold_with_groups_on_any_graph(
    trials: list[Virtual], devices: int, keys: list[int]
) -> None:
    trials = [
        replace(t, fusion=f"key {key}", shared=0.7) if key else t
        for t, key in zip(trials, keys, strict=False)
    ]
    outcome = simulate(trials, gpus(devices), fuse=True)
    assert sorted(span.id for span in outcome.spans) == sorted(t.id for t in trials)
    by_id = {t.id: t for t in trials}
    for group in outcome.groups:
        assert len({by_id[span.id].fusion for span in group}) == 1
        assert len({(span.start, span.place) for span in group}) == 1
        # Never longer than one after the other, and nobody faster than alone.
        took = max(span.end for span in group) - group[0].start
        assert took <= sum(by_id[span.id].seconds for span in group) + 1e-6
        for span in group:
            assert span.end - span.start >= by_id[span.id].seconds - 1e-6
    check(trials, devices, outcome)
    assert outcome.makespan >= fused_bound(trials, devices) - 1e-6


def test_a_lost_group_goes_on_one_by_one_from_its_checkpoints() -> None:
    rules = Rules(machine_attempts=50, backoff_s=0.0)
    chance = Chance(failures=0.6, checkpoint_s=10)
    trials = [frozen(str(i), 100 + 20 * i) for i in range(4)]
    outcome = simulate(trials, gpus(1), chance=chance, rules=rules, seed=1, fuse=True)
    first, *later = outcome.groups
    assert len(first) == 4
    # Two are through when the device fails; what is left of the others is made alone.
    assert sorted(span.id for span in first if span.final) == ["0", "1"]
    assert {len(group) for group in later} == {1}
    assert sorted(span.id for span in outcome.spans if span.final) == ["0", "1", "2", "3"]
    # What a fault loses is at most ten seconds of each that ran.
    alone = sum(t.seconds for t in trials)
    assert outcome.device_s <= alone + 10 * outcome.retries + 1e-6


def test_estimates_that_learn_beat_the_model_alone() -> None:
    class Stubborn:
        """The model of operations, and deaf to what is measured."""

        def __init__(self, trials: list[Virtual]) -> None:
            from sweeps.estimates import Estimates
            from sweeps.simulate import IMAGES

            self.works_at_first = Estimates(trials, IMAGES, device="cuda").expected()

        def expected(self) -> dict[str, float]:
            return self.works_at_first

        def observe(self, *what: object) -> None: ...

        def finished(self, *what: object) -> None: ...

        def works(self) -> dict[str, float]:
            return {}

    def mean(learning: bool) -> float:
        ratios = []
        for seed in range(20):
            trials = workload(352, seed)
            given = None if learning else Stubborn(trials)
            outcome = simulate(
                trials,
                gpus(32),
                durations="estimated",
                estimates=given,  # type: ignore[arg-type]
            )
            ratios.append(outcome.ratio)
        return sum(ratios) / 20

    assert mean(learning=True) < mean(learning=False)


def test_nodes_of_any_size() -> None:
    assert gpus(12, 8) == [Machine(cpus=8, gpus=8), Machine(cpus=4, gpus=4)]
    with pytest.raises(SpecError, match="gpus=0 must be at least 1"):
        gpus(0)
    with pytest.raises(SpecError, match="trials=0 must be at least 1"):
        workload(0, 0)
    with pytest.raises(SpecError, match=r"failures=1\.5 must be a probability"):
        Chance(failures=1.5)


def test_the_command_prints_one_object() -> None:
    args = ["--gpus", "8", "--trials", "44", "--seeds", "3", "--durations", "estimated", "--json"]
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 0
    row = json.loads(result.stdout)
    assert {
        "trials",
        "devices",
        "seeds",
        "bound_h",
        "makespan_h",
        "ratio_to_bound",
        "durations",
    } <= (row.keys())
    assert (row["trials"], row["devices"], row["seeds"]) == (44, 8, 3)
    assert row["makespan_h"] == pytest.approx(row["bound_h"], rel=0.5)
    assert 1 <= row["ratio_to_bound"] <= row["ratio_to_bound_max"]


def test_the_command_prints_a_table() -> None:
    args = ["--gpus", "8", "--trials", "44", "--seeds", "2", "--failures", "0.2"]
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 0
    assert "44 trials on 8 GPUs, 2 seeds, durations known" in result.stdout
    assert "makespan / bound" in result.stdout
    refused = CliRunner().invoke(command, ["--gpus", "0", "--trials", "44"])
    assert refused.exit_code == 2
