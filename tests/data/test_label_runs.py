"""Label maps as runs: what goes in comes out, and damage is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedenc.data.label_runs import from_runs, to_runs


def stored(label_map: np.ndarray) -> np.ndarray:
    return np.frombuffer(to_runs(label_map), np.uint8)


def test_the_stored_form_is_lengths_then_labels() -> None:
    label_map = np.array([[0, 0, 7], [7, 255, 0]], np.uint8)
    assert to_runs(label_map) == bytes([2, 0, 2, 0, 1, 0, 1, 0]) + bytes([0, 7, 255, 0])


@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 300),
    width=st.integers(1, 700),
    kinds=st.integers(1, 4),
    coarse=st.integers(1, 200),
)
def test_every_map_comes_back(seed: int, height: int, width: int, kinds: int, coarse: int) -> None:
    rng = np.random.default_rng(seed)
    small = rng.choice(np.array([0, 1, 20, 255], np.uint8)[:kinds], (height // coarse + 1, 3))
    label_map = np.repeat(np.repeat(small, coarse, 0), width // 3 + 1, 1)[:height, :width]
    found = from_runs(stored(label_map), height, width)
    assert (found.dtype, found.shape) == (np.uint8, (height, width))
    assert np.array_equal(found, label_map)
    found[0, 0] = 9  # in memory of its own


@pytest.mark.parametrize("pixels", [65535, 65536, 131070, 131071])
def test_a_run_may_be_longer_than_its_number(pixels: int) -> None:
    label_map = np.full((1, pixels), 3, np.uint8)
    assert len(to_runs(label_map)) == 3 * -(-pixels // 65535)
    assert np.array_equal(from_runs(stored(label_map), 1, pixels), label_map)


@pytest.mark.parametrize("damage", ["shorter", "longer", "zeroed", "other size"])
def test_runs_that_do_not_fill_the_map_are_refused(damage: str) -> None:
    data = stored(np.arange(12, dtype=np.uint8).reshape(3, 4))
    height = 3
    if damage == "shorter":
        data = data[:-1]
    elif damage == "longer":
        data = np.concatenate([data, data[:3]])
    elif damage == "zeroed":
        data = np.zeros_like(data)
    else:
        height = 4
    with pytest.raises(ValueError, match=f"do not fill 4x{height} pixels"):
        from_runs(data, height, 4)
