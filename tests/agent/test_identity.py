"""Devices, read from trees that look like the /proc and /sys of other machines."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from jetson_agent import identity
from jetson_agent.identity import core_count, identify, module_sku, power_mode, short_cpu_name
from tests.agent import fake_board


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/meminfo": "MemTotal:       64337712 kB\nMemFree: 1 kB\n",
    "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull\n",
    "etc/nvpmodel.conf": (
        "# comment\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=2 NAME=MODE_30W >\n"
    ),
}


def test_a_jetson_is_named_by_board_and_memory(tmp_path: Path) -> None:
    device = identify(root=tree(tmp_path, JETSON))
    assert device.name == "nvidia-jetson-agx-orin-developer-kit-64gb"
    assert device.cpu == "arm 0x41 0xd42"
    assert device.mode(4) == "MODE_30W-4t"


def test_a_power_mode_without_a_name_keeps_its_number(tmp_path: Path) -> None:
    root = tree(tmp_path, {"var/lib/nvpmodel/status": "pmode:0007"})
    assert power_mode(root) == "nvpmodel-7"


def test_a_server_is_named_by_cpu_and_number_of_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(identity, "usable_cpus", lambda: [0, 1, 2])
    cpu = "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz"
    governor = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    root = tree(tmp_path, {"proc/cpuinfo": f"model name\t: {cpu}\n", governor: "performance\n"})
    device = identify(root=root)
    assert device.name == "x86_64-intel-xeon-gold-6248-3c"
    assert device.mode(2) == "performance-2t"
    assert identify("mine", root=root).name == "mine"


def test_a_machine_that_tells_nothing_still_has_a_name(tmp_path: Path) -> None:
    device = identify(root=tmp_path)
    assert "unknown" in device.name
    assert device.power_mode == "default"
    assert platform.node() not in device.name or len(platform.node()) < 3


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("AMD EPYC 7B13 64-Core Processor", "AMD EPYC 7B13"),
        ("Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", "Intel Core i7-8650U"),
        ("@ 3 GHz", "unknown"),
    ],
)
def test_a_cpu_name_loses_its_filler(full: str, short: str) -> None:
    assert short_cpu_name(full) == short


def test_a_board_tells_its_module_its_software_and_its_mode(tmp_path: Path) -> None:
    device = identify(root=fake_board.build(tmp_path, mode="MODE_30W").root)
    assert device.name == "nvidia-jetson-agx-orin-developer-kit-64gb"
    assert (device.module, device.sku) == ("Jetson AGX Orin 64GB", "p3701-0005")
    assert device.cores == 12
    assert 61 < device.memory_gib < 62
    assert (device.l4t, device.jetpack) == ("36.4.4", "6.2.1")
    assert (device.tensorrt, device.cuda) == ("10.3.0.30", "12.6.68")
    assert (device.power_mode, device.power_mode_number) == ("MODE_30W", 2)
    assert device.is_board
    assert device.mode(None) == "MODE_30W-pinned"
    assert device.mode(4) == "MODE_30W-pinned-4t"
    assert device.runtime("10.3.0.30") == "10.3.0.30+l4t36.4.4"


def test_an_agx_orin_with_32_gb_is_not_one_with_64(tmp_path: Path) -> None:
    large = identify(root=fake_board.build(tmp_path / "64").root)
    small = identify(root=fake_board.build(tmp_path / "32", "agx-orin-32").root)
    assert large.model == small.model
    assert small.name == "nvidia-jetson-agx-orin-developer-kit-32gb"
    assert (small.module, small.cores) == ("Jetson AGX Orin 32GB", 8)
    assert large.name != small.name
    assert large.board_id != small.board_id


def test_two_modules_of_one_memory_that_are_not_as_fast_have_two_names(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, "agx-orin-32")
    board.write("proc/device-tree/compatible", b"nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0")
    assert identify(root=tmp_path).name == ("nvidia-jetson-agx-orin-developer-kit-32gb-p3701-0000")


def test_clocks_that_float_are_another_mode(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, pinned=False)
    assert identify(root=tmp_path).mode(None) == "MAXN-floating"
    board.pin()
    assert identify(root=tmp_path).mode(None) == "MAXN-pinned"


def test_a_plain_machine_has_no_board_and_keeps_its_runtime(tmp_path: Path) -> None:
    device = identify(root=fake_board.build(tmp_path, "x86").root)
    assert not device.is_board
    assert (device.module, device.l4t, device.jetpack, device.cuda, device.tensorrt) == ("",) * 5
    assert device.mode(2) == "default-2t"
    assert device.runtime("ort 1.23") == "ort 1.23"
    assert device.cores == 4


def test_the_root_can_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = fake_board.build(tmp_path, "orin-nano")
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    device = identify()
    assert device.name == "nvidia-jetson-orin-nano-engineering-reference-developer-kit-super-8gb"
    assert device.power_mode == "15W"


@pytest.mark.parametrize(
    ("compatible", "sku"),
    [
        (b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0", "p3701-0005"),
        (b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0", "p3767-0005"),
        (b"seeed,j501x\0nvidia,p3701-0004\0nvidia,tegra234\0", "p3701-0004"),
        (b"nvidia,p3971-0089+p3834-0008\0nvidia,tegra264\0", "p3834-0008"),
        (b"raspberrypi,4-model-b\0brcm,bcm2711\0", ""),
        (b"", ""),
    ],
)
def test_the_part_number_of_the_module_follows_the_carrier(
    tmp_path: Path, compatible: bytes, sku: str
) -> None:
    path = tmp_path / "proc/device-tree/compatible"
    path.parent.mkdir(parents=True)
    path.write_bytes(compatible)
    assert module_sku(tmp_path) == sku


def test_a_module_that_is_not_in_the_table_keeps_its_number(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.write("proc/device-tree/compatible", b"nvidia,p3971-0089+p3834-0008\0")
    device = identify(root=tmp_path)
    assert device.module == device.sku == "p3834-0008"
    assert device.is_board


@pytest.mark.parametrize(
    ("present", "count"),
    [("0-11", 12), ("0", 1), ("0-3,8-11", 8), ("", None), ("all", None), ("5-0", None)],
)
def test_cores_are_counted_from_the_kernels_ranges(
    tmp_path: Path, present: str, count: int | None
) -> None:
    root = tree(tmp_path, {"sys/devices/system/cpu/present": f"{present}\n"})
    assert core_count(root) == count


def test_the_id_of_a_board_is_not_its_machine_id(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    machine_id = (board.root / "etc/machine-id").read_text().strip()
    found = identify(root=tmp_path).board_id
    assert len(found) == 12
    assert found not in machine_id
    assert identify(root=tmp_path).board_id == found
    board.remove("etc/machine-id")
    assert identify(root=tmp_path).board_id == ""


def test_the_policy_is_left_out_of_a_mode_when_unknown(tmp_path: Path) -> None:
    device = identify(root=fake_board.build(tmp_path).root)
    assert replace(device, clock_policy="unknown").mode(None) == "MAXN"
