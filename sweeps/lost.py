"""What a worker that is gone died of: its machine, a preemption, memory, or our own code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# How Ray's memory monitor says that it ended a worker.
OUT_OF_MEMORY = (
    "OutOfMemoryError",
    "memory usage threshold",
    "NODE_OUT_OF_MEMORY",
    "low on memory",
    "due to memory pressure",
)
# The node is gone, goes away, or the process was asked to end: nobody's fault.
PREEMPTED = (
    "NodeDiedError",
    "its node has died",
    "node was terminated",
    "node was preempted",
    "node is draining",
    "DRAIN_PREEMPTED",
    "placement group was removed",
    "PlacementGroupRemoved",
    "received a SIGTERM",
    "receives a SIGTERM",
    # Tune could not give a worker its next trial, since the last one was still writing.
    "reuse requires reset_config",
)
# Our own code, or its import, raised in the worker: no machine is to blame.
CODE = ("error raised in its creation task", "ray::")


def lost(text: str, *, node_is_gone: bool = False, oom_kill: bool = False) -> dict[str, Any]:
    """The outcome of a trial whose worker is gone.

    Args:
        text: What Ray says of it, kept as the traceback.
        node_is_gone: Its node has left the cluster, or is about to.
        oom_kill: The kernel has lately ended a process on its machine for memory.
    """
    outcome = {"state": "failed", "traceback": text, "error": "", "result": None}
    if node_is_gone or _says(text, PREEMPTED):
        why = "its node left the cluster" if node_is_gone else _first_sign(text)
        return outcome | {"state": "preempted", "kind": None, "reason": f"preempted: {why}"}
    if _says(text, OUT_OF_MEMORY) or oom_kill:
        who = "Ray's memory monitor" if _says(text, OUT_OF_MEMORY) else "the kernel"
        return outcome | {"kind": "oom", "reason": f"out of memory: {who} ended its process"}
    if _says(text, CODE) and "The actor is dead because" not in text:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        return outcome | {"kind": "code", "reason": last.strip() or "the worker raised"}
    reason = "the worker process died (Ray's message is the traceback)"
    return outcome | {"kind": "machine", "reason": reason}


def _says(text: str, signs: tuple[str, ...]) -> bool:
    return any(sign in text for sign in signs)


def _first_sign(text: str) -> str:
    return next(sign for sign in PREEMPTED if sign in text)


class OomKills:
    """Counts the processes that the kernel ended for memory, in this control group or machine.

    Args:
        proc, cgroup: Where the kernel's counters are.
        clock: Seconds.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        cgroup: Path = Path("/sys/fs/cgroup"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc, self._cgroup, self._clock = proc, cgroup, clock
        self._seen, self._last = self.total(), -math.inf

    def recent(self, within_s: float = 30.0) -> bool:
        """Whether there was one in the last seconds, by calls that come more often than that."""
        now, before = self._clock(), self._seen
        self._seen = self.total()
        if self._seen > before:
            self._last = now
        return now - self._last <= within_s

    def total(self) -> int:
        """The counter of this process's control group, else of the machine; 0 without either."""
        for path in self._group_files():
            found = _field(path, "oom_kill")
            if found is not None:
                return found
        return _field(self._proc / "vmstat", "oom_kill") or 0

    def _group_files(self) -> list[Path]:
        """This process's files, version 2 before 1, its own before those of the container."""
        files = []
        try:
            lines = (self._proc / "self" / "cgroup").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            _, _, rest = line.partition(":")
            controllers, _, place = rest.partition(":")
            if controllers == "":
                files.append(self._cgroup / place.lstrip("/") / "memory.events")
            elif "memory" in controllers.split(","):
                files.append(self._cgroup / "memory" / place.lstrip("/") / "memory.oom_control")
        return [
            *files,
            self._cgroup / "memory.events",
            self._cgroup / "memory" / "memory.oom_control",
        ]


def _field(path: Path, name: str) -> int | None:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return None
    return None
