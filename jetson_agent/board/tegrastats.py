"""NVIDIA's ``tegrastats``: its lines in all known shapes, and a child process that prints them.

It alone tells clock and load of the memory (EMC) without root. On JetPack 6.1 the load reads 0 %.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from jetson_agent.board.files import read_text
from jetson_agent.board.power import NOT_CONNECTED
from jetson_agent.board.thermal import HIGHEST_C, LOWEST_C

LINE_BYTES = 8192
KEPT_LINES = 4096
GRACE_S = 2.0
PLACES = ("usr/bin/tegrastats", "usr/sbin/tegrastats")

_NUMBER = r"[0-9]{1,9}"
_MEMORY = re.compile(rf"\b(RAM|SWAP) ({_NUMBER})/({_NUMBER})MB")
_CORES = re.compile(r"\bCPU \[([^\]]*)\]")
_CORE = re.compile(rf"({_NUMBER})%(?:@({_NUMBER}))?")
# `3%@2133`, `0%@[0,0]` (a clock per GPU cluster), `63%@[621]`, or a bare `45%`.
_UNIT = re.compile(rf"\b(EMC|GR3D2?)_FREQ ({_NUMBER})%(?:@(?:\[([0-9, ]{{1,80}})\]|({_NUMBER})))?")
_ENGINE = re.compile(
    rf"\b((?:NVENC|NVDEC|NVJPG|VIC|OFA|NVDLA|PVA|APE|MSENC)[0-9]?)(?:_FREQ)? "
    rf"(?:({_NUMBER})%@)?({_NUMBER})\b"
)
_TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_-]{0,30})@(-?[0-9]{1,4}(?:\.[0-9]{1,6})?)C\b")
_RAIL = re.compile(rf"\b([A-Za-z][A-Za-z0-9_]{{0,30}}) ({_NUMBER})mW/({_NUMBER})mW")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Load of GPU or memory, 0 to 1, and its clock; GPU clusters may have a clock each."""

    load: float
    mhz: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Core:
    """Load of a CPU core, 0 to 1, and its clock."""

    load: float
    mhz: float | None


@dataclass(frozen=True, kw_only=True)
class Stats:
    """One line; what it does not tell is None or missing. A core that is off is None.

    `engines` has the clocks in MHz of those video and vision engines that are on.
    """

    ram_mb: tuple[int, int] | None = None
    swap_mb: tuple[int, int] | None = None
    cores: tuple[Core | None, ...] = ()
    emc: Unit | None = None
    gpu: Unit | None = None
    engines: dict[str, int] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    power_mw: dict[str, tuple[int, int]] = field(default_factory=dict)


def parse(line: str) -> Stats:
    """Read one line, of any text; rails have power now and on average, in mW."""
    line = line[:LINE_BYTES]
    memory = {m[1]: (int(m[2]), int(m[3])) for m in _MEMORY.finditer(line)}
    units: dict[str, Unit] = {}
    for m in _UNIT.finditer(line):
        numbers = re.findall(_NUMBER, m[3] or m[4] or "")
        units.setdefault(m[1], Unit(load=int(m[2]) / 100, mhz=tuple(map(float, numbers))))
    celsius = {m[1]: float(m[2]) for m in _TEMPERATURE.finditer(line)}
    cores = _CORES.search(line)
    return Stats(
        ram_mb=memory.get("RAM"),
        swap_mb=memory.get("SWAP"),
        cores=tuple(_core(text) for text in cores[1].split(",")) if cores else (),
        emc=units.get("EMC"),
        gpu=units.get("GR3D"),
        engines={m[1]: int(m[3]) for m in _ENGINE.finditer(line)},
        temperatures_c={n: c for n, c in celsius.items() if LOWEST_C <= c <= HIGHEST_C},
        power_mw={
            m[1]: (int(m[2]), int(m[3])) for m in _RAIL.finditer(line) if m[1] != NOT_CONNECTED
        },
    )


def _core(text: str) -> Core | None:
    found = _CORE.fullmatch(text.strip())
    if not found:
        return None
    return Core(load=int(found[1]) / 100, mhz=float(found[2]) if found[2] else None)


def find(sysroot: Path) -> Path | None:
    """The program, or None."""
    if sysroot == Path("/") and (found := shutil.which("tegrastats")):
        return Path(found)
    places = (sysroot / place for place in PLACES)
    return next((path for path in places if os.access(path, os.X_OK)), None)


class Reader:
    """Runs ``tegrastats`` while a ``with`` block lasts and keeps what it prints.

    Nothing runs and nothing is kept where there is no such program.
    """

    def __init__(self, program: Path | None, interval_s: float = 1.0) -> None:
        self._program = program
        self._interval_ms = max(100, round(interval_s * 1000))
        self._child: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stats: list[Stats] = []
        self.cpu_s: float | None = None  # CPU time that the program took; known at the end

    def __enter__(self) -> Reader:
        if self._program is not None:
            # A program that does not start is as good as none.
            with contextlib.suppress(OSError):
                self._child = subprocess.Popen(
                    [str(self._program), "--interval", str(self._interval_ms)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        if self._child is not None:
            self._thread = threading.Thread(
                target=self._read, args=(self._child.stdout,), name="tegrastats", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        child = self._child
        if child is None:
            return
        self.cpu_s = _cpu_seconds(child.pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
        if self._thread is not None:
            self._thread.join(GRACE_S)
        if child.stdout is not None and not (self._thread and self._thread.is_alive()):
            child.stdout.close()

    def stats(self) -> list[Stats]:
        """What was printed so far, at most the last 4096 lines."""
        with self._lock:
            return list(self._stats)

    def _read(self, printed: IO[bytes]) -> None:
        for line in iter(lambda: printed.readline(LINE_BYTES), b""):
            stats = parse(line.decode(errors="replace"))
            with self._lock:
                self._stats.append(stats)
                del self._stats[:-KEPT_LINES]


def _cpu_seconds(pid: int) -> float | None:
    """CPU time of a process of ours, from the fields utime and stime of proc(5)."""
    fields = read_text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if len(fields) < 13:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
