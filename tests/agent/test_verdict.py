from __future__ import annotations

from typing import Any

import pytest

from jetson_agent.verdict import judge

STEADY = {"latency_ms/p50": 10.0, "latency_ms/p99": 12.0, "n": 300.0}
QUIET: dict[str, Any] = {"others_cpu_share": 0.02, "stolen_cpu_share": 0.0}


def test_a_steady_timing_on_a_quiet_machine_is_valid() -> None:
    assert judge(STEADY, 0.03, QUIET, 4) == ("valid", [])
    unknown = {"others_cpu_share": None, "stolen_cpu_share": None}
    assert judge(STEADY, 0.03, unknown, 4) == ("valid", [])


@pytest.mark.parametrize(
    ("metrics", "spread", "conditions", "sentence"),
    [
        ({}, 0.03, {"others_cpu_share": 0.45}, "Other processes kept 1.8 of 4 CPUs busy"),
        ({}, 0.03, {"stolen_cpu_share": 0.2}, "The hypervisor took 20% of the CPU time"),
        ({"latency_ms/p99": 31.0}, 0.03, {}, "took 3.1 times the median"),
        ({}, 0.5, {}, "Latencies vary by 50% of their mean"),
        ({"n": 7.0}, 0.03, {}, "Only 7 queries were timed"),
    ],
)
def test_each_doubt_is_a_sentence(
    metrics: dict[str, float], spread: float, conditions: dict[str, float], sentence: str
) -> None:
    verdict, reasons = judge({**STEADY, **metrics}, spread, {**QUIET, **conditions}, 4)
    assert verdict == "suspect"
    assert len(reasons) == 1
    assert sentence in reasons[0]
    assert reasons[0].endswith(".")
