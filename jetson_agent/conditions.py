"""Under which conditions a timing ran: other load, power, clocks, temperatures, throttling."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from jetson_agent.board import clocks, load, tegrastats, throttle
from jetson_agent.board.load import usable_cpus
from jetson_agent.board.sensors import Sample, Sensors
from jetson_agent.board.thermal import temperatures_c as temperatures_c
from jetson_agent.energy import PowerCurve
from jetson_agent.identity import ROOT, power_mode, sysroot

INTERVAL_S = 0.2
IDLE_S = 1.0
JOIN_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """A moment on this machine; two of them tell what happened between."""

    wall_s: float
    own_cpu_s: float
    busy_cpu_s: float | None
    stolen_cpu_s: float | None
    load_average: float | None
    temperatures_c: dict[str, float]
    cpu_mhz: list[int]


def read_conditions(root: Path = ROOT) -> Conditions:
    """Look at the machine now."""
    busy, stolen = load.cpu_seconds(root, usable_cpus())
    own = os.times()
    return Conditions(
        wall_s=time.monotonic(),
        own_cpu_s=own.user + own.system + own.children_user + own.children_system,
        busy_cpu_s=busy,
        stolen_cpu_s=stolen,
        load_average=load.load_average(root),
        temperatures_c=temperatures_c(root),
        cpu_mhz=[round(mhz) for mhz in clocks.cpu_mhz(clocks.cpu_folders(root))],
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


class Watch:
    """Samples the machine in a thread of its own while a ``with`` block lasts.

    Where there are sensors, entering takes `idle_s`, in which power and GPU load of the idle
    machine are found. Work that loads and warms up first calls `begin` when the timing starts;
    power, clocks, temperatures and throttling are of the time since then.

    Args:
        root: Root of the machine's files, `sysroot()` by default.
        interval_s: Time between two samples.
        idle_s: How long to look at the idle machine.
    """

    def __init__(
        self, root: Path | None = None, interval_s: float = INTERVAL_S, idle_s: float = IDLE_S
    ) -> None:
        self._root = root or sysroot()
        self._interval_s = interval_s
        self._idle_s = idle_s
        self._sensors = Sensors(self._root)
        self._tegrastats = tegrastats.Reader(tegrastats.find(self._root))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="conditions", daemon=True)
        self._idle: list[Sample] = []
        self._samples: list[Sample] = []
        self._lines_before = 0
        self._cpu_s = 0.0
        self._error = ""

    def __enter__(self) -> Watch:
        self._entered_s = time.monotonic()
        try:
            self._tegrastats.__enter__()
            self._take()
            self._thread.start()
            if self._sensors.idle_tells:
                self._stop.wait(self._idle_s)
        except BaseException:
            self._halt()
            raise
        with self._lock:
            self._idle = list(self._samples)
        self._start = read_conditions(self._root)
        self._memory = load.memory_gib(self._root)
        self._start_state = self._state()
        self.begin()
        return self

    def begin(self) -> None:
        """The timing starts now; may be called again, from any thread."""
        with self._lock:
            self._samples = []
            self._begun_s = time.monotonic()
            self._lines_before = len(self._tegrastats.stats())
        self._take()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._take()
        finally:
            self._halt()
        self._left_s = time.monotonic()
        self._end = read_conditions(self._root)
        self._end_state = self._state()

    def _halt(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)
        self._tegrastats.__exit__(None, None, None)

    def result(self, timed_s: float | None = None) -> dict[str, Any]:
        """What the certificate says, after the block.

        Args:
            timed_s: How long the timing itself took: ``power_w`` and ``energy_j`` are of the
                busiest stretch of that length. None for all the time since `begin`.
        """
        with self._lock:
            # The thread may have been reading while the timing began.
            samples = sorted((s for s in self._samples if s.at_s >= self._begun_s), key=_time)
            idle = self._idle
        found = between(self._start, self._end, len(usable_cpus()))
        found["temperatures_c"]["max"] = _highest(s.temperatures_c for s in samples)
        found |= _power(samples, idle, timed_s)
        first, last = self._start_state, self._end_state
        loads = [s.gpu_load for s in idle if s.gpu_load is not None]
        memory = load.memory_gib(self._root)
        return found | {
            "clocks_mhz": self._clocks(samples),
            "clock_policy": {"start": first["policy"], "end": last["policy"]},
            "floating": sorted({*first["floating"], *last["floating"]}),
            "power_mode": {"start": first["power_mode"], "end": last["power_mode"]},
            "throttle": {
                "events": throttle.events([s.signs for s in samples]),
                "counters": samples[-1].signs.counters if samples else {},
            },
            # The middle one: for a moment the load still shows what was timed before.
            "gpu_load_others": round(median(loads), 4) if loads else None,
            "free_memory_gib": self._memory.get("available"),
            "swap_used_gib": {
                "start": self._memory.get("swap_used"),
                "end": memory.get("swap_used"),
            },
            "rail_limits_a": self._sensors.limits_a,
            "sampler": self._cost(len(samples) + len(idle)),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "policy": clocks.policy(self._root),
            "floating": clocks.floating(self._root) or [],
            "power_mode": power_mode(self._root),
        }

    def _clocks(self, samples: list[Sample]) -> dict[str, dict[str, float]]:
        stats = self._tegrastats.stats()[self._lines_before :]
        series = {
            "gpu": [s.gpu_mhz for s in samples if s.gpu_mhz is not None],
            "cpu": [max(s.cpu_mhz) for s in samples if s.cpu_mhz],
            "emc": [max(s.emc.mhz) for s in stats if s.emc and s.emc.mhz],
        }
        return {
            name: {"start": mhz[0], "end": mhz[-1], "min": min(mhz), "max": max(mhz)}
            for name, mhz in series.items()
            if mhz
        }

    def _cost(self, samples: int) -> dict[str, Any]:
        lasted_s = self._left_s - self._entered_s
        cost: dict[str, Any] = {
            "interval_s": self._interval_s,
            "samples": samples,
            "cpu_s": round(self._cpu_s, 4),
            "share_of_cpu": round(self._cpu_s / lasted_s, 4) if lasted_s > 0 else None,
        }
        if self._tegrastats.cpu_s is not None:
            cost["tegrastats_cpu_s"] = round(self._tegrastats.cpu_s, 4)
        if self._error:
            cost["error"] = self._error
        return cost

    def _take(self) -> None:
        before_s = time.thread_time()
        sample = self._sensors.sample()
        with self._lock:
            self._samples.append(sample)
            self._cpu_s += time.thread_time() - before_s

    def _loop(self) -> None:
        try:
            while not self._stop.wait(self._interval_s):
                self._take()
        except Exception as error:  # the timing goes on, and its certificate says so
            self._error = f"{type(error).__name__}: {error}"


def _time(sample: Sample) -> float:
    return sample.at_s


def _highest(readings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    highest: dict[str, float] = {}
    for reading in readings:
        for name, celsius in reading.items():
            highest[name] = max(celsius, highest.get(name, celsius))
    return highest


def _power(samples: list[Sample], idle: list[Sample], timed_s: float | None) -> dict[str, Any]:
    """``power_w``, ``rails_w`` and ``energy_j``: None where no sensor tells them."""
    points = [(s.at_s, s.power_w) for s in samples if s.power_w is not None]
    if len(points) < 2:
        return {"power_w": None, "rails_w": None, "energy_j": None, "energy_s": None}
    curve = PowerCurve(points)
    energy_s = curve.length_s if timed_s is None else timed_s
    energy_j = curve.energy_j() if timed_s is None else curve.busiest_j(timed_s)
    before = [s.power_w for s in idle if s.power_w is not None]
    rails: dict[str, list[float]] = {}
    for sample in samples:
        for label, watts in sample.rails_w.items():
            if watts is not None:
                rails.setdefault(label, []).append(watts)
    return {
        "power_w": {
            "mean": round(energy_j / energy_s, 3) if energy_s > 0 else None,
            "peak": round(max(watts for _, watts in points), 3),
            "idle": round(median(before), 3) if before else None,
        },
        "rails_w": {label: round(sum(w) / len(w), 3) for label, w in rails.items()},
        "energy_j": round(energy_j, 6),
        "energy_s": round(energy_s, 6),
    }
