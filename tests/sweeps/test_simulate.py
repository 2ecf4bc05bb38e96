"""The policy on a virtual clock: bounds of the published table, faults, and hand-worked cases."""

from __future__ import annotations

import json
import math
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
from sweeps.simulate import (
    Chance,
    Outcome,
    Virtual,
    gpus,
    simulate,
    summary,
    workload,
)

SMALL = [(44, 8), (352, 8), (352, 32), (1056, 32), (1056, 128)]
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
    """The three rules, from the spans alone."""
    by_id = {t.id: t for t in trials}
    ends = {span.id: span.end for span in outcome.spans if span.final}
    for span in outcome.spans:
        for other in (*by_id[span.id].needs, *by_id[span.id].after):
            assert ends[other] <= span.start + 1e-9, "started too early"
    times = sorted({span.start for span in outcome.spans} | {s.end for s in outcome.spans})
    starts = {t.id: [s.start for s in outcome.spans if s.id == t.id] for t in trials}
    for now, later in pairwise(times):
        busy = sum(1 for s in outcome.spans if s.start <= now and s.end >= later)
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
    row = summary(trials, devices, seeds=20, durations="known")
    assert row["ratio_to_bound_max"] <= 1.03


@pytest.mark.parametrize(("trials", "devices"), SMALL)
def test_estimates_come_within_eight_percent_of_the_bound(trials: int, devices: int) -> None:
    row = summary(trials, devices, seeds=20, durations="estimated")
    assert row["ratio_to_bound"] <= 1.08


@pytest.mark.slow
@pytest.mark.parametrize(("trials", "devices"), LARGE)
@pytest.mark.parametrize(("durations", "limit"), [("known", 1.03), ("estimated", 1.08)])
def test_the_largest_sweeps_too(trials: int, devices: int, durations: str, limit: float) -> None:
    row = summary(trials, devices, seeds=20, durations=durations)  # type: ignore[arg-type]
    assert row["ratio_to_bound_max" if durations == "known" else "ratio_to_bound"] <= limit


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
