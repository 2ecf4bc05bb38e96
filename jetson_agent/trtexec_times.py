"""The file of ``trtexec --exportTimes``, and whether the printed text says the same.

Times are written with six digits: durations keep them all, but the start and the end of a step are
counted from the start of the program, so twelve seconds later they are known to 0.1 ms only. The
time of the enqueue call is only there as such a pair, so it is not taken from this file.

Layout: NVIDIA/TensorRT, samples/common/sampleReporting.cpp (`exportJSONTrace`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetson_agent.errors import BackendError
from jetson_agent.stats import mean, median, percentile
from jetson_agent.trtexec_log import Report

# Key in the file -> name of the part here.
DURATIONS = {
    "latencyMs": "latency_ms",
    "computeMs": "gpu_compute_ms",
    "h2dMs": "h2d_ms",
    "d2hMs": "d2h_ms",
}
FIRST, LAST = "startH2dMs", "endD2hMs"
# Six digits in the text and six in the file: half a unit of the sixth each, 1 part in 100 000.
ROUNDING = 1.01e-5
# trtexec adds up 32-bit floats one by one, which loses up to this share of the sum with each.
FLOAT32 = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Times:
    """Durations of each timed query (ms), in the order in which they were sent.

    `wall_s` goes from the first copy to the device to the last one back, as trtexec's own walltime
    does; `wall_error_s` is how far off it may be because of the six digits.
    """

    latencies_ms: list[float]
    parts: dict[str, list[float]]
    wall_s: float
    wall_error_s: float


def read_times(path: Path, queries: int | None = None) -> Times:
    """Read the file.

    Args:
        queries: How many queries the text says were timed. TensorRT 8.4 and older write those of
            the warm-up before them, which are then left out; newer ones leave them out themselves.

    Raises:
        BackendError: absent, cut, empty, not such a file, or with figures that are no durations.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no time")

    try:
        rows = json.loads(path.read_text(), parse_constant=refuse)
    except OSError as error:
        raise BackendError(f"trtexec left no times to read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BackendError(
            f"{path.name} of trtexec is cut or not its own ({error}): measure again"
        ) from error
    if not isinstance(rows, list) or not rows:
        raise BackendError(f"{path.name} holds no list of timed queries: measure again")
    if queries and len(rows) > queries:
        rows = rows[-queries:]
    columns = {name: [_time(row, key, path) for row in rows] for key, name in DURATIONS.items()}
    begin, end = _time(rows[0], FIRST, path), _time(rows[-1], LAST, path)
    if end <= begin:
        raise BackendError(f"{path.name} ends at {end:g} ms, before its start at {begin:g} ms")
    return Times(
        latencies_ms=columns.pop("latency_ms"),
        parts=columns,
        wall_s=(end - begin) / 1000,
        wall_error_s=(_half_unit(begin) + _half_unit(end)) / 1000,
    )


def _time(row: Any, key: str, path: Path) -> float:
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BackendError(f"{path.name} has a query without the number {key}: not trtexec's file")
    if not 0 <= value < math.inf:
        raise BackendError(f"{path.name} has {key}={value:g}, which is no duration in ms")
    return float(value)


def _half_unit(value: float) -> float:
    """Half a unit of the sixth digit of `value`."""
    return 0.5 * 10.0 ** (math.floor(math.log10(value)) - 5) if value > 0 else 0.0


def agree(report: Report, times: Times) -> list[str]:
    """What the text says otherwise than the file, a sentence each; empty if they are at one.

    Every statistic of the text is compared, by trtexec's own definitions (`jetson_agent.stats`),
    within the rounding of both. Without throughput or latency the text says nothing to agree with.
    """
    found: list[str] = []
    if report.throughput_qps is None:
        found.append("The text has no throughput.")
    if (report.latency_ms or {}).get("median") is None:
        found.append("The text has no median of the latency.")
    count = len(times.latencies_ms)
    if report.queries is not None and report.queries != count:
        found.append(f"The text counts {report.queries} timed queries, the times {count}.")
    error_s = times.wall_error_s + ROUNDING * times.wall_s
    if (said := report.walltime_s) is not None and abs(said - times.wall_s) > error_s:
        found.append(f"The text says {said:g} s of walltime, the times {times.wall_s:g} s.")
    qps = count / times.wall_s
    within = qps * error_s / times.wall_s
    if (said := report.throughput_qps) is not None and abs(said - qps) > within:
        found.append(f"The text says {said:g} queries per second, the times {qps:g}.")
    for name, values in {"latency_ms": times.latencies_ms, **times.parts}.items():
        found += _disagreements(name, getattr(report, name) or {}, sorted(values))
    return found


def _disagreements(name: str, said: dict[str, float | None], ordered: Sequence[float]) -> list[str]:
    found = []
    for statistic, figure in said.items():
        if figure is None:
            continue
        tolerance = ROUNDING
        if statistic == "mean":
            value = mean(ordered)
            tolerance += FLOAT32 * len(ordered)
        elif statistic == "median":
            value = median(ordered)
        elif statistic in ("min", "max"):
            value = ordered[0 if statistic == "min" else -1]
        else:
            value = percentile(ordered, float(statistic[1:]))
        if abs(figure - value) > tolerance * max(abs(figure), abs(value)):
            found.append(f"The text has {figure:g} as {statistic} of {name}, the times {value:g}.")
    return found
