from __future__ import annotations

from pathlib import Path

import pytest

from jetson_agent.board import clocks
from tests.agent import fake_board


@pytest.mark.parametrize("jetpack5", [False, True])
def test_the_gpu_is_found_by_its_name_in_either_jetpack(tmp_path: Path, jetpack5: bool) -> None:
    fake_board.build(tmp_path, jetpack5=jetpack5)
    folder = clocks.gpu_folder(tmp_path)
    assert folder is not None
    assert folder.name == ("17000000.ga10b" if jetpack5 else "17000000.gpu")
    assert clocks.gpu_mhz(folder) == 1300.5


def test_pinned_clocks_are_one_point_and_floating_ones_a_range(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, pinned=False)
    # As `jetson_clocks --show` printed for an AGX Orin that was not pinned.
    assert clocks.ranges(tmp_path)["gpu"] == {
        "mhz": 306.0,
        "min_mhz": 306.0,
        "max_mhz": 1300.5,
        "governor": "nvhost_podgov",
    }
    assert clocks.ranges(tmp_path)["cpu"][0]["max_mhz"] == 2201.6
    assert (clocks.policy(tmp_path), clocks.floating(tmp_path)) == ("floating", ["GPU", "CPU"])
    board.pin()
    assert (clocks.policy(tmp_path), clocks.floating(tmp_path)) == ("pinned", [])


def test_a_floating_cpu_alone_is_floating(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.cpu_clock(729_600, low=729_600)
    assert clocks.floating(tmp_path) == ["CPU"]
    for core in range(12):
        board.write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "performance\n")
    assert clocks.policy(tmp_path) == "pinned"


def test_a_gpu_below_its_only_clock_is_not_pinned(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.gpu_clock(650.25)
    assert clocks.floating(tmp_path) == ["GPU"]


def test_a_clock_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.write("sys/devices/platform/17000000.gpu/devfreq/17000000.gpu/cur_freq", "")
    assert clocks.policy(tmp_path) == "unknown"
    assert clocks.policy(fake_board.build(tmp_path / "x86", "x86").root) == "unknown"
    assert clocks.ranges(tmp_path / "x86") == {}


def test_cores_that_share_a_clock_are_read_once(tmp_path: Path) -> None:
    policy = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
    policy.mkdir(parents=True)
    (policy / "scaling_cur_freq").write_text("2201600\n")
    for core in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}"
        folder.mkdir()
        (folder / "cpufreq").symlink_to("../cpufreq/policy0")
    assert clocks.cpu_mhz(clocks.cpu_folders(tmp_path)) == [2201.6]
