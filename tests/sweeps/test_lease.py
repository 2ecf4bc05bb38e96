"""One sweep of a study at a time, whoever dies, sleeps or starts at the same moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest

from sharedenc.errors import TrackingError
from sharedenc.tracking import MemoryTracker, MlflowTracker
from sweeps import lease
from sweeps.lease import Claim, Lease, birth


@pytest.fixture
def tracker() -> Iterator[MemoryTracker]:
    tracker = MemoryTracker()
    yield tracker
    tracker.close()


@pytest.fixture
def parent(tracker: MemoryTracker) -> str:
    return tracker.study("s", {})


def claim_tags(tracker: MemoryTracker, parent: str) -> list[str]:
    return [name for name in tracker.record(parent).tags if name.startswith(lease.TAG)]


def elsewhere(**values: object) -> Claim:
    """A claim of a sweep on a machine whose processes cannot be seen from here."""
    values = {"place": "other boot/other space", "host": "far", "user": "ann"} | values
    return replace(Claim.mine(), ticket=1, **values)  # type: ignore[arg-type]


def claimed(tracker: MemoryTracker, parent: str, claim: Claim) -> None:
    tracker.tag(parent, {claim.tag: json.dumps(asdict(claim))})


class Clock:
    """A clock that goes on by ``step`` with every look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_the_second_sweep_is_refused_by_name(tracker: MemoryTracker, parent: str) -> None:
    with Lease(tracker, parent, "s") as first:
        with pytest.raises(TrackingError) as refused, Lease(tracker, parent, "s"):
            pass
        for words in (first.claim.user, first.claim.host, str(os.getpid()), first.claim.since):
            assert words in str(refused.value)
        assert "--name" in str(refused.value)
        assert claim_tags(tracker, parent) == [first.claim.tag]
        first.check()
    assert claim_tags(tracker, parent) == []
    with Lease(tracker, parent, "s"):
        pass


def test_of_many_that_start_at_once_one_gets_it(tracker: MemoryTracker, parent: str) -> None:
    held: list[str] = []
    refused: list[str] = []
    gate, over = threading.Barrier(8), threading.Event()

    def sweep() -> None:
        gate.wait()
        try:
            with Lease(tracker, parent, "s") as mine:
                held.append(mine.claim.id)
                over.wait(30)
        except TrackingError as error:
            refused.append(str(error))
        if len(refused) == 7:
            over.set()

    threads = [threading.Thread(target=sweep) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_a_dead_process_of_this_machine_is_followed_at_once(
    tracker: MemoryTracker, parent: str
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    notes: list[str] = []
    claimed(tracker, parent, replace(Claim.mine(), pid=gone.pid, born=1, ticket=3))
    # The number belongs to a process again, but to another one.
    claimed(tracker, parent, replace(Claim.mine(), born=(birth(os.getpid()) or 0) - 1, ticket=4))
    with Lease(tracker, parent, "s", note=notes.append, clock=lambda: 0.0) as mine:
        assert mine.claim.ticket == 5
    assert len(notes) == 2
    assert all("taking over" in note for note in notes)


def test_a_sweep_elsewhere_is_followed_once_it_has_been_silent(
    tracker: MemoryTracker, parent: str
) -> None:
    claimed(tracker, parent, elsewhere())
    notes: list[str] = []
    clock = Clock(step=0.01)
    with Lease(tracker, parent, "s", silent_s=0.1, note=notes.append, clock=clock):
        pass
    assert "ann on far" in notes[0]
    assert "taking over" in notes[1]


def test_a_heartbeat_that_changes_refuses_whatever_its_clock_says(
    tracker: MemoryTracker, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.01)
    other = elsewhere(since="1970-01-01 00:00:00 UTC")
    claimed(tracker, parent, other)
    over = threading.Event()

    def beat() -> None:
        number = 0
        while not over.wait(0.02):
            number -= 1  # any change is life
            claimed(tracker, parent, replace(other, beat=number))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(TrackingError, match="ann on far"), Lease(tracker, parent, "s"):
            pass
    finally:
        over.set()
        thread.join()


def test_silence_is_not_counted_while_nobody_looked(tracker: MemoryTracker, parent: str) -> None:
    """A server that was away for a minute makes nobody dead."""
    claimed(tracker, parent, elsewhere())
    second = Lease(tracker, parent, "s", silent_s=60.0)
    now = [0.0]
    second.clock = lambda: now[0]
    second.claim = replace(second.claim, ticket=2)
    (other,) = second._others()
    assert not second._is_dead(other)
    looks = iter([50.0, 54.0, 58.0, 62.0, 66.0])
    dead_at: list[float] = []

    def wait(seconds: float) -> bool:
        now[0] = next(looks)
        return False

    second._ended.wait = wait  # type: ignore[method-assign]
    second.note = lambda text: dead_at.append(now[0]) if "taking over" in text else None
    with pytest.raises(StopIteration):
        second._await_turn()
    assert dead_at == []


def test_who_is_taken_over_notices(tracker: MemoryTracker, parent: str) -> None:
    with Lease(tracker, parent, "s", beat_s=0.01) as first:
        tracker.untag(parent, [first.claim.tag])
        assert first._thread is not None
        first._thread.join(timeout=30)
        with pytest.raises(TrackingError, match="taken over"):
            first.check()


HOLD = """
import sys, time
from sharedenc.tracking import MlflowTracker
from sweeps.lease import Lease
tracker = MlflowTracker(sys.argv[1])
with Lease(tracker, tracker.study("leased", {}), "leased"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_driver_leaves_the_study_to_the_next(mlflow_uri: str) -> None:
    tracker = MlflowTracker(mlflow_uri)
    parent = tracker.study("leased", {})
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, mlflow_uri], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrackingError, match=f"process {holder.pid}"):
            with Lease(tracker, parent, "leased"):
                pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        started = time.monotonic()
        with Lease(tracker, parent, "leased") as mine:
            mine.check()
        assert time.monotonic() - started < lease.SILENT_S
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
