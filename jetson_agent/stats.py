"""Statistics of latencies: one definition for every backend."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear interpolation between the two closest ranks, numpy's default definition.

    Args:
        ordered: At least one value, ascending.
        percent: 0 to 100; rank ``(n - 1) * percent / 100``, counted from 0.
    """
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def variation(values: Sequence[float]) -> float:
    """Coefficient of variation: population standard deviation over the mean."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) / mean


def summarize(latencies_ms: Sequence[float], wall_s: float) -> dict[str, float]:
    """The metrics of one timing, by the names they have in a bench run.

    Args:
        latencies_ms: Latency of each query, in any order, not empty.
        wall_s: Time in which all of them were served; with two in flight it is shorter than
            their sum, so throughput is not one over latency.
    """
    ordered = sorted(latencies_ms)
    return {
        "latency_ms/p50": percentile(ordered, 50),
        "latency_ms/p90": percentile(ordered, 90),
        "latency_ms/p99": percentile(ordered, 99),
        "latency_ms/mean": math.fsum(ordered) / len(ordered),
        "latency_ms/min": ordered[0],
        "latency_ms/max": ordered[-1],
        "throughput_qps": len(ordered) / wall_s,
        "n": float(len(ordered)),
    }
