"""What this machine has and lacks, one row for each thing, and how to mend what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from jetson_agent.backends import BACKENDS, load_backend
from jetson_agent.backends.base import Probe
from jetson_agent.backends.trtexec import find_trtexec
from jetson_agent.daemon import SANE_S
from jetson_agent.errors import AgentError
from jetson_agent.identity import Device, identify, sysroot
from jetson_agent.locks import machine_lock
from jetson_agent.preflight import DEFAULT_LIMITS
from jetson_agent.timing import agent_version

State = Literal["ok", "warn", "missing"]
STATES: tuple[State, ...] = ("ok", "warn", "missing")

IMPORT_S = 60.0
IMPORT = "import tensorrt, polygraphy; print(tensorrt.__version__)"
MAX_SKEW_S = 60.0
_VENV = (
    "sudo apt-get install python3-libnvinfer, and make the agent's environment with "
    "python3 -m venv --system-site-packages, as install.sh does"
)
JETPACK_PACKAGES = "sudo apt-get update && sudo apt-get install nvidia-jetpack"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing: without what is `missing` this machine is not ready, `warn` costs something."""

    check: str
    state: State
    detail: str
    mend: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All rows, and what they were made from."""

    device: Device
    rows: list[Row]
    facts: dict[str, Any]

    @property
    def ready(self) -> bool:
        return all(row.state != "missing" for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """What ``doctor --json`` prints."""
        return {
            "ready": self.ready,
            "rows": [asdict(row) for row in self.rows],
            "device": asdict(self.device),
            "agent": agent_version(),
            "python": platform.python_version(),
            **self.facts,
        }


def examine(
    device: str | None,
    state: Path,
    tracking_uri: str | None = None,
    *,
    credentials: Path | None = None,
    ca_file: Path | None = None,
    offline: bool = False,
    root: Path | None = None,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Look at everything; changes nothing but the file of the machine's lock, which it may make.

    Args:
        tracking_uri: MLflow server to ask; None or `offline` asks nobody.
        root: Where the files of the machine begin; `sysroot()` by default.
        clock: This machine's own clock, seconds since 1970.
    """
    from jetson_agent.board.facts import describe
    from jetson_agent.doctor_board import board_rows
    from jetson_agent.doctor_server import ask, credentials_rows, service_row

    root = root or sysroot()
    here = identify(device, root)
    probes = {name: load_backend(name).probe() for name in BACKENDS}
    seen = ask(tracking_uri, here, credentials, ca_file, offline=offline)
    facts = describe(root, seen.modes or ())
    rows = [
        _python(),
        *_backends(here, probes),
        *board_rows(here, facts, seen.modes, root),
        _clock(clock(), seen.ahead_s),
        *_room(facts, state),
        _state_folder(state),
        _lock(),
        *credentials_rows(credentials, ca_file, root),
        seen.row,
        service_row(state, clock()),
    ]
    found = {
        "backends": {name: asdict(probe) for name, probe in probes.items()},
        "trtexec": str(find_trtexec() or "") or None,
        "board": facts,
        "tracking_uri": seen.uri,
    }
    return Report(device=here, rows=rows, facts=found)


def _python() -> Row:
    version = f"{platform.python_version()} ({sys.prefix}), agent {agent_version()}"
    return Row(check="python", state="ok", detail=version)


def _backends(here: Device, probes: dict[str, Probe]) -> Iterator[Row]:
    trt, ort = probes["tensorrt"], probes["onnxruntime"]
    if trt.available:
        detail = f"{trt.runtime}, {find_trtexec()}"
        yield Row(check="tensorrt", state="ok", detail=detail)
        yield _outputs(trt)
    else:
        yield Row(
            check="tensorrt",
            state="missing" if here.is_board else "warn",
            detail=trt.reason,
            mend=JETPACK_PACKAGES if here.is_board else "nothing, unless this is to be a board",
        )
    if ort.available:
        yield Row(check="onnxruntime", state="ok", detail=f"{ort.runtime}, on the CPU")
    else:
        yield Row(
            check="onnxruntime",
            state="warn" if trt.available else "missing",
            detail=ort.reason,
            mend="pip install 'sharedenc[agent]'",
        )


def _outputs(probe: Probe) -> Row:
    """Whether the engine that is timed can also be checked."""
    name = "checking outputs"
    cost = "figures will be `unchecked`"
    if not probe.runs:
        return Row(check=name, state="warn", detail=f"{probe.why_unchecked}; {cost}", mend=_VENV)
    try:
        # A binding for another Python or numpy may take its process along.
        done = subprocess.run(
            [sys.executable, "-c", IMPORT],
            capture_output=True,
            text=True,
            timeout=IMPORT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        detail = f"importing tensorrt takes more than {IMPORT_S:.0f} s; {cost}"
        return Row(check=name, state="warn", detail=detail, mend=_VENV)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        detail = f"tensorrt cannot be imported: {last}; {cost}"
        return Row(check=name, state="warn", detail=detail, mend=_VENV)
    version = done.stdout.strip()
    if version.split(".")[:3] != probe.runtime.split(".")[:3]:
        detail = f"tensorrt for Python is {version}, trtexec {probe.runtime}; {cost}"
        return Row(check=name, state="warn", detail=detail, mend=_VENV)
    return Row(check=name, state="ok", detail=f"tensorrt {version} for Python, with polygraphy")


def _clock(now_s: float, ahead_s: float | None) -> Row:
    shown = _date(now_s)
    mend = (
        "sudo timedatectl set-ntp true, or sudo date --set '...'; for good, a battery on the board "
        "or a time server that it reaches"
    )
    if now_s < SANE_S:
        detail = f"{shown}: boards without a battery wake in 1970, and TLS fails"
        return Row(check="clock", state="missing", detail=detail, mend=mend)
    if ahead_s is not None and abs(ahead_s) > MAX_SKEW_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        detail = f"{shown}, {abs(ahead_s):.0f} s {way} the server's"
        return Row(check="clock", state="warn", detail=detail, mend=mend)
    with_server = "" if ahead_s is None else ", as the server's"
    return Row(check="clock", state="ok", detail=f"{shown}{with_server}")


def _date(now_s: float) -> str:
    try:
        return datetime.fromtimestamp(now_s, timezone.utc).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):
        return f"{now_s:g} s since 1970"


def _room(facts: dict[str, Any], state: Path) -> Iterator[Row]:
    free = facts["memory_gib"].get("available")
    needed = DEFAULT_LIMITS.free_memory_gib
    if free is None:
        yield Row(check="memory", state="warn", detail="the kernel does not tell")
    else:
        detail = f"{free:.1f} of {facts['memory_gib'].get('total', 0.0):.1f} GiB free"
        if facts["memory_gib"].get("swap_used"):
            detail += f", {facts['memory_gib']['swap_used']:.1f} GiB swapped out"
        low = free < needed
        yield Row(
            check="memory",
            state="warn" if low else "ok",
            detail=detail,
            mend=f"{needed:g} GiB are needed: end other programs, or stop the desktop "
            "(sudo systemctl isolate multi-user.target)"
            if low
            else "",
        )
    place = _existing(state)
    free = shutil.disk_usage(place).free / 2**30
    low = free < DEFAULT_LIMITS.free_disk_gib
    yield Row(
        check="disk",
        state="missing" if low else "ok",
        detail=f"{free:.1f} GiB free at {place}",
        mend=f"{DEFAULT_LIMITS.free_disk_gib:g} GiB are needed: make room, or put the state "
        "folder on another disk (--state-dir, JETSON_AGENT_STATE)"
        if low
        else "",
    )


def _state_folder(state: Path) -> Row:
    place = _existing(state)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        told = "" if place == state else ", which will be made"
        return Row(check="state folder", state="ok", detail=f"{state}{told}")
    return Row(
        check="state folder",
        state="missing",
        detail=f"{state} cannot be written by this user",
        mend="run it as the user that the folder belongs to (sudo -u jetson-agent ...), or name "
        "another one with --state-dir or JETSON_AGENT_STATE",
    )


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above that is there."""

    def there(one: Path) -> bool:
        try:
            return one.exists()
        except PermissionError:  # there, but nothing of ours
            return False

    return next(one for one in (path, *path.absolute().parents) if there(one))


def _lock() -> Row:
    try:
        with machine_lock() as free:
            detail = "free" if free else "held: something is being timed now"
            return Row(check="lock", state="ok", detail=detail)
    except AgentError as error:
        return Row(
            check="lock",
            state="missing",
            detail=str(error),
            mend="name a file that this user can write in JETSON_AGENT_LOCK",
        )
