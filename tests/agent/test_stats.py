from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetson_agent.stats import (
    Deviation,
    carried,
    deviation,
    median,
    percentile,
    spread,
    summarize_runs,
    variation,
)

latencies = st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=300)


@dataclass
class Timed:
    """One run, as a backend gives it."""

    latencies_ms: Sequence[float]
    throughput_qps: float
    wall_s: float = 1.0
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    summaries: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def in_c(ordered: Sequence[float], percent: float) -> float:
    """`findPercentile` of trtexec in 32-bit arithmetic of numpy."""
    count = len(ordered)
    percentile_f = np.float32(percent)
    exclude = int((np.float32(1) - percentile_f / np.float32(100)) * np.float32(count))
    return ordered[max(count - 1 - exclude, 0)]


def test_percentiles_are_values_that_were_measured() -> None:
    # 10 % of 10 values is one: the largest is left out.
    assert percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 90) == 9
    assert percentile([10, 20, 30, 40, 50], 90) == 50
    assert percentile([1, 2, 3, 4], 50) == 2
    assert percentile([7], 99) == 7
    assert percentile([1, 2], 0) == 1
    assert percentile([1, 2], 100) == 2


def test_of_a_hundred_values_trtexecs_99th_percentile_is_the_largest() -> None:
    # 1 - 0.99 is a little less than 0.01 in 32 bits, so a hundred times that is less than one.
    assert percentile(range(1, 101), 99) == 100
    assert percentile(range(1, 101), 95) == 95
    assert percentile(range(1, 1001), 99) == 991


@settings(deadline=None)
@given(latencies, st.sampled_from([50, 90, 95, 99, 99.9]))
def test_percentiles_equal_those_of_the_c_code(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    assert percentile(ordered, percent) == in_c(ordered, percent)


@pytest.mark.parametrize("count", [*range(1, 130), 200, 999, 1000, 1001, 9999, 10000, 123457])
def test_percentiles_equal_those_of_the_c_code_for_any_count(count: int) -> None:
    for percent in (50, 90, 95, 99):
        assert percentile(range(count), percent) == in_c(range(count), percent)


def test_the_median_is_the_middle_or_the_mean_of_two() -> None:
    assert median([1, 2, 10]) == 2
    assert median([1, 2, 4, 10]) == 3


def test_variation_is_population_deviation_over_mean() -> None:
    assert variation([1, 3]) == pytest.approx(0.5)
    assert variation([5, 5, 5]) == 0
    assert variation([0, 0]) == 0  # copies, when there are none


@pytest.mark.parametrize(
    ("count", "percent", "enough"),
    [(9, 90, False), (10, 90, True), (19, 95, False), (20, 95, True), (99, 99, False),
     (100, 99, True), (1, 0, True)],
)  # fmt: skip
def test_a_percentile_needs_a_query_above_it(count: int, percent: float, enough: bool) -> None:
    assert carried(count, percent) is enough


def test_runs_by_hand() -> None:
    runs = [
        Timed([8, 2, 4, 6, 10], throughput_qps=250),
        Timed([3, 1, 5], throughput_qps=100),
        Timed([9, 7], throughput_qps=200),
    ]
    # The medians are 6, 3 and 8; the ten queries were served in 0.02 + 0.03 + 0.01 s.
    assert summarize_runs(runs) == pytest.approx(
        {
            "latency_ms/p50": 6,
            "latency_ms/p90": 9,
            "latency_ms/mean": 5.5,
            "latency_ms/min": 1,
            "latency_ms/max": 10,
            "throughput_qps": 10 / 0.06,
            "n": 10,
        }
    )


def test_parts_have_the_same_statistics_as_the_latency() -> None:
    runs = [
        Timed([2, 2], throughput_qps=500, parts={"gpu_compute_ms": [1, 3]}),
        Timed([2, 2], throughput_qps=500, parts={"gpu_compute_ms": [5, 9], "h2d_ms": [0, 0]}),
    ]
    metrics = summarize_runs(runs)
    assert {name: metrics[name] for name in metrics if name.startswith(("gpu", "h2d"))} == {
        "gpu_compute_ms/p50": 4.5,
        "gpu_compute_ms/mean": 4.5,
        "gpu_compute_ms/min": 1,
        "gpu_compute_ms/max": 9,
        "h2d_ms/p50": 0,
        "h2d_ms/mean": 0,
        "h2d_ms/min": 0,
        "h2d_ms/max": 0,
    }


def test_a_part_told_only_as_a_whole_is_merged_by_the_number_of_queries() -> None:
    enqueue = {"min": 0.5, "max": 2.0, "mean": 1.0, "median": 0.75}
    other = {"min": 0.25, "max": 1.0, "mean": 0.5, "median": 0.5}
    runs = [
        Timed([1] * 30, throughput_qps=1000, summaries={"enqueue_ms": enqueue}),
        Timed([1] * 10, throughput_qps=1000, summaries={"enqueue_ms": other}),
        Timed([1] * 10, throughput_qps=1000),
    ]
    metrics = summarize_runs(runs)
    assert metrics["enqueue_ms/p50"] == 0.625
    assert metrics["enqueue_ms/mean"] == pytest.approx((30 * 1.0 + 10 * 0.5) / 40)
    assert (metrics["enqueue_ms/min"], metrics["enqueue_ms/max"]) == (0.25, 2.0)
    assert "enqueue_ms/p90" not in metrics


def test_a_run_without_a_throughput_of_its_own_is_counted_by_its_walltime() -> None:
    runs = [Timed([1, 1, 1, 1], throughput_qps=0, wall_s=0.5)]
    assert summarize_runs(runs)["throughput_qps"] == 8


@settings(deadline=None)
@given(st.lists(latencies, min_size=1, max_size=4))
def test_statistics_of_runs_equal_those_of_numpy(values: list[list[float]]) -> None:
    metrics = summarize_runs([Timed(run, throughput_qps=1000) for run in values])
    every = np.concatenate(values)
    assert metrics["latency_ms/p50"] == pytest.approx(np.median([np.median(v) for v in values]))
    assert metrics["latency_ms/mean"] == pytest.approx(every.mean())
    assert (metrics["latency_ms/min"], metrics["latency_ms/max"]) == (every.min(), every.max())
    assert metrics["throughput_qps"] == pytest.approx(1000)
    assert ("latency_ms/p99" in metrics) == (len(every) >= 100)
    if "latency_ms/p90" in metrics:
        above = np.count_nonzero(every > metrics["latency_ms/p90"])
        assert above <= len(every) / 10 + 1e-3


def test_spread_within_and_between_builds_by_hand() -> None:
    # Within: 0.2 of 2.0 in the first build. Between: 2.0 against 2.5, whose median is 2.25.
    found = spread([[1.9, 2.0, 2.1], [2.5, 2.5]], cov=0.03)
    assert found == pytest.approx(Deviation(within=0.1, between=0.5 / 2.25, cov=0.03))


def test_one_run_of_one_build_has_no_spread_to_tell() -> None:
    assert spread([[2.0]], cov=0.0) == Deviation(within=0.0, between=None, cov=0.0)


def test_deviation_of_each_part() -> None:
    builds = [
        [Timed([1, 2, 3], 1, parts={"gpu_compute_ms": [1, 1]}), Timed([2, 4, 4], 1)],
        [Timed([3, 3, 3], 1, parts={"gpu_compute_ms": [3, 3]})],
    ]
    # Medians 2 and 4 in the first build, 3 in the second.
    found = deviation(builds)
    assert found.within == pytest.approx(2 / 3)
    assert found.between == 0
    assert found.cov == pytest.approx(np.std([1, 2, 3, 2, 4, 4, 3, 3, 3]) / (25 / 9))
    part = deviation(builds, "gpu_compute_ms")
    assert (part.within, part.between, part.cov) == (0, 1, 0.5)
    with pytest.raises(KeyError, match="h2d_ms"):
        deviation(builds, "h2d_ms")
