"""Which device this is: read from /proc and /sys, never from the host name.

Every function takes `sysroot`, so that tests can show it the files of another board.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from jetson_agent.protocol import slug

ROOT = Path("/")
MEMORY_SIZES_GB = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True, kw_only=True)
class Device:
    """`name` is the device in experiment names; `power_mode` is one part of a timing's mode."""

    name: str
    model: str
    cpu: str
    machine: str
    cpus: int
    memory_gib: float
    power_mode: str
    kernel: str

    def mode(self, threads: int) -> str:
        """What apart from the device decides the figures, such as ``MAXN-4t``."""
        return f"{self.power_mode}-{threads}t"


def read_text(path: Path) -> str:
    """The text of a small /proc or /sys file without NULs, or ``""`` if it cannot be read."""
    try:
        return path.read_bytes().replace(b"\0", b"").decode(errors="replace").strip()
    except OSError:
        return ""


def usable_cpus() -> list[int]:
    """Numbers of the CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


def identify(name: str | None = None, sysroot: Path = ROOT) -> Device:
    """Describe this machine.

    Args:
        name: Overrides the name made from the board's model, or from architecture, CPU and
            number of usable CPUs where no device tree names the board.
    """
    machine = platform.machine() or "unknown"
    cpu = cpu_model(sysroot)
    cpus = len(usable_cpus())
    memory_gib = total_memory_gib(sysroot)
    board = read_text(sysroot / "proc/device-tree/model")
    if board:
        derived = f"{slug(board)}-{nominal_memory_gb(memory_gib)}gb"
    else:
        derived = f"{slug(machine)}-{slug(short_cpu_name(cpu))}-{cpus}c"
    return Device(
        name=name or derived,
        model=board or "unknown board",
        cpu=cpu,
        machine=machine,
        cpus=cpus,
        memory_gib=memory_gib,
        power_mode=power_mode(sysroot),
        kernel=platform.release(),
    )


def cpu_model(sysroot: Path = ROOT) -> str:
    """The CPU's name, or on ARM its implementer and part number."""
    facts: dict[str, str] = {}
    for line in read_text(sysroot / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip())
    if facts.get("model name"):
        return facts["model name"]
    if "cpu part" in facts:
        return f"arm {facts.get('cpu implementer', '?')} {facts['cpu part']}"
    return "unknown cpu"


def short_cpu_name(cpu: str) -> str:
    """`cpu` without trademarks, clock and filler words."""
    text = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor|\d+-core)\b", " ", cpu, flags=re.IGNORECASE)
    return " ".join(text.split()) or "unknown"


def total_memory_gib(sysroot: Path = ROOT) -> float:
    """Memory that the kernel has, in GiB; 0 if unknown."""
    found = re.search(r"MemTotal:\s+(\d+) kB", read_text(sysroot / "proc/meminfo"))
    return round(int(found[1]) / 2**20, 2) if found else 0.0


def nominal_memory_gb(memory_gib: float) -> int:
    """The size on the box: firmware and carve-outs hide a part of it from the kernel."""
    return next((size for size in MEMORY_SIZES_GB if size >= memory_gib), round(memory_gib))


def power_mode(sysroot: Path = ROOT) -> str:
    """Name of the nvpmodel mode (ids differ by board), else the CPU's frequency governor."""
    status = re.search(r"pmode:(\d+)", read_text(sysroot / "var/lib/nvpmodel/status"))
    if status:
        for entry in re.findall(
            r"<\s*POWER_MODEL\s+([^>]*)>", read_text(sysroot / "etc/nvpmodel.conf")
        ):
            fields = dict(re.findall(r"(\w+)=(\S+)", entry))
            if fields.get("ID", "").isdigit() and int(fields["ID"]) == int(status[1]):
                return str(fields.get("NAME", "unnamed"))
        return f"nvpmodel-{int(status[1])}"
    return read_text(sysroot / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "default"
