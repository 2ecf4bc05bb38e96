"""Ends of a value's range: the value that sorting puts there, whatever the map looks like."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sharedenc.export.calibrate import PERCENTILE, SAMPLE, _extent, _from_below


def by_sorting(value: NDArray[np.float32]) -> tuple[float, float]:
    flat = value.ravel()
    ordered = np.sort(flat[:: (flat.size // SAMPLE) | 1])
    skip = int(ordered.size * (100 - PERCENTILE) / 100)
    return float(ordered[skip]), float(ordered[-1 - skip])


def as_is(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return value


def relu(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(value, 0)


def relu6(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(3 * value, 0, 6)


def rounded(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return value.round(1)


def rising(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sort(value.ravel())


@pytest.mark.parametrize("kind", [as_is, relu, relu6, rounded, rising])
@pytest.mark.parametrize("shape", [(1, 64, 80, 80), (1, 21, 320, 320), (1, 960, 10, 10), (50,)])
def test_the_ends_are_those_of_sorting(kind: object, shape: tuple[int, ...]) -> None:
    value = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    value = kind(value)  # type: ignore[operator]
    assert _extent(value) == by_sorting(value)


@pytest.mark.parametrize("count", [1, 5, 26, 27, 1000])
def test_values_that_are_not_finite_are_found_as_by_sorting(count: int) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        value = np.random.default_rng(2).standard_normal(SAMPLE, dtype=np.float32)
        value[:: SAMPLE // count][:count] = bad
        for ours, theirs in zip(_extent(value), by_sorting(value), strict=True):
            assert ours == theirs or (math.isnan(ours) and math.isnan(theirs))


@given(
    st.lists(st.integers(-4, 4), min_size=600, max_size=900),
    st.integers(0, 4),
)
def test_ties_are_no_trouble(values: list[int], rank: int) -> None:
    flat = np.array(values, np.float32)
    assert _from_below(flat, rank) == sorted(values)[rank]
