"""All that a board tells of itself at this moment, for a person who asks what is wrong."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jetson_agent.board import clocks, load, modes, power, tegrastats, thermal, throttle


def describe(sysroot: Path, measured: Collection[str] = ()) -> dict[str, Any]:
    """One object of plain values; what the machine does not tell is None or empty.

    Args:
        measured: Modes of bench runs of this device, such as ``MAXN-pinned``.
    """
    rails = power.rails(sysroot)
    watts = power.read_watts(rails)
    signs = throttle.read(throttle.find(sysroot))
    temperatures = thermal.temperatures_c(sysroot)
    program = tegrastats.find(sysroot)
    return {
        "power_mode": modes.mode_name(sysroot),
        "power_modes": [asdict(mode) for mode in modes.power_modes(sysroot)],
        "modes_without_figures": [m.name for m in modes.without_figures(sysroot, measured)],
        "clock_policy": clocks.policy(sysroot),
        "floating": clocks.floating(sysroot),
        "clocks": clocks.ranges(sysroot),
        "temperatures_c": temperatures,
        "junction_c": thermal.junction_c(temperatures),
        "power_w": power.total_watts(watts),
        "rails_w": watts,
        "rail_limits_a": {rail.label: rail.limits_a() for rail in rails},
        "throttle": {
            "since_boot": signs.counters,
            "cooling": signs.cooling,
            "alarms": sorted(signs.alarms),
        },
        "gpu_load": load.gpu_load(load.gpu_load_file(sysroot)),
        "memory_gib": load.memory_gib(sysroot),
        "tegrastats": str(program) if program else None,
    }
