"""Scores and what biases recover, against cases worked out by hand; scores that are no numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sharedenc.report.changes import METHODS, Scores
from sharedenc.report.collect import RunData, study_rows
from tests.report.study import run

NAN = float("nan")


def scores_of(*runs: RunData) -> Scores:
    return Scores(study_rows("written", runs, [], []))


def three(seed: int, base: float, frozen: float, bias: float) -> list[RunData]:
    """Baseline, share-frozen and share-bias of one seed; mIoU is 0.5 times the factor."""
    return [
        run("resnet18", "baseline", "none", "seg", seed=seed, factor=base),
        run("resnet18", "share", "frozen", "seg", seed=seed, factor=frozen),
        run("resnet18", "share", "bias", "seg", seed=seed, factor=bias),
    ]


def with_metric(made: RunData, name: str, value: float | None) -> RunData:
    metrics = {key: number for key, number in made.metrics.items() if key != name}
    return replace(made, metrics=metrics if value is None else {**metrics, name: value})


def test_recovery_of_one_seed_is_the_difference_of_the_changes() -> None:
    scores = scores_of(*three(0, base=1.0, frozen=0.75, bias=0.95))
    found = scores.recovery("resnet18", "share", "mIoU")
    assert found.value == pytest.approx(20.0)
    assert (found.runs, found.low, found.high, found.compared) == (1, None, None, True)


def test_recovery_is_paired_by_seed_in_percent_of_the_baselines_mean() -> None:
    # mIoU 0.40, 0.60: mean 0.50. Bias minus frozen: 0.10 and 0.20, so 20 and 40 percent of 0.50.
    scores = scores_of(*three(0, 0.8, 0.4, 0.6), *three(1, 1.2, 0.6, 1.0))
    assert scores.recovery_by_seed("resnet18", "share", "mIoU") == pytest.approx({0: 20, 1: 40})
    found = scores.recovery("resnet18", "share", "mIoU")
    # Mean 30, deviation 14.142, t(1) = 12.706: half width 127.06.
    assert found.value == pytest.approx(30.0)
    assert found.runs == 2
    assert (found.low, found.high) == pytest.approx((-97.06, 157.06), abs=0.01)


def test_recovery_without_a_common_seed_compares_means_and_says_so() -> None:
    runs = three(0, 1.0, 0.75, 0.95)
    runs[2] = run("resnet18", "share", "bias", "seg", seed=1, factor=0.95)
    found = scores_of(*runs).recovery("resnet18", "share", "mIoU")
    assert found.value == pytest.approx(20.0)
    assert (found.runs, found.apart) == (0, None)
    assert found.mark.startswith("unpaired: ")


def test_recovery_says_which_of_its_cells_is_missing() -> None:
    base, frozen, bias = three(0, 1.0, 0.75, 0.95)
    failed = run("resnet18", "share", "frozen", "seg", state="failed", reason="loss is NaN")
    for runs, why in (
        ([base, frozen], "no share-bias: not in this study"),
        ([base, failed, bias], "no share-frozen: failed: loss is NaN"),
        ([frozen, bias], "no baseline: not in this study"),
        ([with_metric(base, "test/mIoU", 0.0), frozen, bias], "the baseline scores 0"),
    ):
        assert scores_of(*runs).recovery("resnet18", "share", "mIoU").why == why


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (NAN, "NaN: the run's test/mIoU is not a number"),
        (float("inf"), "infinite: the run's test/mIoU is inf"),
        (None, "missing: the run has no test/mIoU"),
        (-1.0, "undefined: nothing in this data to score it on"),
    ],
)
def test_a_finished_trial_without_a_number_says_what_it_has_instead(
    value: float | None, why: str
) -> None:
    base, frozen, _ = three(0, 1.0, 0.75, 0.95)
    scores = scores_of(with_metric(base, "test/mIoU", value), frozen)
    assert scores.score("resnet18", METHODS[0], "mIoU").why == why
    assert scores.by_seed("resnet18", METHODS[0], "mIoU") == {}
    assert scores.change("resnet18", METHODS[3], "mIoU").why == f"no baseline: {why}"


def test_a_mean_without_some_of_its_seeds_says_which() -> None:
    runs = [run("resnet18", "dual", seed=seed, factor=1.0 + seed / 10) for seed in range(3)]
    runs[1] = with_metric(runs[1], "test/mAP", NAN)
    found = scores_of(*runs).score("resnet18", METHODS[5], "mAP")
    assert found.value == pytest.approx(0.22)
    assert found.runs == 2
    assert found.mark == ("without 1 of 3 seeds: seed 1 (NaN: the run's test/mAP is not a number)")


def test_parameters_that_were_not_logged_say_so() -> None:
    made = with_metric(run("resnet18", "dual"), "params/total", None)
    assert scores_of(made).parameters("resnet18", METHODS[5], "").why == (
        "missing: the run has no params/total"
    )
