"""Under which conditions a timing ran: load, other processes, temperatures, clocks."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetson_agent.identity import ROOT, read_text, usable_cpus


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """A moment on this machine; two of them tell what happened between."""

    wall_s: float
    own_cpu_s: float
    busy_cpu_s: float | None
    stolen_cpu_s: float | None
    load_average: float
    temperatures_c: dict[str, float]
    cpu_mhz: list[int]


def read_conditions(sysroot: Path = ROOT) -> Conditions:
    """Look at the machine now."""
    cpus = usable_cpus()
    busy, stolen = _cpu_seconds(read_text(sysroot / "proc/stat"), cpus)
    own = os.times()
    return Conditions(
        wall_s=time.monotonic(),
        own_cpu_s=own.user + own.system + own.children_user + own.children_system,
        busy_cpu_s=busy,
        stolen_cpu_s=stolen,
        load_average=os.getloadavg()[0],
        temperatures_c=temperatures_c(sysroot),
        cpu_mhz=_cpu_mhz(sysroot, cpus),
    )


def between(start: Conditions, end: Conditions, cpus: int) -> dict[str, Any]:
    """What the certificate says about the time from `start` to `end`.

    ``others_cpu_share`` and ``stolen_cpu_share`` (by the hypervisor) are shares of all the CPU
    time that the `cpus` usable CPUs had, 0 to 1, or None where /proc/stat does not tell.
    """
    capacity_s = (end.wall_s - start.wall_s) * cpus
    own_s = end.own_cpu_s - start.own_cpu_s
    others: float | None = None
    stolen: float | None = None
    if start.busy_cpu_s is not None and end.busy_cpu_s is not None and capacity_s > 0:
        others = _share(end.busy_cpu_s - start.busy_cpu_s - own_s, capacity_s)
    if start.stolen_cpu_s is not None and end.stolen_cpu_s is not None and capacity_s > 0:
        stolen = _share(end.stolen_cpu_s - start.stolen_cpu_s, capacity_s)
    return {
        "window_s": round(end.wall_s - start.wall_s, 3),
        "own_cpu_s": round(own_s, 2),
        "others_cpu_share": others,
        "stolen_cpu_share": stolen,
        "load_average": {"start": start.load_average, "end": end.load_average},
        "temperatures_c": {"start": start.temperatures_c, "end": end.temperatures_c},
        "cpu_mhz": {"start": start.cpu_mhz, "end": end.cpu_mhz},
    }


def _share(part_s: float, capacity_s: float) -> float:
    return round(min(1.0, max(0.0, part_s / capacity_s)), 4)


def _cpu_seconds(stat: str, cpus: list[int]) -> tuple[float | None, float | None]:
    """Busy and stolen seconds of `cpus` since boot.

    Columns of a ``cpuN`` line, in ticks: user nice system idle iowait irq softirq steal ...
    (proc(5)); guest time is contained in user and nice.
    """
    tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
    names = {f"cpu{number}" for number in cpus}
    busy = stolen = 0
    seen = False
    for line in stat.splitlines():
        name, *columns = line.split()
        if name in names and len(columns) >= 8:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, columns[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
            seen = True
    return (busy * tick_s, stolen * tick_s) if seen else (None, None)


def temperatures_c(sysroot: Path = ROOT) -> dict[str, float]:
    """Temperature of each thermal zone that is switched on, in degrees Celsius."""
    found: dict[str, float] = {}
    for zone in sorted((sysroot / "sys/class/thermal").glob("thermal_zone*")):
        raw = read_text(zone / "temp")
        # A sensor of a Jetson that is switched off reads -256 degrees.
        if raw.lstrip("-").isdigit() and int(raw) > -100_000:
            found[read_text(zone / "type") or zone.name] = int(raw) / 1000
    return found


def _cpu_mhz(sysroot: Path, cpus: list[int]) -> list[int]:
    base = sysroot / "sys/devices/system/cpu"
    texts = [read_text(base / f"cpu{number}/cpufreq/scaling_cur_freq") for number in cpus]
    return [int(text) // 1000 for text in texts if text.isdigit()]
