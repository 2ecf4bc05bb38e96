"""Device and conditions, read from trees that look like the /proc and /sys of other machines."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jetson_agent import conditions, identity
from jetson_agent.conditions import between, read_conditions, temperatures_c
from jetson_agent.identity import identify, power_mode, short_cpu_name


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
    device = identify(sysroot=tree(tmp_path, JETSON))
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
    device = identify(sysroot=root)
    assert device.name == "x86_64-intel-xeon-gold-6248-3c"
    assert device.mode(2) == "performance-2t"
    assert identify("mine", sysroot=root).name == "mine"


def test_a_machine_that_tells_nothing_still_has_a_name(tmp_path: Path) -> None:
    device = identify(sysroot=tmp_path)
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


def test_a_sensor_that_is_off_is_left_out(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone"
    root = tree(
        tmp_path,
        {
            f"{zone}0/type": "cpu-thermal\n",
            f"{zone}0/temp": "48500\n",
            f"{zone}1/type": "cv0-thermal",
            f"{zone}1/temp": "-256000",
            f"{zone}2/temp": "31000",
            f"{zone}3/type": "broken",
        },
    )
    assert temperatures_c(root) == {"cpu-thermal": 48.5, "thermal_zone2": 31.0}


def test_shares_of_the_cpu_are_those_of_the_usable_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "usable_cpus", lambda: [0, 1])
    tick = os.sysconf("SC_CLK_TCK")

    def look(user: int, steal: int, other_cpu: int) -> conditions.Conditions:
        stat = (
            "cpu  1 1 1 1 1 1 1 1 0 0\n"
            f"cpu0 {user * tick} 0 0 50 0 0 0 {steal * tick} 0 0\n"
            "cpu1 0 0 0 70 0 0 0 0 0 0\n"
            f"cpu2 {other_cpu * tick} 0 0 0 0 0 0 0 0 0\n"
        )
        return read_conditions(tree(tmp_path, {"proc/stat": stat}))

    # 10 s on two CPUs: 6 s busy of which 5 s were our own, 2 s stolen; CPU 2 is not ours to use.
    start = replace(look(user=10, steal=1, other_cpu=0), wall_s=100.0, own_cpu_s=3.0)
    end = replace(look(user=16, steal=3, other_cpu=10), wall_s=110.0, own_cpu_s=8.0)
    found = between(start, end, cpus=2)
    assert found["others_cpu_share"] == pytest.approx(0.05)
    assert found["stolen_cpu_share"] == pytest.approx(0.1)
    assert found["window_s"] == 10


def test_without_proc_nothing_is_invented(tmp_path: Path) -> None:
    found = between(read_conditions(tmp_path), read_conditions(tmp_path), cpus=2)
    assert found["others_cpu_share"] is None
    assert found["stolen_cpu_share"] is None
    assert found["temperatures_c"] == {"start": {}, "end": {}}


def test_our_own_work_is_not_counted_as_that_of_others() -> None:
    start = read_conditions()
    end_s = time.process_time() + 0.3
    while time.process_time() < end_s:
        pass
    found = between(start, read_conditions(), cpus=len(identity.usable_cpus()))
    assert found["own_cpu_s"] >= 0.25
    assert 0 <= found["others_cpu_share"] <= 1
