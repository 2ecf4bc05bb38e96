from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetson_agent.stats import percentile, summarize, variation

latencies = st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=200)


def test_percentiles_interpolate_between_the_closest_ranks() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile([10, 20, 30, 40, 50], 90) == pytest.approx(46)
    assert percentile([7], 99) == 7
    assert percentile([1, 2], 0) == 1
    assert percentile([1, 2], 100) == 2


def test_a_summary_by_hand() -> None:
    # 5 queries in 20 ms: two were in flight, so throughput is more than 1 / mean.
    assert summarize([8, 2, 4, 6, 10], wall_s=0.02) == pytest.approx(
        {
            "latency_ms/p50": 6,
            "latency_ms/p90": 9.2,
            "latency_ms/p99": 9.92,
            "latency_ms/mean": 6,
            "latency_ms/min": 2,
            "latency_ms/max": 10,
            "throughput_qps": 250,
            "n": 5,
        }
    )


def test_variation_is_population_deviation_over_mean() -> None:
    assert variation([1, 3]) == pytest.approx(0.5)
    assert variation([5, 5, 5]) == 0


@settings(deadline=None)
@given(latencies)
def test_statistics_equal_those_of_numpy(values: list[float]) -> None:
    summary = summarize(values, wall_s=1.0)
    for percent in (50, 90, 99):
        assert summary[f"latency_ms/p{percent}"] == pytest.approx(np.percentile(values, percent))
    assert summary["latency_ms/mean"] == pytest.approx(np.mean(values))
    assert variation(values) == pytest.approx(np.std(values) / np.mean(values), abs=1e-9)
