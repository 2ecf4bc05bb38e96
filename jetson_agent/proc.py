"""A child process in a group of its own, with a deadline, that leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 2.0
POLL_S = 0.05
TAIL_BYTES = 4000
# What a child that only times a file has no business to see.
PRIVATE_PREFIXES = ("MLFLOW_", "AWS_", "AZURE_", "GOOGLE_")


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


def run_child(
    command: Sequence[str],
    *,
    deadline_s: float,
    stopping: threading.Event,
    log: Path,
    environment: Mapping[str, str],
) -> Finished:
    """Run `command` until it ends, `deadline_s` is over or `stopping` is set.

    Its whole process group is gone when this returns, whatever the reason.
    """
    timed_out = stopped = False
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
        )
        try:
            end = time.monotonic() + deadline_s
            while child.poll() is None:
                timed_out = time.monotonic() >= end
                stopped = stopping.is_set()
                if timed_out or stopped:
                    break
                stopping.wait(POLL_S)
        finally:
            _end_group(child)
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
