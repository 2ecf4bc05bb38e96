"""Asynchronous successive halving within one cell."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sweeps.brackets import Bracket, Ladder

LADDER = Ladder(rungs=(1, 2), factor=2)


def test_the_worse_half_is_cut_at_a_rung() -> None:
    bracket = Bracket(LADDER)
    assert bracket.report("a", 1, 0.5) is None  # the first has nobody to lose to
    assert bracket.report("b", 1, 0.4) == "cut at epoch 1: 1 of 2 trials had a better score"
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
