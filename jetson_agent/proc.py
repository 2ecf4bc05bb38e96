"""A child process with a deadline that leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# What trtexec prints when it begins to send queries, and so do our own children.
STARTED = "Starting inference"
GRACE_S = 2.0
POLL_S = 0.05
TAIL_BYTES = 4000
# What a child that only times a file has no business to see.
PRIVATE_PREFIXES = ("MLFLOW_", "AWS_", "AZURE_", "GOOGLE_")

_running: set[int] = set()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a child ended; `tail` is the end of what it printed, both streams mixed."""

    returncode: int
    timed_out: bool
    stopped: bool
    tail: str

    @property
    def describe(self) -> str:
        """One phrase for a person: the signal's name or the exit code."""
        if self.returncode < 0:
            try:
                return f"was ended by {signal.Signals(-self.returncode).name}"
            except ValueError:
                return f"was ended by signal {-self.returncode}"
        return f"ended with exit code {self.returncode}"


def child_environment() -> dict[str, str]:
    """The environment without credentials of servers and clouds."""
    return {k: v for k, v in os.environ.items() if not k.startswith(PRIVATE_PREFIXES)}


def kill_groups() -> None:
    """End whatever `run_child` has running, without any grace: this process is about to end."""
    for group in list(_running):
        _signal_group(group, signal.SIGKILL)


def die_with_parent() -> None:
    """Have the kernel end this process as soon as the one that started it is gone.

    A timing whose agent was killed would spoil those of the next agent. Source: prctl(2).
    """
    pr_set_pdeathsig = 1
    parent = os.getppid()
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def run_child(
    command: Sequence[str],
    *,
    deadline_s: float,
    stopping: threading.Event,
    log: Path,
    environment: Mapping[str, str],
    on_start: Callable[[], None] | None = None,
) -> Finished:
    """Run `command` in a group of its own until it ends, `deadline_s` is over or `stopping` is set.

    Its whole process group is gone when this returns, whatever the reason.

    Args:
        on_start: Called once, as soon as the child has printed `STARTED`.
    """
    timed_out = stopped = False
    with log.open("wb") as stream, log.open("rb") as printed:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
        )
        _running.add(child.pid)
        try:
            watch = _Watch(printed, on_start)
            end = time.monotonic() + deadline_s
            while child.poll() is None:
                timed_out = time.monotonic() >= end
                stopped = stopping.is_set()
                if timed_out or stopped:
                    break
                watch.look()
                stopping.wait(POLL_S)
        finally:
            _end_group(child)
            _running.discard(child.pid)
    return _finished(child, log, timed_out=timed_out, stopped=stopped)


def run_tool(
    command: Sequence[str],
    *,
    deadline_s: float,
    log: Path,
    on_start: Callable[[], None] | None = None,
) -> Finished:
    """Run `command` from within a child of the agent, in the child's own group.

    So whoever ends that group ends the tool too; it also ends when the child does.
    """
    timed_out = False
    with log.open("wb") as stream, log.open("rb") as printed:
        # A child of the agent has one thread here: what runs between fork and exec is safe.
        tool = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        try:
            watch = _Watch(printed, on_start)
            end = time.monotonic() + deadline_s
            while tool.poll() is None and not timed_out:
                timed_out = time.monotonic() >= end
                watch.look()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    tool.wait(POLL_S)
        finally:
            if tool.poll() is None:
                tool.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    tool.wait(GRACE_S)
                tool.kill()
            tool.wait()
    return _finished(tool, log, timed_out=timed_out, stopped=False)


class _Watch:
    """Looks for `STARTED` in what a child prints."""

    def __init__(self, printed: BinaryIO, on_start: Callable[[], None] | None) -> None:
        self._printed = printed
        self._on_start = on_start
        self._seen = b""

    def look(self) -> None:
        if self._on_start is None:
            return
        self._seen = self._seen[-len(STARTED) :] + self._printed.read()
        if STARTED.encode() in self._seen:
            call, self._on_start = self._on_start, None
            call()


def _finished(
    child: subprocess.Popen[bytes], log: Path, *, timed_out: bool, stopped: bool
) -> Finished:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
        tail = stream.read().decode(errors="replace").strip()
    return Finished(returncode=child.returncode, timed_out=timed_out, stopped=stopped, tail=tail)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        _signal_group(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    # Also when the child is gone: what it started may still be there.
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
