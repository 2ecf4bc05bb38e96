"""Signs that the board slowed itself down: over-current counters, cooling devices, alarms.

The counters are those of the BPMP firmware, which the kernel driver ``soctherm_oc`` shows as
``/sys/class/hwmon/hwmon*/oc<n>_event_cnt`` on JetPack 5 and 6. An event divides the clocks of CPU
and GPU for about a millisecond, which no frequency file shows: the counter is the only trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from jetson_agent.board.files import matching, read_int, read_text
from jetson_agent.board.power import NOT_CONNECTED, monitors

OVER_CURRENT = {
    "oc1": "under-voltage",
    "oc2": "average over-current",
    "oc3": "instantaneous over-current",
}
# Cooling by slowing down. Not a fan, and not hot-surface-alert, which only warns (at 70 degrees).
SLOWING = ("cpufreq-", "devfreq-")
ALERT = "-throttle-alert"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the signs are read; found once, read often."""

    counters: dict[str, Path] = field(default_factory=dict)
    cooling: dict[str, Path] = field(default_factory=dict)
    alarms: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Counters since boot, states of the cooling devices that slow down, and alarms that are on."""

    counters: dict[str, int] = field(default_factory=dict)
    cooling: dict[str, int] = field(default_factory=dict)
    alarms: frozenset[str] = frozenset()


def find(sysroot: Path) -> Sources:
    """Look for all signs that this machine can give."""
    counters = {
        path.name.removesuffix("_event_cnt"): path
        for hwmon in matching(sysroot / "sys/class/hwmon", "hwmon*")
        for path in matching(hwmon, "oc*_event_cnt")
    }
    cooling: dict[str, Path] = {}
    for device in matching(sysroot / "sys/class/thermal", "cooling_device*"):
        name = read_text(device / "type", 64)
        if name.startswith(SLOWING) or name.endswith(ALERT):
            cooling[name if name not in cooling else f"{name}-{device.name}"] = device / "cur_state"
    alarms: dict[str, Path] = {}
    for folder in monitors(sysroot):
        for path in matching(folder, "*_alarm"):
            channel, _, level = path.name.removesuffix("_alarm").partition("_")
            number = channel.lstrip("abcdefghijklmnopqrstuvwxyz")
            label = read_text(folder / f"in{number}_label", 64) or f"{folder.name} {channel}"
            if label != NOT_CONNECTED:
                alarms[f"{label} {level}".strip()] = path
    return Sources(counters=counters, cooling=cooling, alarms=alarms)


def read(sources: Sources) -> Signs:
    """Look at all of them now."""
    counters = {name: read_int(path) for name, path in sources.counters.items()}
    cooling = {name: read_int(path) for name, path in sources.cooling.items()}
    return Signs(
        counters={name: count for name, count in counters.items() if count is not None},
        cooling={name: state for name, state in cooling.items() if state is not None},
        alarms=frozenset(name for name, path in sources.alarms.items() if read_int(path) == 1),
    )


def events(signs: list[Signs]) -> list[str]:
    """What happened from the first to the last of `signs`, one phrase each.

    A counter that goes back (a driver was loaded anew) counts from nought.
    """
    found = []
    for name in sorted({name for sign in signs for name in sign.counters}):
        counts = [sign.counters[name] for sign in signs if name in sign.counters]
        rise = sum(b - a if b >= a else b for a, b in pairwise(counts))
        if rise > 0:
            what = OVER_CURRENT.get(name, f"over-current alarm {name}")
            found.append(f"{what} ({name}), {rise} time{'s' if rise > 1 else ''}")
    for name in sorted({name for sign in signs for name in sign.cooling}):
        state = max(sign.cooling.get(name, 0) for sign in signs)
        if state > 0:
            found.append(f"cooling device {name} in state {state}")
    alarms = sorted({name for sign in signs for name in sign.alarms})
    return found + [f"alarm of the power monitor: {name}" for name in alarms]
