"""A trial is told to save and stop: by file, by its driver, by SIGTERM."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from sweeps.stopping import Stop, drain_file, save_on_sigterm


def reason_of(stop: Stop) -> str:
    deadline = time.monotonic() + 60
    while not stop() and time.monotonic() < deadline:
        time.sleep(0.005)
    return stop()


def test_a_drain_file_that_appears_or_lies_there_already(tmp_path: Path) -> None:
    file = tmp_path / "drain"
    with Stop(file, every_s=0.01) as stop:
        assert stop() == ""
        file.touch()
        assert reason_of(stop) == f"preempted: its node goes away ({file} exists)"
    with Stop(file, every_s=60) as stop:
        assert stop().startswith("preempted: ")


def test_the_drivers_reason_is_passed_on_and_the_first_one_stays(tmp_path: Path) -> None:
    answers = iter(["", "", "stopped by Ctrl-C", "another"])
    with Stop(tmp_path / "none", lambda: next(answers), every_s=0.01) as stop:
        assert reason_of(stop) == "stopped by Ctrl-C"
        stop.look()
        assert stop() == "stopped by Ctrl-C"


def test_a_driver_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    def ask() -> str:
        raise ConnectionError("gone")

    with Stop(tmp_path / "drain", ask, every_s=60) as stop:
        stop.look()
        assert stop() == ""
        (tmp_path / "drain").touch()
        stop.look()
        assert stop() != ""


def test_its_thread_ends_with_the_trial(tmp_path: Path) -> None:
    before = threading.active_count()
    with Stop(tmp_path / "none", every_s=0.01):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_sigterm_stops_the_trial_and_without_one_does_what_it_did(tmp_path: Path) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        save_on_sigterm()
        save_on_sigterm()  # a worker that goes on to its next trial
        with Stop(tmp_path / "none", every_s=60) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert reason_of(stop) == "preempted: its worker process got SIGTERM"
        assert heard == []
        with Stop(tmp_path / "none", every_s=60) as stop:
            assert stop() == "", "the next trial of this process goes on"
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 60
        while not heard and time.monotonic() < deadline:
            time.sleep(0.005)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_file_is_this_users_own_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHAREDENC_DRAIN_FILE", raising=False)
    assert drain_file() == Path(tempfile.gettempdir()) / f"sharedenc-drain-{os.getuid()}"
    monkeypatch.setenv("SHAREDENC_DRAIN_FILE", "/run/drain")
    assert drain_file() == Path("/run/drain")
