from __future__ import annotations

from pathlib import Path

import pytest

from jetson_agent.board import thermal, throttle
from jetson_agent.board.throttle import Signs
from tests.agent import fake_board


def test_a_board_at_ease_shows_no_event(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    signs = throttle.read(throttle.find(board.root))
    assert signs.counters == {"oc1": 0, "oc2": 0, "oc3": 0}
    # The fan turns and hot-surface-alert only warns: neither slows anything down.
    assert set(signs.cooling) == {
        "cpufreq-cpu0",
        "devfreq-17000000.gpu",
        "cpu-throttle-alert",
        "gpu-throttle-alert",
    }
    board.cooling("hot-surface-alert", 1)
    assert throttle.events([signs, throttle.read(throttle.find(board.root))]) == []


def test_a_count_from_before_is_no_event_and_a_rise_is(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.over_current(2, 15)
    sources = throttle.find(board.root)
    before = throttle.read(sources)
    board.over_current(2, 17)
    assert throttle.events([before, before]) == []
    assert throttle.events([before, throttle.read(sources)]) == [
        "average over-current (oc2), 2 times"
    ]


@pytest.mark.parametrize(
    ("counts", "event"),
    [
        ([5, 7, 1], ["instantaneous over-current (oc3), 3 times"]),
        ([9, 0, 0], []),
    ],
)
def test_a_counter_that_starts_anew_counts_from_nought(counts: list[int], event: list[str]) -> None:
    assert throttle.events([Signs(counters={"oc3": count}) for count in counts]) == event


def test_a_cooling_device_that_acted_in_between_is_an_event(tmp_path: Path) -> None:
    quiet, acting = Signs(cooling={"cpufreq-cpu0": 0}), Signs(cooling={"cpufreq-cpu0": 3})
    assert throttle.events([quiet, acting, quiet]) == ["cooling device cpufreq-cpu0 in state 3"]
    assert throttle.events([]) == []


def test_an_alarm_is_named_by_rail_and_level(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, "orin-nano")
    board.alarm(1)
    board.alarm(2, level="max")
    board.write("sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr4_crit_alarm", "1\n")
    signs = throttle.read(throttle.find(board.root))
    assert signs.alarms == {"VDD_IN crit", "VDD_CPU_GPU_CV max", "hwmon1 curr4 crit"}
    assert throttle.events([signs])[0] == "alarm of the power monitor: VDD_CPU_GPU_CV max"


def test_alarms_of_a_channel_that_is_not_connected_mean_nothing(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.write("sys/bus/i2c/devices/1-0041/hwmon/hwmon2/curr1_crit_alarm", "1\n")
    assert throttle.read(throttle.find(board.root)).alarms == frozenset()


@pytest.mark.parametrize(
    ("zones", "junction"),
    [
        ({"cpu-thermal": 52.5, "tj-thermal": 53.0}, 53.0),
        ({"CPU-therm": 42.5, "tj": 42.6, "Tboard": 99.0}, 42.6),
        ({"x86_pkg_temp": 97.0}, None),
        ({}, None),
    ],
)
def test_the_junction_has_a_sensor_of_its_own(
    zones: dict[str, float], junction: float | None
) -> None:
    assert thermal.junction_c(zones) == junction
