"""What happened around a timing, on trees that change while it lasts."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jetson_agent import conditions, identity
from jetson_agent.conditions import Watch, between, read_conditions, temperatures_c
from tests.agent import fake_board


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def wait_for_samples(watch: Watch, count: int) -> None:
    """Until the thread has looked `count` times more."""
    goal = len(watch._samples) + count
    end_s = time.monotonic() + 60
    while len(watch._samples) < goal:
        assert time.monotonic() < end_s, "the thread takes no samples"
        time.sleep(0.005)


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


def test_a_steady_board_is_described_in_full(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, power_w=12.0, temperature_c=47.5)
    with Watch(board.root, interval_s=0.01, idle_s=0.05) as watch:
        board.draw(30.0)
        watch.begin()
        wait_for_samples(watch, 3)
    found = watch.result()
    assert found["power_w"] == {"mean": 30.0, "peak": 30.0, "idle": 12.0}
    assert found["rails_w"]["VDD_GPU_SOC"] == pytest.approx(15.0)
    assert found["energy_j"] == pytest.approx(30.0 * found["energy_s"], rel=1e-3)
    assert 0 < found["energy_s"] <= found["window_s"]
    assert found["clocks_mhz"] == {
        "gpu": {"start": 1300.5, "end": 1300.5, "min": 1300.5, "max": 1300.5},
        "cpu": {"start": 2201.6, "end": 2201.6, "min": 2201.6, "max": 2201.6},
    }
    assert found["clock_policy"] == {"start": "pinned", "end": "pinned"}
    assert found["floating"] == []
    assert found["power_mode"] == {"start": "MAXN", "end": "MAXN"}
    assert found["temperatures_c"]["max"]["tj-thermal"] == 47.5
    assert "cv0-thermal" not in found["temperatures_c"]["max"]
    assert found["throttle"] == {"events": [], "counters": {"oc1": 0, "oc2": 0, "oc3": 0}}
    assert found["gpu_load_others"] == 0.0
    assert found["free_memory_gib"] == pytest.approx(62841 * 0.75 / 1024, abs=0.01)
    assert found["sampler"]["samples"] >= 5
    assert "error" not in found["sampler"]
    json.dumps(found, allow_nan=False)


def test_what_happens_during_a_run_is_seen_even_if_it_is_over_at_the_end(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    with Watch(board.root, interval_s=0.01, idle_s=0) as watch:
        board.gpu_clock(650.25)
        board.heat(96.0)
        board.draw(55.0)
        board.cooling("gpu-throttle-alert", 1)
        board.alarm(1)
        wait_for_samples(watch, 2)
        board.gpu_clock(1300.5)
        board.heat(60.0)
        board.draw(12.0)
        board.cooling("gpu-throttle-alert", 0)
        board.alarm(1, on=False)
        wait_for_samples(watch, 2)
    found = watch.result()
    assert found["clocks_mhz"]["gpu"] == {
        "start": 1300.5,
        "end": 1300.5,
        "min": 650.25,
        "max": 1300.5,
    }
    assert found["temperatures_c"]["max"]["tj-thermal"] == 96.0
    assert found["temperatures_c"]["end"]["tj-thermal"] == 60.0
    assert found["power_w"]["peak"] == 55.0
    assert found["throttle"]["events"] == [
        "cooling device gpu-throttle-alert in state 1",
        "alarm of the power monitor: VDD_GPU_SOC crit",
    ]


def test_over_current_before_the_timing_is_not_of_the_timing(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.over_current(3, 41)
    with Watch(board.root, interval_s=0.01, idle_s=0) as watch:
        board.over_current(3, 50)
        watch.begin()
        board.over_current(3, 53)
        board.over_current(1, 1)
    found = watch.result()["throttle"]
    assert found["events"] == [
        "under-voltage (oc1), 1 time",
        "instantaneous over-current (oc3), 3 times",
    ]
    assert found["counters"]["oc3"] == 53


def test_a_mode_and_a_policy_that_change_are_seen(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    with Watch(board.root, interval_s=0.01, idle_s=0) as watch:
        board.select("MODE_15W")
        board.pin(False)
    found = watch.result()
    assert found["power_mode"] == {"start": "MAXN", "end": "MODE_15W"}
    assert found["clock_policy"] == {"start": "pinned", "end": "floating"}
    assert found["floating"] == ["CPU", "GPU"]


def test_load_of_the_gpu_before_the_timing_is_that_of_others(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, gpu_load=0.4)
    with Watch(board.root, interval_s=0.01, idle_s=0.05) as watch:
        board.gpu_load(1.0)
        wait_for_samples(watch, 2)
    assert watch.result()["gpu_load_others"] == 0.4


@pytest.mark.parametrize("kind", ["x86", "nothing"])
def test_a_machine_without_sensors_has_none_and_waits_for_none(tmp_path: Path, kind: str) -> None:
    if kind == "x86":
        fake_board.build(tmp_path, "x86")
    # Would be waited for if there were anything to see in an idle machine.
    with Watch(tmp_path, interval_s=0.01, idle_s=3600) as watch:
        wait_for_samples(watch, 2)
    found = watch.result()
    assert found["power_w"] is None
    assert found["energy_j"] is None
    assert found["gpu_load_others"] is None
    assert found["clocks_mhz"] == {}
    assert found["clock_policy"] == {"start": "unknown", "end": "unknown"}
    assert found["throttle"] == {"events": [], "counters": {}}
    assert found["temperatures_c"]["max"] == {}
    assert (found["free_memory_gib"] is None) == (kind == "nothing")


def test_a_rail_that_does_not_answer_leaves_the_total_unknown(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.write("sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr2_input", "")
    with Watch(board.root, interval_s=0.01, idle_s=0) as watch:
        wait_for_samples(watch, 2)
    found = watch.result()
    assert found["power_w"] is None
    assert found["energy_j"] is None


def test_the_thread_ends_when_the_timing_fails(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    watch = Watch(board.root, interval_s=0.01, idle_s=0)
    with pytest.raises(RuntimeError, match="the engine crashed"), watch:
        raise RuntimeError("the engine crashed")
    assert not watch._thread.is_alive()
    assert watch.result()["power_w"]["mean"] == 12.0


def test_a_sensor_that_raises_ends_the_sampling_and_not_the_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = fake_board.build(tmp_path)
    broken = threading.Event()
    with Watch(board.root, interval_s=0.01, idle_s=0) as watch:
        real = watch._sensors.sample

        def sample() -> object:
            if threading.current_thread() is watch._thread:
                broken.set()
                raise ValueError("no such channel")
            return real()

        monkeypatch.setattr(watch._sensors, "sample", sample)
        assert broken.wait(60)
    assert watch.result()["sampler"]["error"] == "ValueError: no such channel"


def test_the_sampler_tells_what_it_costs() -> None:
    with Watch(Path("/"), interval_s=0.01, idle_s=0) as watch:
        wait_for_samples(watch, 20)
    cost = watch.result()["sampler"]
    assert cost["samples"] >= 20
    assert 0 < cost["cpu_s"] < 5
    assert 0 < cost["share_of_cpu"] < 1


def test_only_the_timed_seconds_count_as_energy(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, power_w=10.0)
    with Watch(board.root, interval_s=0.01, idle_s=0) as watch:
        wait_for_samples(watch, 5)
        board.draw(40.0)
        wait_for_samples(watch, 20)
        board.draw(10.0)
        wait_for_samples(watch, 5)
        times = [s.at_s for s in watch._samples if s.power_w == pytest.approx(40.0)]
    timed_s = (times[-1] - times[0]) / 2
    found = watch.result(timed_s)
    assert found["energy_s"] == pytest.approx(timed_s, abs=1e-3)
    assert found["power_w"]["mean"] == pytest.approx(40.0, rel=1e-3)
    assert watch.result()["power_w"]["mean"] < 40.0
