from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from jetson_agent.conditions import Watch
from jetson_agent.verdict import LIMITS, Spread, judge
from tests.agent import fake_board

STEADY = {"latency_ms/p50": 10.0, "latency_ms/p99": 12.0, "n": 300.0}
ON_GPU = STEADY | {"gpu_compute_ms/p50": 9.0}
QUIET: dict[str, Any] = {"others_cpu_share": 0.02, "stolen_cpu_share": 0.0}
TIGHT = Spread(within=0.005, between=0.01, cov=0.01)
LOOSE = Spread(within=0.1, between=None, cov=0.1)


def test_a_steady_timing_on_a_quiet_machine_is_valid() -> None:
    assert judge(STEADY, LOOSE, QUIET, 4) == ("valid", [])
    unknown = {"others_cpu_share": None, "stolen_cpu_share": None}
    assert judge(STEADY, LOOSE, unknown, 4) == ("valid", [])
    assert judge(STEADY, LOOSE, {}, 4) == ("valid", [])


@pytest.mark.parametrize(
    ("metrics", "spread", "conditions", "sentence"),
    [
        ({}, {}, {"others_cpu_share": 0.45}, "Other processes kept 1.8 of 4 CPUs busy"),
        ({}, {}, {"stolen_cpu_share": 0.2}, "The hypervisor took 20% of the CPU time"),
        ({"latency_ms/p99": 31.0}, {}, {}, "took 3.1 times the median"),
        ({}, {"cov": 0.5}, {}, "Latencies vary by 50.0% of their mean"),
        ({}, {"within": 0.3}, {}, "Medians of the runs lie 30.0% apart (at most 25.0%"),
        ({}, {"between": 0.3}, {}, "Medians of the builds lie 30.0% apart (at most 25.0%"),
        ({"n": 7.0}, {}, {}, "Only 7 queries were timed"),
        ({}, {}, {"preflight": {"reasons": ["The board is hot."]}}, "The board is hot."),
    ],
)
def test_each_doubt_is_a_sentence(
    metrics: dict[str, float],
    spread: dict[str, float],
    conditions: dict[str, Any],
    sentence: str,
) -> None:
    lies = Spread(**{"within": 0.1, "between": None, "cov": 0.1, **spread})  # type: ignore[arg-type]
    verdict, reasons = judge({**STEADY, **metrics}, lies, {**QUIET, **conditions}, 4)
    assert verdict == "suspect"
    assert len(reasons) == 1
    assert sentence in reasons[0]
    assert reasons[0].endswith(".")


def test_a_percentile_that_the_count_does_not_carry_raises_no_doubt() -> None:
    assert judge({"latency_ms/p50": 10.0, "n": 50.0}, LOOSE, QUIET, 4) == ("valid", [])


@pytest.mark.parametrize(
    ("spread", "sentence"),
    [
        (Spread(within=0.005, between=0.01, cov=0.026), "GPU times vary by 2.6%"),
        (Spread(within=0.021, between=0.01, cov=0.01), "Medians of the runs lie 2.1% apart"),
        (Spread(within=0.005, between=0.051, cov=0.01), "Medians of the builds lie 5.1% apart"),
    ],
)
def test_gpu_times_are_held_to_stricter_limits(spread: Spread, sentence: str) -> None:
    assert judge(STEADY, spread, QUIET, 4) == ("valid", [])
    verdict, reasons = judge(ON_GPU, spread, QUIET, 4)
    assert verdict == "suspect"
    assert len(reasons) == 1
    assert sentence in reasons[0]
    assert judge(ON_GPU, TIGHT, QUIET, 4) == ("valid", [])


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Conditions of a pinned board on which nothing happened."""
    board = fake_board.build(tmp_path_factory.mktemp("board"))
    with Watch(board.root, interval_s=0.01, idle_s=0) as watch:
        pass
    return watch.result()


def test_a_pinned_cool_board_is_valid(calm: dict[str, Any]) -> None:
    assert judge(ON_GPU, TIGHT, calm, 12) == ("valid", [])


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("floating", ["CPU", "GPU"], "The clocks of CPU and GPU floated, between 1300 and 1300"),
        ("clocks_mhz.gpu.min", 650.25, "1300 MHz at first, 650 to 1300 MHz later."),
        ("clocks_mhz.gpu.max", 1400.0, "1300 MHz at first, 1300 to 1400 MHz later."),
        ("power_mode.end", "MODE_15W", "The power mode changed during the timing, from MAXN to"),
        (
            "throttle.events",
            ["average over-current (oc2), 1 time", "alarm of the power monitor: VDD_IN crit"],
            "slowed itself down during the timing: average over-current (oc2), 1 time; alarm",
        ),
        ("temperatures_c.max.tj-thermal", 90.1, "hot: 90.1 degrees at the junction (at most 90"),
        ("gpu_load_others", 0.06, "kept the GPU 6% busy before the timing"),
    ],
)
def test_each_event_on_a_board_is_a_doubt(
    calm: dict[str, Any], path: str, value: object, sentence: str
) -> None:
    found = copy.deepcopy(calm)
    *way, last = path.split(".")
    place = found
    for name in way:
        place = place[name]
    place[last] = value
    verdict, reasons = judge(ON_GPU, TIGHT, found, 12)
    assert verdict == "suspect"
    assert len(reasons) == 1
    assert sentence in reasons[0]
    assert reasons[0].endswith(".")


def test_a_clock_within_two_per_cent_is_the_same_clock(calm: dict[str, Any]) -> None:
    found = copy.deepcopy(calm)
    found["clocks_mhz"]["gpu"]["min"] = 1300.5 * 0.985
    assert judge(ON_GPU, TIGHT, found, 12) == ("valid", [])


def test_a_hot_server_is_no_hot_board(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, "x86")
    board.write("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n")
    board.write("sys/class/thermal/thermal_zone0/temp", "97000\n")
    with Watch(board.root, interval_s=0.01) as watch:
        pass
    found = watch.result()
    assert found["temperatures_c"]["max"] == {"x86_pkg_temp": 97.0}
    assert judge(STEADY, LOOSE, found, 4) == ("valid", [])


def test_the_limits_are_numbers_for_the_certificate() -> None:
    assert all(type(value) is float for value in LIMITS.values())
    assert (LIMITS["gpu_variation"], LIMITS["variation"]) == (0.025, 0.25)
