"""Time one ONNX file: start the child, watch its deadline, make the certificate."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
import tempfile
import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from jetson_agent.identity import Device
from jetson_agent.proc import child_environment, run_child
from jetson_agent.protocol import Load, Verdict


class Stopped(Exception):
    """The user asked to stop while a model was being timed; there is no result."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to time; all of it stands in the certificate."""

    backend: str
    runtime: str
    threads: int
    warmup_s: float = 1.0
    duration_s: float = 3.0
    deadline_s: float = 600.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What came out of one timing; `metrics` is empty without a figure."""

    verdict: Verdict
    reasons: list[str]
    metrics: dict[str, float]
    certificate: dict[str, Any]


def sha256_of(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def time_file(
    model: Path,
    precision: str,
    load: Load,
    settings: Settings,
    device: Device,
    stopping: threading.Event,
) -> Timing:
    """Time `model` in a child process.

    A model that cannot be built, crashes its process or does not end in time is a `Timing` with
    verdict ``failed`` and the reason.

    Raises:
        Stopped: `stopping` was set.
    """
    request = {
        "backend": settings.backend,
        "model": str(model.resolve()),
        "precision": precision,
        "load": load,
        "threads": settings.threads,
        "warmup_s": settings.warmup_s,
        "duration_s": settings.duration_s,
        "deadline_s": settings.deadline_s,
        "seed": settings.seed,
    }
    started = datetime.now(timezone.utc)
    with tempfile.TemporaryDirectory(prefix="jetson-agent-") as folder:
        request_path, answer_path = Path(folder, "request.json"), Path(folder, "answer.json")
        request_path.write_text(json.dumps(request))
        finished = run_child(
            [sys.executable, "-m", "jetson_agent.child", str(request_path), str(answer_path)],
            deadline_s=settings.deadline_s,
            stopping=stopping,
            log=Path(folder, "child.log"),
            environment=child_environment(),
        )
        answer: dict[str, Any] | None = None
        if finished.returncode == 0 and answer_path.exists():
            answer = json.loads(answer_path.read_text())
    if finished.stopped:
        raise Stopped
    if answer is None:
        if finished.timed_out:
            reason = f"It did not end within the deadline of {settings.deadline_s:g} s."
        else:
            last = finished.tail.splitlines()[-1:] or ["it printed nothing"]
            reason = f"The process that timed it {finished.describe}: {last[0]}"
        answer = {"verdict": "failed", "reasons": [reason], "metrics": {}, "details": {}}
    certificate: dict[str, Any] = {
        "verdict": answer["verdict"],
        "reasons": answer["reasons"],
        "device": {name: getattr(device, name) for name in Device.__dataclass_fields__},
        "mode": device.mode(settings.threads),
        "backend": settings.backend,
        "runtime": settings.runtime,
        "python": platform.python_version(),
        "agent": agent_version(),
        "file": {"sha256": sha256_of(model), "bytes": model.stat().st_size, "name": model.name},
        "precision": precision,
        "load": load,
        "threads": settings.threads,
        "warmup_s": settings.warmup_s,
        "duration_s": settings.duration_s,
        "deadline_s": settings.deadline_s,
        "command": command_line(model, precision, load, settings),
        "started_at": started.isoformat(timespec="seconds"),
        "ended_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **answer["details"],
    }
    if answer["verdict"] == "failed" and finished.tail:
        certificate["log_tail"] = finished.tail
    return Timing(
        verdict=answer["verdict"],
        reasons=answer["reasons"],
        metrics=answer["metrics"],
        certificate=certificate,
    )


def command_line(model: Path, precision: str, load: Load, settings: Settings) -> str:
    """The command that repeats this timing by hand; it never holds an address or a credential."""
    return shlex.join(
        [
            *("jetson-agent", "measure", model.name),
            *("--backend", settings.backend),
            *("--precision", precision),
            *("--load", load),
            *("--threads", str(settings.threads)),
            *("--warmup-s", f"{settings.warmup_s:g}"),
            *("--duration-s", f"{settings.duration_s:g}"),
        ]
    )


def agent_version() -> str:
    """Version of the installed distribution, or ``unknown`` in a bare source tree."""
    try:
        return metadata.version("sharedenc")
    except metadata.PackageNotFoundError:
        return "unknown"
