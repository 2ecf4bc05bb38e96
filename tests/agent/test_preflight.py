"""Waiting for a board that is cool and idle, on trees that become so, or do not."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from jetson_agent import preflight
from jetson_agent.identity import identify
from jetson_agent.preflight import Limits, Preflight
from tests.agent import fake_board
from tests.agent.fake_board import FakeBoard

QUICK = Limits(deadline_s=0.0, window_s=0.0, poll_s=0.01)
PATIENT = replace(QUICK, deadline_s=600.0)


def ask(board: FakeBoard, limits: Limits) -> Preflight:
    return preflight.wait(identify(root=board.root), board.root, limits)


def test_a_cool_idle_board_is_ready_at_once(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, temperature_c=45.0)
    found = ask(board, PATIENT)
    assert found.ready
    assert found.reasons == []
    assert found.waited_s < 60
    assert found.facts["junction_c"] == 45.0
    assert found.facts["gpu_load"] == 0.0
    assert found.facts["others_cpu_share"] == 0.0
    assert found.facts["clock_policy"] == "pinned"
    assert found.facts["free_disk_gib"] > 0
    assert json.loads(json.dumps(found.to_dict()))["ready"] is True


@pytest.mark.parametrize(
    ("knob", "limits", "sentence"),
    [
        ("heat", QUICK, "The board is hot: 82.0 degrees (below 70 is needed)."),
        ("gpu", QUICK, "Something else keeps the GPU 30% busy (below 5% is needed)."),
        ("memory", QUICK, "Only 0.50 GiB of memory are free (1 are needed)."),
        ("", replace(QUICK, free_disk_gib=1e9), "GiB of disk space are free"),
    ],
)
def test_what_stays_in_the_way_is_said_at_the_end(
    tmp_path: Path, knob: str, limits: Limits, sentence: str
) -> None:
    board = fake_board.build(tmp_path)
    if knob == "heat":
        board.heat(82.0)
    elif knob == "gpu":
        board.gpu_load(0.3)
    elif knob == "memory":
        board.memory(64_000_000, 2**19)
    found = ask(board, limits)
    assert not found.ready
    assert len(found.reasons) == 1
    assert sentence in found.reasons[0]


def test_other_processes_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = fake_board.build(tmp_path)
    ticks = iter([100, 10**9])
    real = preflight.read_conditions

    def look(root: Path) -> object:
        board.cpu_ticks(next(ticks))
        return real(root)

    monkeypatch.setattr(preflight, "read_conditions", look)
    found = ask(board, QUICK)
    assert found.reasons == ["Other processes keep the CPUs 100% busy (below 10% is needed)."]


def test_it_waits_until_the_board_has_cooled_and_says_what_for(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, temperature_c=82.0)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        board.heat(55.0)

    found = preflight.wait(identify(root=tmp_path), tmp_path, PATIENT, say=say)
    assert found.ready
    assert found.facts["junction_c"] == 55.0
    assert len(said) == 1
    assert "waiting, at most" in said[0]
    assert "82.0 degrees" in said[0]


def test_a_new_obstacle_is_said_too(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, temperature_c=82.0)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        board.heat(55.0)
        board.gpu_load(0.5 if len(said) == 1 else 0.0)

    assert preflight.wait(identify(root=tmp_path), tmp_path, PATIENT, say=say).ready
    assert ["degrees" in text for text in said] == [True, False]
    assert ["GPU 50%" in text for text in said] == [False, True]


def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, temperature_c=82.0)
    stopping = threading.Event()
    found = preflight.wait(
        identify(root=board.root), board.root, PATIENT, stopping, lambda text: stopping.set()
    )
    assert not found.ready
    assert found.waited_s < 60


def test_a_server_is_not_waited_for_until_it_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = fake_board.build(tmp_path, "x86")

    def look(root: Path) -> object:
        raise AssertionError("nobody should look at the load of a server")

    monkeypatch.setattr(preflight, "read_conditions", look)
    found = ask(board, PATIENT)
    assert found.ready
    assert set(found.facts) == {"free_memory_gib", "free_disk_gib"}


def test_what_cannot_be_read_is_not_in_the_way(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.remove("proc/stat")
    board.remove("proc/meminfo")
    board.remove("sys/devices/platform/17000000.gpu/load")
    limits = replace(QUICK, folder=tmp_path / "not there")
    device = identify(root=tmp_path)
    for zone in (tmp_path / "sys/class/thermal").glob("thermal_zone*/temp"):
        zone.unlink()
    found = preflight.wait(device, tmp_path, limits)
    assert found.ready
    assert {v for k, v in found.facts.items() if k != "clock_policy"} == {None}
