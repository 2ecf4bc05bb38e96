"""All sensors of a machine, found once and then read again and again at little cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from jetson_agent.board import clocks, load, power, thermal, throttle


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at the sensors; None or nothing where the machine has none. MHz, W, degrees."""

    at_s: float
    power_w: float | None
    rails_w: dict[str, float | None]
    gpu_mhz: float | None
    cpu_mhz: list[float]
    temperatures_c: dict[str, float]
    signs: throttle.Signs
    gpu_load: float | None


class Sensors:
    """What the machine under `sysroot` has."""

    def __init__(self, sysroot: Path) -> None:
        self._gpu = clocks.gpu_folder(sysroot)
        self._cpus = clocks.cpu_folders(sysroot)
        self._rails = power.rails(sysroot)
        self._zones = thermal.zones(sysroot)
        self._throttle = throttle.find(sysroot)
        self._load = load.gpu_load_file(sysroot)
        self.limits_a = {rail.label: rail.limits_a() for rail in self._rails}

    @property
    def idle_tells(self) -> bool:
        """Whether looking at the idle machine tells anything: power or the GPU's load."""
        return bool(self._rails) or self._load is not None

    def sample(self) -> Sample:
        """Read them all now; `at_s` is of the monotonic clock."""
        watts = power.read_watts(self._rails)
        return Sample(
            at_s=time.monotonic(),
            power_w=power.total_watts(watts),
            rails_w=watts,
            gpu_mhz=clocks.gpu_mhz(self._gpu),
            cpu_mhz=clocks.cpu_mhz(self._cpus),
            temperatures_c=thermal.read_zones(self._zones),
            signs=throttle.read(self._throttle),
            gpu_load=load.gpu_load(self._load),
        )
