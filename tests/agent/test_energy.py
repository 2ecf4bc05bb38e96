"""Energy against numpy's trapezoid rule and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetson_agent.energy import PowerCurve, mj_per_inference

STEPS = st.lists(
    st.tuples(st.floats(0.0, 2.0, width=32), st.floats(0.0, 100.0, width=32)),
    min_size=2,
    max_size=30,
)


def curve(steps: list[tuple[float, float]]) -> list[tuple[float, float]]:
    times = np.cumsum([step for step, _ in steps])
    return [(float(t), w) for t, (_, w) in zip(times, steps, strict=True)]


@given(steps=STEPS)
def test_the_whole_energy_is_that_of_the_trapezoid_rule(steps: list[tuple[float, float]]) -> None:
    points = curve(steps)
    times, watts = np.array(points).T
    expected = float(np.sum(np.diff(times) * (watts[1:] + watts[:-1]) / 2))
    assert PowerCurve(points).energy_j() == pytest.approx(expected, abs=1e-9)


@given(steps=STEPS, share=st.floats(0.0, 1.0))
def test_no_stretch_holds_more_than_the_peak_or_less_than_the_mean(
    steps: list[tuple[float, float]], share: float
) -> None:
    points = curve(steps)
    power = PowerCurve(points)
    length_s = share * power.length_s
    found = power.busiest_j(length_s)
    assert found <= max(w for _, w in points) * length_s + 1e-6
    # The busiest of the stretches that start at a sample or end at the last one.
    assert found >= 0


def test_the_busiest_stretch_is_found_between_samples() -> None:
    # 10 W for 2 s, 50 W for 4 s, 10 W for 2 s, with steep flanks of a tenth of a second.
    points = [(0.0, 10.0), (2.0, 10.0), (2.1, 50.0), (6.0, 50.0), (6.1, 10.0), (8.0, 10.0)]
    power = PowerCurve(points)
    assert power.busiest_j(2.0) == pytest.approx(100.0)
    assert power.busiest_j(3.9) == pytest.approx(195.0)
    # Both flanks, 0.1 s at 30 W on average, and 0.8 s at 10 W.
    assert power.busiest_j(4.9) == pytest.approx(3.0 + 195.0 + 3.0 + 8.0)
    assert power.length_s == 8.0


def test_a_timing_longer_than_the_samples_is_filled_up_at_their_mean() -> None:
    power = PowerCurve([(0.0, 20.0), (1.0, 20.0)])
    assert power.busiest_j(2.0) == pytest.approx(40.0)


def test_energy_of_an_inference_needs_a_sensor_and_queries() -> None:
    assert mj_per_inference({"energy_j": 300.0}, 5000) == 60.0
    assert mj_per_inference({"energy_j": None}, 5000) is None
    assert mj_per_inference({}, 5000) is None
    assert mj_per_inference({"energy_j": 300.0}, 0) is None
