"""Temperatures of the thermal zones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jetson_agent.board.files import matching, read_scaled, read_text

# A sensor whose unit is powered down reads -256 degrees.
LOWEST_C, HIGHEST_C = -100.0, 250.0
# The hottest spot of the chip, made by the firmware from all sensors; by it the board throttles.
JUNCTION = ("tj-thermal", "tj", "tj-therm")


def zones(sysroot: Path) -> dict[str, Path]:
    """File of each zone's temperature by the zone's name; equal names get a number."""
    found: dict[str, Path] = {}
    for zone in matching(sysroot / "sys/class/thermal", "thermal_zone*"):
        name = read_text(zone / "type", 64) or zone.name
        found[name if name not in found else f"{name}-{zone.name}"] = zone / "temp"
    return found


def read_zones(found: Mapping[str, Path]) -> dict[str, float]:
    """Temperature in degrees Celsius of each zone that is switched on."""
    read = {name: read_scaled(path, 1e-3, LOWEST_C, HIGHEST_C) for name, path in found.items()}
    return {name: round(celsius, 3) for name, celsius in read.items() if celsius is not None}


def temperatures_c(sysroot: Path) -> dict[str, float]:
    """Temperature of each thermal zone that is switched on, in degrees Celsius."""
    return read_zones(zones(sysroot))


def junction_c(temperatures: Mapping[str, float]) -> float | None:
    """The junction's temperature; None on a machine that does not tell it."""
    found = [celsius for name, celsius in temperatures.items() if name.lower() in JUNCTION]
    return max(found, default=None)
