from __future__ import annotations

from pathlib import Path

import pytest

from jetson_agent.board import power
from tests.agent import fake_board


def test_an_agx_orin_draws_the_sum_of_its_three_input_rails(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, power_w=40.0)
    watts = power.read_watts(power.rails(board.root))
    assert set(watts) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    # 5 V times 60 mA, fed by VIN_SYS_5V0 and so not added again.
    assert watts["VDDQ_VDD2_1V8AO"] == pytest.approx(0.3)
    assert power.total_watts(watts) == pytest.approx(40.0)


def test_an_orin_nano_has_a_rail_for_the_whole_board(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, "orin-nano", power_w=12.5)
    watts = power.read_watts(power.rails(board.root))
    assert set(watts) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert power.total_watts(watts) == pytest.approx(12.5)


def test_limits_are_told_in_ampere(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.write("sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr1_crit", "4984\n")
    first = power.rails(board.root)[0]
    assert first.label == "VDD_GPU_SOC"
    assert first.limits_a() == {"max": 32.76, "crit": 4.984}


def test_without_a_monitor_there_is_no_power(tmp_path: Path) -> None:
    assert power.rails(tmp_path) == []
    assert power.total_watts({}) is None
    assert power.total_watts({"VDD_GPU_SOC": 5.0, "VDD_CPU_CV": None}) is None
    assert power.total_watts({"VDD_IN": None, "VDD_SOC": 1.0}) is None


def test_a_monitor_is_also_found_without_its_bus(tmp_path: Path) -> None:
    hwmon = tmp_path / "sys/class/hwmon/hwmon1"
    hwmon.mkdir(parents=True)
    for name, text in {
        "name": "ina3221",
        "in1_label": "VDD_IN",
        "in1_input": "5016",
        "curr1_input": "2000",
    }.items():
        (hwmon / name).write_text(f"{text}\n")
    assert power.read_watts(power.rails(tmp_path)) == {"VDD_IN": pytest.approx(10.032)}
