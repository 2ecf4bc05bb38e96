"""Rates that are proposed: spread over the range, then by TPE; the same ones every time."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.proposals import Proposer, Told

PROPOSER = Proposer(search="s", seed=0, low=1e-5, high=1e-2, likely=8e-4)


def landscape(lr: float) -> float:
    """Best at 3e-3, falling with the distance in decades."""
    return -abs(math.log10(lr / 3e-3))


def one_by_one(proposer: Proposer, count: int) -> list[Told]:
    told: list[Told] = []
    for number in range(count):
        lr = proposer.propose(number, told)
        told.append(Told(lr=lr, value=landscape(lr)))
    return told


def test_one_trial_at_a_time_proposes_the_same_rates_twice_and_others_for_another_seed() -> None:
    rates = [item.lr for item in one_by_one(PROPOSER, 12)]
    assert rates == [item.lr for item in one_by_one(PROPOSER, 12)]
    assert rates[0] == 8e-4  # the likely one
    other = Proposer(search="s", seed=1, low=1e-5, high=1e-2, likely=8e-4)
    assert not set(rates[1:]) & {item.lr for item in one_by_one(other, 12)}


def test_an_interrupted_search_goes_on_as_if_it_had_not_been() -> None:
    whole = one_by_one(PROPOSER, 10)
    assert PROPOSER.propose(9, whole[:9]) == whole[9].lr


def test_results_draw_the_proposals_towards_what_is_good() -> None:
    told = one_by_one(PROPOSER, 16)
    late = [landscape(item.lr) for item in told[8:]]
    early = [landscape(item.lr) for item in told[:8]]
    assert sum(late) / len(late) > sum(early) / len(early)
    assert max(late) > -0.2  # within a factor of 1.6 of the best rate


def test_the_first_rates_spread_over_the_whole_range_also_when_all_start_at_once() -> None:
    told: list[Told] = []
    for number in range(8):
        told.append(Told(lr=PROPOSER.propose(number, told)))
    decades = sorted(math.log10(item.lr) for item in told)
    assert {math.floor(decade) for decade in decades} == {-5, -4, -3}
    assert max(b - a for a, b in itertools.pairwise(decades)) < 1


@pytest.mark.parametrize("likely", [None, 0.5])
def test_without_a_likely_rate_in_the_range_the_first_one_is_spread_too(
    likely: float | None,
) -> None:
    proposer = Proposer(search="s", seed=0, low=1e-5, high=1e-2, likely=likely)
    assert 1e-5 <= proposer.propose(0, []) <= 1e-2
    assert proposer.propose(0, []) == proposer.first


results = st.one_of(
    st.builds(Told, lr=st.floats(1e-5, 1e-2)),
    st.builds(Told, lr=st.floats(1e-5, 1e-2), value=st.floats(-1, 1)),
    st.builds(Told, lr=st.floats(1e-5, 1e-2), value=st.floats(-1, 1), cut_at=st.integers(1, 1000)),
)


@settings(max_examples=40, deadline=None)
@given(number=st.integers(1, 50), told=st.lists(results, max_size=12))
def test_proposals_lie_in_the_range_and_nobody_has_them(number: int, told: list[Told]) -> None:
    lr = PROPOSER.propose(number, told)
    assert 1e-5 <= lr <= 1e-2
    assert lr not in {item.lr for item in told}
    assert lr == float(f"{lr:.2e}"), "three significant digits"


def test_rates_stay_apart_where_the_range_is_narrow() -> None:
    narrow = Proposer(search="s", seed=0, low=1e-3, high=1.05e-3)
    rates = [item.lr for item in one_by_one(narrow, 5)]
    assert len(set(rates)) == 5
