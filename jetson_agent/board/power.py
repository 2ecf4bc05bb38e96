"""Power from the INA3221 monitors: rails, limits, and the board's total.

Source: kernel Documentation/hwmon/ina3221.rst. Channels 1 to 3 are rails, in7 and curr4 sums of
shunts of different rails, which mean nothing as power.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jetson_agent.board.files import matching, read_scaled, read_text

CHANNELS = (1, 2, 3)
# Measures the whole board, so that the others must not be added; Orin NX and Nano have it.
WHOLE_BOARD = "VDD_IN"
# Fed by VIN_SYS_5V0, which is measured itself.
PART_OF_ANOTHER = ("VDDQ_VDD2_1V8AO",)
NOT_CONNECTED = "NC"
MAX_VOLT, MAX_AMPERE = 60.0, 200.0


@dataclass(frozen=True, kw_only=True)
class Rail:
    """One channel of a monitor: where it is read."""

    label: str
    folder: Path
    channel: int

    def watts(self) -> float | None:
        """Power now; the kernel gives mV and mA."""
        volt = read_scaled(self.folder / f"in{self.channel}_input", 1e-3, 0, MAX_VOLT)
        ampere = read_scaled(self.folder / f"curr{self.channel}_input", 1e-3, 0, MAX_AMPERE)
        return None if volt is None or ampere is None else volt * ampere

    def limits_a(self) -> dict[str, float]:
        """Currents at which the monitor warns (``max``) and the board throttles (``crit``)."""
        found = {
            name: read_scaled(self.folder / f"curr{self.channel}_{name}", 1e-3, 0, MAX_AMPERE)
            for name in ("max", "crit")
        }
        return {name: ampere for name, ampere in found.items() if ampere is not None}


def monitors(sysroot: Path) -> list[Path]:
    """The hwmon folder of each INA3221."""
    places = [
        hwmon
        for device in matching(sysroot / "sys/bus/i2c/devices", "*")
        if "ina3221" in read_text(device / "name", 64)
        for hwmon in matching(device / "hwmon", "hwmon*")
    ]
    return places or [
        hwmon
        for hwmon in matching(sysroot / "sys/class/hwmon", "hwmon*")
        if "ina3221" in read_text(hwmon / "name", 64)
    ]


def rails(sysroot: Path) -> list[Rail]:
    """The rails that are connected."""
    found = []
    for folder in monitors(sysroot):
        for channel in CHANNELS:
            label = read_text(folder / f"in{channel}_label", 64)
            if label and label != NOT_CONNECTED and label.isprintable():
                found.append(Rail(label=label, folder=folder, channel=channel))
    return found


def read_watts(found: list[Rail]) -> dict[str, float | None]:
    """Power of each rail now."""
    return {rail.label: rail.watts() for rail in found}


def total_watts(watts: Mapping[str, float | None]) -> float | None:
    """Power of the whole board: ``VDD_IN``, or the sum of the rails that feed it (AGX Orin).

    Returns:
        None without rails, or while one of those needed does not answer: a sum of the others
        would be too low.
    """
    if WHOLE_BOARD in watts:
        return watts[WHOLE_BOARD]
    parts = [value for label, value in watts.items() if label not in PART_OF_ANOTHER]
    known = [value for value in parts if value is not None]
    return sum(known) if known and len(known) == len(parts) else None
