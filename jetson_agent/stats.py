"""Statistics of latencies: one definition for every backend, that of `trtexec`.

Source: NVIDIA/TensorRT, samples/common/sampleReporting.cpp, `findPercentile`, `findMedian` and
`findCoeffOfVariance`, the same from 8.2 to 11.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

PERCENTILES = (90, 95, 99)


class Run(Protocol):
    """One timing of one engine, such as `jetson_agent.backends.base.Samples`.

    `parts` has values of each query, `summaries` only ``min, max, mean, median`` of a run.
    """

    @property
    def latencies_ms(self) -> Sequence[float]: ...
    @property
    def wall_s(self) -> float: ...
    @property
    def throughput_qps(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, Sequence[float]]: ...
    @property
    def summaries(self) -> Mapping[str, Mapping[str, float]]: ...


class Deviation(NamedTuple):
    """How far figures scatter, all relative.

    `within`: largest range of the medians of one build's runs over their median. `between`: range
    of the builds' medians over their median, None with one build. `cov`: coefficient of variation
    of all queries.
    """

    within: float
    between: float | None
    cov: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that ``int((1 - percent / 100) * n)`` values are above, never interpolated.

    Computed in 32-bit floats as trtexec does: of 100 values the 99th percentile is the largest.

    Args:
        ordered: At least one value, ascending.
        percent: 0 to 100.
    """
    share = _single(1 - _single(_single(percent) / 100))
    above = int(_single(share * len(ordered)))
    return ordered[max(len(ordered) - 1 - above, 0)]


def _single(value: float) -> float:
    """`value` rounded to a 32-bit float."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def median(ordered: Sequence[float]) -> float:
    """The middle one of ascending values, or the mean of the two in the middle."""
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def variation(values: Sequence[float]) -> float:
    """Coefficient of variation: population standard deviation over the mean; 0 if all are 0."""
    centre = mean(values)
    if centre == 0:
        return 0.0
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / len(values)) / centre


def carried(count: int, percent: float) -> bool:
    """Whether at least one of `count` queries lies above that percentile."""
    return count * (100 - percent) >= 100


def summarize_runs(runs: Sequence[Run]) -> dict[str, float]:
    """The metrics of one timing, by the names they have in a bench run.

    ``latency_ms/p50`` is the median of the runs' medians; the other statistics are over all queries
    of all runs, and a percentile is there only if a query lies above it. Each part has the same.

    Args:
        runs: At least one, each with at least one query.
    """
    values: dict[str, float] = {}
    names = dict.fromkeys(name for run in runs for name in run.parts)
    for name in ("latency_ms", *names):
        values |= _statistics(name, [_queries(run, name) for run in runs if _queries(run, name)])
    for name in dict.fromkeys(name for run in runs for name in run.summaries):
        values |= _merged(name, runs)
    count = sum(len(run.latencies_ms) for run in runs)
    served_s = math.fsum(
        len(run.latencies_ms) / run.throughput_qps if run.throughput_qps > 0 else run.wall_s
        for run in runs
    )
    return {**values, "throughput_qps": count / served_s, "n": float(count)}


def _queries(run: Run, name: str) -> Sequence[float]:
    return run.latencies_ms if name == "latency_ms" else run.parts.get(name, [])


def _statistics(name: str, runs: Sequence[Sequence[float]]) -> dict[str, float]:
    ordered = sorted(value for run in runs for value in run)
    return {
        f"{name}/p50": median(sorted(median(sorted(run)) for run in runs)),
        **{f"{name}/p{p}": percentile(ordered, p) for p in PERCENTILES if carried(len(ordered), p)},
        f"{name}/mean": mean(ordered),
        f"{name}/min": ordered[0],
        f"{name}/max": ordered[-1],
    }


def _merged(name: str, runs: Sequence[Run]) -> dict[str, float]:
    """The same of a part that each run tells only as a whole."""
    told = [(run.summaries[name], len(run.latencies_ms)) for run in runs if name in run.summaries]
    total = sum(count for _, count in told)
    return {
        f"{name}/p50": median(sorted(summary["median"] for summary, _ in told)),
        f"{name}/mean": math.fsum(summary["mean"] * count for summary, count in told) / total,
        f"{name}/min": min(summary["min"] for summary, _ in told),
        f"{name}/max": max(summary["max"] for summary, _ in told),
    }


def deviation(builds: Sequence[Sequence[Run]], name: str = "latency_ms") -> Deviation:
    """How far one part of the timings scatters.

    Args:
        builds: The runs of each build; at least one run with that part.
        name: ``latency_ms`` or a name of `Run.parts`.

    Raises:
        KeyError: no run has that part.
    """
    values = [[v for run in runs if (v := _queries(run, name))] for runs in builds]
    values = [runs for runs in values if runs]
    if not values:
        raise KeyError(f"no run has {name}")
    return spread(
        [[median(sorted(run)) for run in runs] for runs in values],
        variation([value for runs in values for run in runs for value in run]),
    )


def spread(medians: Sequence[Sequence[float]], cov: float) -> Deviation:
    """The same from the medians of each build's runs.

    Args:
        medians: Per build, per run; no build without a run.
        cov: Coefficient of variation of the queries.
    """
    builds = [median(sorted(runs)) for runs in medians]
    return Deviation(
        within=max(_range(runs) for runs in medians),
        between=_range(builds) if len(builds) > 1 else None,
        cov=cov,
    )


def _range(values: Sequence[float]) -> float:
    centre = median(sorted(values))
    return (max(values) - min(values)) / centre if centre else 0.0
