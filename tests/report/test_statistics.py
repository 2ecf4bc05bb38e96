"""Seeds' statistics against published quantiles and cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from sharedenc.report.statistics import deviation, of_differences, paired, t_quantile


# Printed tables of Student's t, two-sided (Abramowitz & Stegun, table 26.10; NIST/SEMATECH
# 1.3.6.7.2), three decimals.
@pytest.mark.parametrize(
    ("freedom", "confidence", "printed"),
    [
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (3, 0.95, 3.182),
        (4, 0.95, 2.776),
        (5, 0.95, 2.571),
        (9, 0.95, 2.262),
        (10, 0.95, 2.228),
        (29, 0.95, 2.045),
        (30, 0.95, 2.042),
        (100, 0.95, 1.984),
        (1, 0.99, 63.657),
        (2, 0.99, 9.925),
        (7, 0.99, 3.499),
        (4, 0.90, 2.132),
        (10, 0.80, 1.372),
    ],
)
def test_quantiles_are_the_printed_ones(freedom: int, confidence: float, printed: float) -> None:
    assert t_quantile(freedom, confidence) == pytest.approx(printed, abs=6e-4)


def test_one_and_two_degrees_of_freedom_have_a_closed_form() -> None:
    # Cauchy: tan(pi c / 2). Two: c sqrt(2 / (1 - c^2)).
    for confidence in (0.5, 0.9, 0.95, 0.999):
        assert t_quantile(1, confidence) == pytest.approx(math.tan(math.pi * confidence / 2))
        two = confidence * math.sqrt(2 / (1 - confidence**2))
        assert t_quantile(2, confidence) == pytest.approx(two)


def test_many_degrees_of_freedom_come_to_the_normal_distribution() -> None:
    assert t_quantile(20_000) == pytest.approx(1.959964, abs=2e-4)


@pytest.mark.parametrize(("freedom", "confidence"), [(0, 0.95), (2, 0.0), (2, 1.0)])
def test_what_has_no_quantile_is_named(freedom: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=f"{freedom} and confidence {confidence}"):
        t_quantile(freedom, confidence)


def test_the_standard_deviation_divides_by_one_less() -> None:
    assert deviation([1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert deviation([0.0, 2.0]) == pytest.approx(math.sqrt(2))
    assert deviation([5.0]) is None


def test_a_paired_difference_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, half width 4.303 / sqrt(3) = 2.484.
    found = paired({0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found is not None
    assert (found.mean, found.pairs) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((-0.484, 4.484), abs=1e-3)
    assert found.apart is False


def test_seeds_that_move_both_sides_alike_cancel() -> None:
    # The scores scatter by 20, the differences by 0.1: told apart, which two means are not.
    found = paired({0: 11.0, 1: 21.1, 2: 30.9}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found is not None
    assert found.mean == pytest.approx(1.0)
    assert (found.low, found.high) == pytest.approx((1 - 0.2484, 1 + 0.2484), abs=1e-4)
    assert found.apart is True


def test_only_seeds_of_both_sides_count() -> None:
    found = paired({0: 3.0, 1: 5.0, 7: 99.0}, {1: 1.0, 0: 1.0, 8: -99.0})
    assert found is not None
    assert (found.mean, found.pairs) == (3.0, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_pair_has_no_interval_and_tells_nothing() -> None:
    found = paired({4: 2.0}, {4: 1.0})
    assert found is not None
    assert (found.mean, found.pairs, found.low, found.high) == (1.0, 1, None, None)
    assert found.apart is None


def test_equal_trials_are_not_told_apart_and_a_constant_shift_is() -> None:
    assert of_differences([0.0, 0.0]).apart is False
    assert of_differences([0.25, 0.25, 0.25]).apart is True


def test_scaling_changes_the_unit_and_not_the_verdict() -> None:
    found = of_differences([1.0, 2.0, 3.0]).scaled(50.0)
    assert (found.mean, found.low, found.high) == pytest.approx((100, -24.2, 224.2), abs=0.1)
    assert of_differences([2.0]).scaled(50.0).low is None
