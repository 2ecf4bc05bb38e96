"""What else the machine is doing: CPU time, GPU load, memory."""

from __future__ import annotations

import os
from pathlib import Path

from jetson_agent.board.clocks import gpu_folder
from jetson_agent.board.files import read_int, read_text

GIB_IN_KIB = 2**20


def usable_cpus() -> list[int]:
    """Numbers of the CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


def gpu_load_file(sysroot: Path) -> Path | None:
    """The file in which the GPU driver tells its load in per mille; None if there is none."""
    folder = gpu_folder(sysroot)
    platform = sysroot / "sys/devices/platform"
    places = [sysroot / "sys/devices/gpu.0/load"]
    if folder is not None:
        places = [
            folder / "device/load",
            platform / folder.name / "load",
            platform / "bus@0" / folder.name / "load",
            *places,
        ]
    return next((path for path in places if path.is_file()), None)


def gpu_load(path: Path | None) -> float | None:
    """Share of time that the GPU is busy, 0 to 1."""
    load = read_int(path) if path is not None else None
    return load / 1000 if load is not None and 0 <= load <= 1000 else None


def cpu_seconds(sysroot: Path, cpus: list[int]) -> tuple[float | None, float | None]:
    """Busy and stolen seconds of `cpus` since boot, or None where /proc/stat does not tell.

    Columns of a ``cpuN`` line, in ticks: user nice system idle iowait irq softirq steal ...
    (proc(5)); guest time is contained in user and nice.
    """
    tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
    names = {f"cpu{number}" for number in cpus}
    busy = stolen = 0
    seen = False
    for line in read_text(sysroot / "proc/stat", 1 << 20).splitlines():
        name, *columns = line.split() or [""]
        if name in names and len(columns) >= 8:
            if not all(c.isascii() and c.isdigit() and len(c) < 19 for c in columns[:8]):
                continue
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, columns[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
            seen = True
    return (busy * tick_s, stolen * tick_s) if seen else (None, None)


def memory_gib(sysroot: Path) -> dict[str, float]:
    """``total``, ``available``, ``swap`` and ``swap_used`` in GiB, as far as the kernel tells."""
    kib: dict[str, int] = {}
    for line in read_text(sysroot / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isascii() and number[0].isdigit() and len(number[0]) < 16:
            kib.setdefault(name.strip(), int(number[0]))
    names = {"total": "MemTotal", "available": "MemAvailable", "swap": "SwapTotal"}
    found = {ours: kib[theirs] / GIB_IN_KIB for ours, theirs in names.items() if theirs in kib}
    if "SwapTotal" in kib and "SwapFree" in kib:
        found["swap_used"] = max(0, kib["SwapTotal"] - kib["SwapFree"]) / GIB_IN_KIB
    return {name: round(gib, 3) for name, gib in found.items()}


def load_average(sysroot: Path) -> float | None:
    """Load of the last minute."""
    words = read_text(sysroot / "proc/loadavg", 256).split()
    try:
        average = float(words[0]) if words else None
    except ValueError:
        return None
    return average if average is not None and 0 <= average < 1e6 else None
