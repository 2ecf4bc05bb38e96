"""What a timing's certificate says: what was timed, where and how, and how to repeat it."""

from __future__ import annotations

import platform
import shlex
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jetson_agent.check import Check
from jetson_agent.engines import sha256_of
from jetson_agent.identity import Device
from jetson_agent.protocol import Load
from jetson_agent.settings import Settings
from jetson_agent.stats import median
from jetson_agent.steps import Engine, Run, agent_version


def head(
    model: Path, precision: str, load: Load, settings: Settings, device: Device
) -> dict[str, Any]:
    """What is known before anything is built."""
    return {
        "device": asdict(device),
        "mode": device.mode(settings.threads),
        "python": platform.python_version(),
        "agent": agent_version(),
        "file": file_entry(model),
        "precision": precision,
        "load": load,
        **{k: v for k, v in asdict(settings).items() if k not in ("runs", "builds")},
        "settings": settings.text,
        "command": command_line(model, precision, load, settings),
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def file_entry(model: Path) -> dict[str, Any]:
    """Which file it was."""
    return {"sha256": sha256_of(model), "bytes": model.stat().st_size, "name": model.name}


def run_entry(run: Run) -> dict[str, Any]:
    """What the certificate says of one run."""
    samples = run.samples
    return {
        "build": run.engine.number,
        "p50_ms": median(sorted(samples.latencies_ms)),
        "queries": len(samples.latencies_ms),
        "wall_s": round(samples.wall_s, 4),
        "throughput_qps": samples.throughput_qps,
        "warnings": samples.warnings,
        "options": samples.options,
    }


def build_entry(engine: Engine, check: Check) -> dict[str, Any]:
    """What the certificate says of one build."""
    return {
        "number": engine.number,
        "build_s": engine.built.build_s,
        "cached": engine.cached,
        "options": engine.built.options,
        "check": check.to_json(),
    }


def command_line(model: Path, precision: str, load: Load, settings: Settings) -> str:
    """The command that repeats this timing by hand; it never holds an address or a credential."""
    words = [
        *("jetson-agent", "measure", model.name),
        *("--backend", settings.backend),
        *("--precision", precision),
        *("--load", load),
        *("--warmup-s", f"{settings.warmup_s:g}"),
        *("--duration-s", f"{settings.duration_s:g}"),
        *("--runs", str(settings.runs)),
        *("--builds", str(settings.builds)),
    ]
    if settings.threads is not None:
        words += ["--threads", str(settings.threads)]
    return shlex.join([*words, *(["--cuda-graph"] if settings.cuda_graph else [])])
