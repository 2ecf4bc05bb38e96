"""Clocks of GPU and CPU, and whether ``jetson_clocks`` has pinned them.

The memory's clock (EMC) is in debugfs, which needs root; `jetson_agent.board.tegrastats` has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jetson_agent.board.files import matching, read_scaled, read_text

ClockPolicy = Literal["pinned", "floating", "unknown"]

# 17000000.gpu in JetPack 6, .ga10b in JetPack 5, .gv11b and .gp10b on older boards.
GPU_PATTERNS = ("*.gpu", "*.ga10b", "*.gv11b", "*.gp10b", "gpu-gpc-*")
# A server has a frequency policy per CPU; that many of them are enough to see a change.
MAX_CPU_DOMAINS = 16
MAX_MHZ = 20_000.0


@dataclass(frozen=True, kw_only=True)
class Clock:
    """One clock domain in MHz; None where the kernel does not tell."""

    now: float | None
    low: float | None
    high: float | None
    governor: str = ""

    @property
    def pinned(self) -> bool | None:
        """Whether it cannot move and runs as fast as it may; None if that cannot be said."""
        if self.now is None or self.low is None or self.high is None:
            return None
        return self.low == self.now == self.high

    @property
    def fixed(self) -> bool | None:
        """Whether its range is a point, or its governor never leaves the top."""
        if self.low is None or self.high is None:
            return None
        return self.low == self.high or self.governor == "performance"


def gpu_folder(sysroot: Path) -> Path | None:
    """The GPU's devfreq folder, found by name; None without a Tegra GPU."""
    base = sysroot / "sys/class/devfreq"
    return next((path for pattern in GPU_PATTERNS for path in matching(base, pattern)), None)


def cpu_folders(sysroot: Path) -> list[Path]:
    """One cpufreq folder for each group of cores that share a clock, at most 16."""
    found: dict[str, Path] = {}
    for cpu in matching(sysroot / "sys/devices/system/cpu", "cpu[0-9]*"):
        folder = cpu / "cpufreq"
        if folder.is_dir():
            found.setdefault(str(folder.resolve()), folder)
        if len(found) == MAX_CPU_DOMAINS:
            break
    return list(found.values())


def gpu_clock(folder: Path) -> Clock:
    """The GPU's clock now and its range; devfreq counts in Hz."""
    now, low, high = (
        read_scaled(folder / f"{name}_freq", 1e-6, 0, MAX_MHZ) for name in ("cur", "min", "max")
    )
    return Clock(now=now, low=low, high=high, governor=read_text(folder / "governor", 64))


def cpu_clock(folder: Path) -> Clock:
    """A CPU cluster's clock now and its range; cpufreq counts in kHz."""
    now, low, high = (
        read_scaled(folder / f"scaling_{name}_freq", 1e-3, 0, MAX_MHZ)
        for name in ("cur", "min", "max")
    )
    return Clock(now=now, low=low, high=high, governor=read_text(folder / "scaling_governor", 64))


def gpu_mhz(folder: Path | None) -> float | None:
    """The GPU's clock now, in MHz."""
    return read_scaled(folder / "cur_freq", 1e-6, 0, MAX_MHZ) if folder else None


def cpu_mhz(folders: list[Path]) -> list[float]:
    """Clocks of the CPU clusters now, in MHz, without those that cannot be read."""
    found = [read_scaled(folder / "scaling_cur_freq", 1e-3, 0, MAX_MHZ) for folder in folders]
    return [mhz for mhz in found if mhz is not None]


def floating(sysroot: Path) -> list[str] | None:
    """Which of ``GPU`` and ``CPU`` are not pinned; None where no Tegra GPU tells its clocks.

    The GPU is pinned when its lowest, highest and present clock are one; the CPU when lowest and
    highest are, since an idle core may show a clock that it is not running at.
    """
    folder = gpu_folder(sysroot)
    gpu = gpu_clock(folder).pinned if folder else None
    if gpu is None:
        return None
    cpus = [cpu_clock(path).fixed for path in cpu_folders(sysroot)]
    return [*([] if gpu else ["GPU"]), *(["CPU"] if False in cpus else [])]


def policy(sysroot: Path) -> ClockPolicy:
    """``pinned`` or ``floating``, or ``unknown`` on a machine without a Tegra GPU."""
    loose = floating(sysroot)
    if loose is None:
        return "unknown"
    return "floating" if loose else "pinned"


def ranges(sysroot: Path) -> dict[str, Any]:
    """Clock, range and governor of GPU and CPU clusters, for a certificate or `doctor`."""
    folder = gpu_folder(sysroot)
    found: dict[str, Any] = {"gpu": _range(gpu_clock(folder))} if folder else {}
    if cpus := [_range(cpu_clock(path)) for path in cpu_folders(sysroot)]:
        found["cpu"] = cpus
    return found


def _range(clock: Clock) -> dict[str, Any]:
    return {
        "mhz": clock.now,
        "min_mhz": clock.low,
        "max_mhz": clock.high,
        "governor": clock.governor,
    }
