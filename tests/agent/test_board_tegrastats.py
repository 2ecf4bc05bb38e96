"""Lines of tegrastats in the shapes of several boards, and the program as a child."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetson_agent.board import tegrastats
from jetson_agent.board.tegrastats import Core, Reader, Unit, parse
from jetson_agent.conditions import Watch
from tests.agent import fake_board

# Of our own making, in the shape that an AGX Orin prints on JetPack 6 and, below, on JetPack 5.
JP6 = (
    "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) "
    "CPU [14%@2188,off,8%@2035,46%] EMC_FREQ 3%@2133 GR3D_FREQ 98%@[1300,1299] NVENC 79%@166 "
    "NVDEC off NVJPG off OFA off VIC 36%@115 PVA0_FREQ off APE 174 cpu@52.562C soc2@48.437C "
    "tj@52.562C VDD_GPU_SOC 2412mW/2400mW VDD_CPU_CV 1607mW/1607mW VIN_SYS_5V0 4707mW/4657mW"
)
JP5 = (
    "RAM 1282/62795MB (lfb 15152x4MB) CPU [0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 "
    "GR3D2_FREQ 7%@306 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C GPU@-256C "
    "tj@42.593C VDD_GPU_SOC 2399mW/2399mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/302mW NC 0mW/0mW"
)


def test_a_line_of_jetpack_6_is_read_in_full() -> None:
    stats = parse(JP6)
    assert stats.ram_mb == (18207, 62841)
    assert stats.swap_mb == (86, 31420)
    assert stats.cores == (
        Core(load=0.14, mhz=2188),
        None,
        Core(load=0.08, mhz=2035),
        Core(load=0.46, mhz=None),
    )
    assert stats.emc == Unit(load=0.03, mhz=(2133,))
    assert stats.gpu == Unit(load=0.98, mhz=(1300, 1299))
    assert stats.engines == {"NVENC": 166, "VIC": 115, "APE": 174}
    assert stats.temperatures_c == {"cpu": 52.562, "soc2": 48.437, "tj": 52.562}
    assert stats.power_mw == {
        "VDD_GPU_SOC": (2412, 2400),
        "VDD_CPU_CV": (1607, 1607),
        "VIN_SYS_5V0": (4707, 4657),
    }


def test_sensors_that_are_off_and_rails_that_go_nowhere_are_left_out() -> None:
    stats = parse(JP5)
    assert stats.swap_mb is None
    assert stats.gpu == Unit(load=0.0, mhz=(0,))
    assert stats.temperatures_c == {"CPU": 42.593, "Tboard": 32.0, "tj": 42.593}
    assert stats.power_mw == {"VDD_GPU_SOC": (2399, 2399), "VDDQ_VDD2_1V8AO": (301, 302)}
    assert stats.engines == {"VIC": 729, "APE": 174}


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("GR3D_FREQ 0%@[0,0]", Unit(load=0.0, mhz=(0, 0))),
        ("GR3D_FREQ 63%@[621]", Unit(load=0.63, mhz=(621,))),
        ("GR3D_FREQ 12%@306", Unit(load=0.12, mhz=(306,))),
        ("GR3D_FREQ 45%", Unit(load=0.45, mhz=())),
        ("GR3D_FREQ off", None),
        ("", None),
    ],
)
def test_the_gpu_has_four_shapes(text: str, unit: Unit | None) -> None:
    assert parse(f"RAM 1/2MB {text} VIC off").gpu == unit


def test_every_line_of_the_real_samples_is_read(shared_data: Path) -> None:
    files = sorted((shared_data / "jetson_samples").glob("tegrastats_*.txt"))
    assert len(files) >= 3
    expected_cores = {"agx": 12, "orin": 6}
    for path in files:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert lines
        for line in lines:
            stats = parse(line)
            assert len(stats.cores) == expected_cores[path.name.split("_")[1]]
            assert stats.emc is not None
            assert stats.emc.mhz == (2133,)
            assert stats.gpu is not None
            assert stats.ram_mb is not None
            assert 7000 < stats.ram_mb[1] < 63000
            assert all(0 < celsius < 60 for celsius in stats.temperatures_c.values())
            assert "tj" in stats.temperatures_c
            assert len(stats.power_mw) >= 3
            assert "NC" not in stats.power_mw


@given(text=st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    parse(text)


@given(cut=st.integers(0, len(JP6)), at=st.integers(0, len(JP6)), junk=st.text(max_size=20))
def test_no_cut_or_mixed_line_breaks_the_reader(cut: int, at: int, junk: str) -> None:
    stats = parse(JP6[:at] + junk + JP6[cut:])
    assert all(-100 <= celsius <= 250 for celsius in stats.temperatures_c.values())


def test_a_long_line_takes_no_time() -> None:
    started_s = time.process_time()
    for text in ("A" * 10**6, "CPU [" * 10**5, "0" * 10**6, "RAM 1/" * 10**5):
        parse(text)
    assert time.process_time() - started_s < 10


def install(root: Path, script: str) -> Path:
    path = root / "usr/bin/tegrastats"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def wait_until(true: object, what: str) -> None:
    assert callable(true)
    end_s = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end_s, what
        time.sleep(0.01)


def test_the_program_is_found_where_jetpack_puts_it(tmp_path: Path) -> None:
    assert tegrastats.find(tmp_path) is None
    path = install(tmp_path, "true")
    assert tegrastats.find(tmp_path) == path
    path.chmod(0o644)
    assert (tegrastats.find(tmp_path) is None) == (not os.access(path, os.X_OK))


def test_the_program_runs_as_long_as_the_block(tmp_path: Path) -> None:
    program = install(
        tmp_path, f'echo "$@" > {tmp_path}/args\nwhile :; do echo "{JP6}"; sleep 0.05; done'
    )
    with Reader(program, interval_s=0.5) as reader:
        wait_until(lambda: len(reader.stats()) >= 3, "no lines came")
        child = reader._child
        assert child is not None
    assert (tmp_path / "args").read_text() == "--interval 500\n"
    assert reader.stats()[0].emc == Unit(load=0.03, mhz=(2133,))
    assert child.returncode is not None
    assert reader.cpu_s is not None


def test_a_program_that_ignores_sigterm_goes_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tegrastats, "GRACE_S", 0.2)
    program = install(
        tmp_path,
        f"trap '' TERM\nsleep 3600 &\necho $! > {tmp_path}/pid\n"
        f'echo "{JP5}"\nwhile :; do sleep 1; done',
    )
    with Reader(program) as reader:
        wait_until(lambda: bool(reader.stats()), "no line came")
    grandchild = int((tmp_path / "pid").read_text())

    def gone() -> bool:
        state = Path(f"/proc/{grandchild}/stat")
        return not state.exists() or ") Z " in state.read_text()

    wait_until(gone, "a child of the program is left over")
    assert reader._child is not None
    assert reader._child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("script", ["exit 3", "echo nonsense; exit 0"])
def test_a_program_that_fails_tells_nothing(tmp_path: Path, script: str) -> None:
    with Reader(install(tmp_path, script)) as reader:
        assert reader._child is not None
        reader._child.wait(60)
    assert all(stats.emc is None for stats in reader.stats())


def test_a_program_that_cannot_start_is_no_program(tmp_path: Path) -> None:
    program = install(tmp_path, "")
    program.write_text("#!/no/such/interpreter\n")
    with Reader(program) as reader:
        pass
    assert reader.stats() == []
    assert reader.cpu_s is None


def test_a_watch_has_the_memorys_clock_from_tegrastats(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    slower = JP6.replace("3%@2133", "9%@1600")
    install(
        tmp_path,
        f'echo "{JP6}"\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.02; done\n'
        f'while :; do echo "{slower}"; sleep 0.02; done',
    )
    with Watch(board.root, interval_s=0.01, idle_s=0) as watch:
        wait_until(lambda: len(watch._tegrastats.stats()) == 1, "no line came")
        watch.begin()
        (tmp_path / "go").touch()
        wait_until(lambda: len(watch._tegrastats.stats()) >= 3, "no lines came")
    found = watch.result()
    assert found["clocks_mhz"]["emc"] == {"start": 1600, "end": 1600, "min": 1600, "max": 1600}
    assert found["sampler"]["tegrastats_cpu_s"] >= 0
