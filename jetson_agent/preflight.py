"""Before a timing: wait, but not for ever, until the board is cool and idle and has room."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jetson_agent.board import load, thermal
from jetson_agent.board.clocks import policy
from jetson_agent.conditions import between, read_conditions
from jetson_agent.identity import Device, sysroot

# The GPU's load is of the last moment only: that many looks within the window make a mean.
LOOKS = 5
SAY_AGAIN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a timing needs, and how long to wait for it.

    `folder` is on the disk that engines are written to. `window_s` is how long load is watched at
    each look, `poll_s` the pause between two looks.
    """

    junction_c: float = 70.0
    gpu_load: float = 0.05
    others_cpu_share: float = 0.10
    free_memory_gib: float = 1.0
    free_disk_gib: float = 1.0
    deadline_s: float = 300.0
    window_s: float = 1.0
    poll_s: float = 2.0
    folder: Path = Path()


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """`reasons` say what is still in the way; with one of them a timing is at best suspect."""

    ready: bool
    waited_s: float
    reasons: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the certificate."""
        return asdict(self)


DEFAULT_LIMITS = Limits()


def wait(
    device: Device,
    root: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    stopping: threading.Event | None = None,
    say: Callable[[str], None] | None = None,
) -> Preflight:
    """Look until all is well, `limits.deadline_s` is over or `stopping` is set.

    A machine that is no board of NVIDIA's is only asked for memory and disk: nobody can wait
    until a server is idle, and the verdict tells its load.
    """
    root = root or sysroot()
    stopping = stopping or threading.Event()
    started_s = time.monotonic()
    said: tuple[str, float] | None = None
    while True:
        reasons, facts = look(device, root, limits, stopping)
        waited_s = time.monotonic() - started_s
        if stopping.is_set() or not reasons or waited_s >= limits.deadline_s:
            return Preflight(
                ready=not reasons and not stopping.is_set(),
                waited_s=round(waited_s, 2),
                reasons=list(reasons.values()),
                facts=facts,
            )
        now = ",".join(reasons)
        if say and (said is None or said[0] != now or waited_s - said[1] >= SAY_AGAIN_S):
            left_s = limits.deadline_s - waited_s
            say(f"waiting, at most {left_s:.0f} s more: {' '.join(reasons.values())}")
            said = (now, waited_s)
        stopping.wait(min(limits.poll_s, max(0.0, limits.deadline_s - waited_s)))


def look(
    device: Device, root: Path, limits: Limits, stopping: threading.Event
) -> tuple[dict[str, str], dict[str, Any]]:
    """One look: what is in the way, a sentence for each kind, and what was seen."""
    facts: dict[str, Any] = {
        "free_memory_gib": load.memory_gib(root).get("available"),
        "free_disk_gib": _free_disk_gib(limits.folder),
    }
    if device.is_board:
        facts |= _idleness(root, limits.window_s, stopping)
        temperatures = thermal.temperatures_c(root)
        junction = thermal.junction_c(temperatures)
        hottest = max(temperatures.values(), default=None)
        facts["junction_c"] = hottest if junction is None else junction
        facts["clock_policy"] = policy(root)
    reasons: dict[str, str] = {}
    if _over(facts.get("junction_c"), limits.junction_c):
        reasons["hot"] = (
            f"The board is hot: {facts['junction_c']:.1f} degrees (below {limits.junction_c:.0f} "
            "is needed)."
        )
    if _over(facts.get("gpu_load"), limits.gpu_load):
        reasons["gpu"] = (
            f"Something else keeps the GPU {facts['gpu_load']:.0%} busy (below "
            f"{limits.gpu_load:.0%} is needed)."
        )
    if _over(facts.get("others_cpu_share"), limits.others_cpu_share):
        reasons["cpu"] = (
            f"Other processes keep the CPUs {facts['others_cpu_share']:.0%} busy (below "
            f"{limits.others_cpu_share:.0%} is needed)."
        )
    for name, what in (("memory", "memory"), ("disk", "disk space")):
        free = facts[f"free_{name}_gib"]
        needed = limits.free_memory_gib if name == "memory" else limits.free_disk_gib
        if free is not None and free < needed:
            reasons[name] = f"Only {free:.2f} GiB of {what} are free ({needed:g} are needed)."
    return reasons, facts


def _over(value: float | None, limit: float) -> bool:
    return value is not None and value >= limit


def _idleness(root: Path, window_s: float, stopping: threading.Event) -> dict[str, float | None]:
    """Load of others while this process does nothing for `window_s`."""
    start = read_conditions(root)
    path = load.gpu_load_file(root)
    loads = []
    for _ in range(LOOKS):
        stopping.wait(window_s / LOOKS)
        if (seen := load.gpu_load(path)) is not None:
            loads.append(seen)
    found = between(start, read_conditions(root), len(load.usable_cpus()))
    return {
        "others_cpu_share": found["others_cpu_share"],
        "gpu_load": round(sum(loads) / len(loads), 4) if loads else None,
    }


def _free_disk_gib(folder: Path) -> float | None:
    try:
        return round(shutil.disk_usage(folder).free / 2**30, 3)
    except OSError:
        return None
