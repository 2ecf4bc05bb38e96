"""Asynchronous successive halving within one cell."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.brackets import Bracket, Cut, Decision, Ladder, default_rungs

LADDER = Ladder(rungs=(1, 2), factor=2)


def test_the_worse_half_is_cut_at_a_rung() -> None:
    bracket = Bracket(LADDER)
    assert bracket.report("a", 1, 0.5) is None  # the first has nobody to lose to
    assert bracket.report("b", 1, 0.4) == (
        "cut at epoch 1: 1 of 2 trials had a better score: 0.5 against 0.4"
    )
    assert bracket.report("c", 1, 0.6) is None
    assert bracket.report("d", 1, 0.55) is None  # second of four
    assert bracket.report("c", 2, 0.7) is None
    assert bracket.report("d", 2, 0.1) is not None


def test_best_so_far_counts_and_epochs_between_rungs_decide_nothing() -> None:
    bracket = Bracket(Ladder(rungs=(2,), factor=2))
    assert bracket.report("a", 1, 0.9) is None
    assert bracket.report("a", 2, 0.1) is None
    assert bracket.report("b", 1, 0.2) is None
    assert bracket.report("b", 2, 0.5) is not None  # 0.9 stands, although a's last was 0.1


def test_a_trial_that_ended_early_stands_in_all_higher_rungs() -> None:
    bracket = Bracket(LADDER)
    bracket.report("fast", 1, 0.8)
    bracket.finish("fast", 1)
    assert bracket.report("slow", 1, 0.9) is None
    assert bracket.report("slow", 2, 0.9) is None
    other = Bracket(LADDER)
    other.report("fast", 1, 0.8)
    other.finish("fast", 1)
    other.report("slow", 1, 0.8)
    assert other.report("third", 2, 0.7) is not None


def test_equal_and_undefined_scores() -> None:
    bracket = Bracket(LADDER)
    assert all(bracket.report(name, 1, 0.0) is None for name in "abcd")
    assert bracket.report("e", 1, math.nan) is not None


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_best_trial_of_a_cell_is_never_cut(scores: list[float]) -> None:
    bracket = Bracket(LADDER)
    best = max(scores)
    for i, score in enumerate(scores):
        cut = bracket.report(str(i), 1, score)
        assert not (cut and score == best)


@given(score=st.floats(0, 1), count=st.integers(1, 20))
def test_all_go_on_when_all_are_equal(score: float, count: int) -> None:
    bracket = Bracket(LADDER)
    for epoch in (1, 2):
        assert not any(bracket.report(str(i), epoch, score) for i in range(count))


def test_a_resumed_trial_is_not_judged_again_and_stays_cut_where_it_was() -> None:
    bracket = Bracket(LADDER)
    bracket.report("a", 1, 0.5)
    cut = bracket.report("b", 1, 0.4)
    bracket.report("c", 1, 0.9)
    bracket.report("d", 1, 0.8)
    assert bracket.report("a", 1, 0.5) is None
    assert bracket.report("b", 1, 0.4) == cut
    assert len(bracket.decisions) == 4


def test_what_an_earlier_invocation_trained_is_compared_with_and_never_cut() -> None:
    bracket = Bracket(LADDER)
    bracket.replay("poor", [(1, 0.1)], finished=False)
    bracket.replay("good", [(1, 0.8), (2, 0.7)], finished=False)
    bracket.replay("fast", [(1, 0.6)], finished=True)
    assert bracket.decisions == []
    assert bracket.report("new", 1, 0.7) is None  # second of four
    assert bracket.report("other", 1, 0.5) is not None
    assert bracket.report("new", 2, 0.7) is not None  # good has 0.8, fast stands with 0.6
    assert bracket.decisions[-1].against == (0.8, 0.6)


def test_a_decision_tells_what_it_compared_and_its_reason_can_be_read_again() -> None:
    bracket = Bracket(Ladder(rungs=(3,), factor=3))
    for name, score in (("a", 0.25), ("b", 0.75), ("c", 0.5)):
        bracket.report(name, 3, score)
    assert bracket.decisions[-1] == Decision(
        trial="c", epoch=3, score=0.5, against=(0.75, 0.25), cut=True
    )
    reason = bracket.decisions[-1].reason
    assert Cut.parse(reason) == Cut(epoch=3, trials=3, score=0.5, better=(0.75,))
    assert bracket.decisions[0].reason == ""
    assert Cut.parse("stopped by Ctrl-C") is None


@given(
    scores=st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=8),
    own=st.floats(-1e4, 1e4, width=16) | st.just(-math.inf),
)
def test_every_cut_can_be_read_from_its_reason(scores: list[float], own: float) -> None:
    decision = Decision(trial="t", epoch=7, score=own, against=tuple(scores), cut=True)
    cut = Cut.parse(decision.reason)
    if not decision.better:
        assert cut is None
        return
    assert cut is not None
    assert (cut.epoch, cut.trials) == (7, len(scores) + 1)
    assert cut.score == pytest.approx(own, rel=1e-5)
    assert cut.better == pytest.approx(decision.better, rel=1e-5)


@given(epochs=st.integers(1, 1000), factor=st.integers(2, 4), patience=st.integers(0, 20))
def test_no_rung_comes_before_the_plateau_can_have_cut(
    epochs: int, factor: int, patience: int
) -> None:
    rungs = default_rungs(epochs, factor, patience)
    assert list(rungs) == sorted(set(rungs))
    assert all(1 <= rung < epochs for rung in rungs)
    # On a flat loss the rate is cut after epoch patience + 2 (methods, section 7, test 6).
    if rungs and epochs > patience + 3:
        assert rungs[0] > patience + 2
    if epochs >= factor * (2 * patience + 4):
        assert rungs[0] >= 2 * patience + 2


def test_rungs_follow_the_budget() -> None:
    assert default_rungs(4, 2) == (1, 2)
    assert default_rungs(1000, 3) == (24, 72, 216, 648)
    assert default_rungs(1, 2) == ()
    assert default_rungs(36, 2) == (13, 26)
    assert default_rungs(12, 2, patience=3) == (6,)
    assert default_rungs(120, 2, scheduler="cosine") == (60,)
    assert default_rungs(1000, 2, scheduler="constant") == (24, 48, 96, 192, 384, 768)
