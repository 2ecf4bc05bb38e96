"""When a figure may be believed: the rules, and the sentences that say why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jetson_agent.protocol import Verdict

MAX_OTHERS_CPU_SHARE = 0.10
MAX_STOLEN_CPU_SHARE = 0.05
MAX_VARIATION = 0.25
MAX_TAIL_RATIO = 2.0
MIN_QUERIES = 20

LIMITS = {
    "others_cpu_share": MAX_OTHERS_CPU_SHARE,
    "stolen_cpu_share": MAX_STOLEN_CPU_SHARE,
    "variation": MAX_VARIATION,
    "p99_over_p50": MAX_TAIL_RATIO,
    "min_queries": float(MIN_QUERIES),
}


def judge(
    metrics: Mapping[str, float], variation: float, conditions: Mapping[str, Any], cpus: int
) -> tuple[Verdict, list[str]]:
    """``valid``, or ``suspect`` with the reasons.

    Args:
        metrics: As `jetson_agent.stats.summarize` gives them.
        variation: Coefficient of variation of the latencies.
        conditions: As `jetson_agent.conditions.between` gives them.
        cpus: Number of CPUs that the process may use.
    """
    reasons: list[str] = []
    others = conditions.get("others_cpu_share")
    if others is not None and others > MAX_OTHERS_CPU_SHARE:
        reasons.append(
            f"Other processes kept {others * cpus:.1f} of {cpus} CPUs busy during the timing "
            f"(at most {MAX_OTHERS_CPU_SHARE * cpus:.1f} is accepted)."
        )
    stolen = conditions.get("stolen_cpu_share")
    if stolen is not None and stolen > MAX_STOLEN_CPU_SHARE:
        reasons.append(
            f"The hypervisor took {stolen:.0%} of the CPU time (at most "
            f"{MAX_STOLEN_CPU_SHARE:.0%} is accepted)."
        )
    tail = metrics["latency_ms/p99"] / metrics["latency_ms/p50"]
    if tail > MAX_TAIL_RATIO:
        reasons.append(
            f"The slowest hundredth of queries took {tail:.1f} times the median or more "
            f"(at most {MAX_TAIL_RATIO:.1f} is accepted)."
        )
    if variation > MAX_VARIATION:
        reasons.append(
            f"Latencies vary by {variation:.0%} of their mean (at most {MAX_VARIATION:.0%} is "
            "accepted)."
        )
    if metrics["n"] < MIN_QUERIES:
        reasons.append(
            f"Only {metrics['n']:.0f} queries were timed (at least {MIN_QUERIES} are needed)."
        )
    return ("suspect" if reasons else "valid"), reasons
