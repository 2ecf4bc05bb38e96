"""When a figure may be believed: the rules, and the sentences that say why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jetson_agent.board.thermal import junction_c
from jetson_agent.protocol import Verdict

MAX_OTHERS_CPU_SHARE = 0.10
MAX_STOLEN_CPU_SHARE = 0.05
MAX_TAIL_RATIO = 2.0
MIN_QUERIES = 20
# Latencies of a CPU vary more than GPU times, for which trtexec 11 warns above 2.5 %.
MAX_CPU_VARIATION = 0.25
MAX_GPU_VARIATION = 0.025
MAX_CPU_SPREAD = 0.25
MAX_GPU_SPREAD = 0.02
# Each build times the kernels anew and may choose others.
MAX_GPU_BUILD_SPREAD = 0.05
MAX_GPU_LOAD_OTHERS = 0.05
MAX_CLOCK_CHANGE = 0.02
# An Orin slows down at 99 degrees.
MAX_JUNCTION_C = 90.0
MAX_THROTTLE_EVENTS = 0

LIMITS = {
    "others_cpu_share": MAX_OTHERS_CPU_SHARE,
    "stolen_cpu_share": MAX_STOLEN_CPU_SHARE,
    "p99_over_p50": MAX_TAIL_RATIO,
    "min_queries": float(MIN_QUERIES),
    "variation": MAX_CPU_VARIATION,
    "gpu_variation": MAX_GPU_VARIATION,
    "spread": MAX_CPU_SPREAD,
    "gpu_spread": MAX_GPU_SPREAD,
    "gpu_build_spread": MAX_GPU_BUILD_SPREAD,
    "gpu_load_others": MAX_GPU_LOAD_OTHERS,
    "clock_change": MAX_CLOCK_CHANGE,
    "junction_c": MAX_JUNCTION_C,
    "throttle_events": float(MAX_THROTTLE_EVENTS),
}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far figures of one file lie apart, as shares of their middle.

    `within`: medians of the runs of one build, highest minus lowest. `between`: the same of the
    medians of several builds, None for one build. `cov`: standard deviation over mean of the
    single queries' GPU times, or of their latencies where there is no GPU time.
    """

    within: float
    between: float | None
    cov: float


def judge(
    metrics: Mapping[str, float], spread: Spread, conditions: Mapping[str, Any], cpus: int
) -> tuple[Verdict, list[str]]:
    """``valid``, or ``suspect`` with the reasons.

    Args:
        metrics: Of the timing, by their names in a bench run. With ``gpu_compute_ms/...`` among
            them the limits for a GPU hold, which are stricter.
        conditions: As `jetson_agent.conditions.Watch.result` gives them; ``preflight`` may hold
            what `jetson_agent.preflight.Preflight.to_dict` gives. What is missing is no doubt.
        cpus: Number of CPUs that the process may use.
    """
    gpu = any(name.startswith("gpu_compute_ms/") for name in metrics)
    reasons = [
        *conditions.get("preflight", {}).get("reasons", ()),
        *_load(conditions, cpus),
        *_board(conditions),
        *_figures(metrics, spread, gpu),
    ]
    return ("suspect" if reasons else "valid"), reasons


def _load(conditions: Mapping[str, Any], cpus: int) -> Iterator[str]:
    others = conditions.get("others_cpu_share")
    if others is not None and others > MAX_OTHERS_CPU_SHARE:
        yield (
            f"Other processes kept {others * cpus:.1f} of {cpus} CPUs busy during the timing "
            f"(at most {MAX_OTHERS_CPU_SHARE * cpus:.1f} is accepted)."
        )
    stolen = conditions.get("stolen_cpu_share")
    if stolen is not None and stolen > MAX_STOLEN_CPU_SHARE:
        yield (
            f"The hypervisor took {stolen:.0%} of the CPU time (at most "
            f"{MAX_STOLEN_CPU_SHARE:.0%} is accepted)."
        )
    gpu = conditions.get("gpu_load_others")
    if gpu is not None and gpu > MAX_GPU_LOAD_OTHERS:
        yield (
            f"Other processes kept the GPU {gpu:.0%} busy before the timing (at most "
            f"{MAX_GPU_LOAD_OTHERS:.0%} is accepted)."
        )


def _board(conditions: Mapping[str, Any]) -> Iterator[str]:
    clock = conditions.get("clocks_mhz", {}).get("gpu")
    floating = conditions.get("floating") or []
    if floating:
        seen = (
            f", between {clock['min']:.0f} and {clock['max']:.0f} MHz on the GPU" if clock else ""
        )
        yield (
            f"The clocks of {' and '.join(floating)} floated{seen}: pin them with jetson_clocks."
        )
    elif clock and max(clock["max"] - clock["start"], clock["start"] - clock["min"]) > (
        MAX_CLOCK_CHANGE * clock["start"]
    ):
        yield (
            f"The GPU's clock changed during the timing: {clock['start']:.0f} MHz at first, "
            f"{clock['min']:.0f} to {clock['max']:.0f} MHz later."
        )
    mode = conditions.get("power_mode", {})
    if mode.get("start") != mode.get("end"):
        yield f"The power mode changed during the timing, from {mode['start']} to {mode['end']}."
    events = conditions.get("throttle", {}).get("events", ())
    if len(events) > MAX_THROTTLE_EVENTS:
        yield f"The board slowed itself down during the timing: {'; '.join(events)}."
    hottest = junction_c(conditions.get("temperatures_c", {}).get("max", {}))
    if hottest is not None and hottest > MAX_JUNCTION_C:
        yield (
            f"The board was hot: {hottest:.1f} degrees at the junction (at most "
            f"{MAX_JUNCTION_C:.0f} is accepted)."
        )


def _figures(metrics: Mapping[str, float], spread: Spread, gpu: bool) -> Iterator[str]:
    middle, tail = metrics.get("latency_ms/p50"), metrics.get("latency_ms/p99")
    if middle and tail and tail / middle > MAX_TAIL_RATIO:
        yield (
            f"The slowest hundredth of queries took {tail / middle:.1f} times the median or more "
            f"(at most {MAX_TAIL_RATIO:.1f} is accepted)."
        )
    limit = MAX_GPU_VARIATION if gpu else MAX_CPU_VARIATION
    if spread.cov > limit:
        what = "GPU times" if gpu else "Latencies"
        yield f"{what} vary by {spread.cov:.1%} of their mean (at most {limit:.1%} is accepted)."
    limit = MAX_GPU_SPREAD if gpu else MAX_CPU_SPREAD
    if spread.within > limit:
        yield (
            f"Medians of the runs lie {spread.within:.1%} apart (at most {limit:.1%} is accepted)."
        )
    limit = MAX_GPU_BUILD_SPREAD if gpu else MAX_CPU_SPREAD
    if spread.between is not None and spread.between > limit:
        yield (
            f"Medians of the builds lie {spread.between:.1%} apart (at most {limit:.1%} is "
            "accepted)."
        )
    if metrics["n"] < MIN_QUERIES:
        yield f"Only {metrics['n']:.0f} queries were timed (at least {MIN_QUERIES} are needed)."
