"""Power modes: which the board has, with their caps, and which one it is in.

``/etc/nvpmodel.conf`` holds the modes, ``/var/lib/nvpmodel/status`` the number of the one chosen;
both are read without root. A mode is known by its name: numbers differ between boards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jetson_agent.board.files import read_text

CONF = "etc/nvpmodel.conf"
STATUS = "var/lib/nvpmodel/status"


@dataclass(frozen=True, kw_only=True)
class PowerMode:
    """One mode; a cap is None where the mode sets none."""

    number: int
    name: str
    cores: int | None = None
    cpu_max_mhz: float | None = None
    gpu_max_mhz: float | None = None
    emc_max_mhz: float | None = None


def power_modes(sysroot: Path) -> list[PowerMode]:
    """All modes of this board, by number."""
    blocks: dict[int, tuple[str, list[list[str]]]] = {}
    lines: list[list[str]] = []
    for raw in read_text(sysroot / CONF, 1 << 20).splitlines():
        line = raw.partition("#")[0].strip()
        if line.startswith("<"):
            fields = dict(re.findall(r"([A-Z_]+)=([\w.+-]+)", line, re.ASCII))
            lines = []
            if "POWER_MODEL" in line and re.fullmatch(r"[0-9]{1,4}", fields.get("ID", "")):
                number = int(fields["ID"])
                blocks.setdefault(number, (fields.get("NAME", f"nvpmodel-{number}"), lines))
        elif line:
            lines.append(line.split())
    return [_mode(number, *blocks[number]) for number in sorted(blocks)]


def _mode(number: int, name: str, lines: list[list[str]]) -> PowerMode:
    online = [words[2] == "1" for words in lines if words[0] == "CPU_ONLINE" and len(words) == 3]
    return PowerMode(
        number=number,
        name=name,
        cores=sum(online) if online else None,
        cpu_max_mhz=_cap(lines, "CPU_", 1e-3),
        gpu_max_mhz=_cap(lines, "GPU", 1e-6),
        emc_max_mhz=_cap(lines, "EMC", 1e-6),
    )


def _cap(lines: list[list[str]], unit: str, factor: float) -> float | None:
    """The lowest MAX_FREQ of `unit`; 0 and -1 mean that the mode sets none."""
    caps = [
        int(words[2]) * factor
        for words in lines
        if len(words) == 3
        and words[0].startswith(unit)
        and words[1] == "MAX_FREQ"
        and re.fullmatch(r"[1-9][0-9]{0,14}", words[2])
    ]
    return min(caps, default=None)


def mode_number(sysroot: Path) -> int | None:
    """Number of the mode that the board is in; None without nvpmodel."""
    status = re.search(r"pmode:([0-9]{1,4})\b", read_text(sysroot / STATUS))
    return int(status[1]) if status else None


def mode_name(sysroot: Path) -> str:
    """Name of the mode that the board is in, its number if it has none, ``""`` without one."""
    number = mode_number(sysroot)
    if number is None:
        return ""
    names = {mode.number: mode.name for mode in power_modes(sysroot)}
    return names.get(number, f"nvpmodel-{number}")


def without_figures(sysroot: Path, measured: Iterable[str]) -> list[PowerMode]:
    """Modes of this board in which nothing was measured yet.

    Args:
        measured: Modes of bench runs, such as ``MAXN-pinned`` or ``MODE_30W-floating-4t``.
    """
    names = {mode.split("-")[0] for mode in measured} | set(measured)
    prefixes = tuple(f"{mode}-" for mode in measured)
    return [
        mode
        for mode in power_modes(sysroot)
        if mode.name not in names and not any(p.startswith(f"{mode.name}-") for p in prefixes)
    ]
