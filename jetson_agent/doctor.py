"""What is there: backends, Python, trtexec, device."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jetson_agent.backends import BACKENDS, load_backend
from jetson_agent.conditions import temperatures_c
from jetson_agent.identity import identify
from jetson_agent.timing import agent_version

# JetPack installs trtexec here, and does not put it on the PATH.
TRTEXEC = Path("/usr/src/tensorrt/bin/trtexec")


def find_trtexec(jetpack: Path = TRTEXEC) -> str | None:
    """Path of NVIDIA's trtexec, or None."""
    return shutil.which("trtexec") or (str(jetpack) if os.access(jetpack, os.X_OK) else None)


def examine(device: str | None, state: Path, tracking_uri: str | None) -> dict[str, Any]:
    """One object that says what this machine can do; talks to nobody."""
    probes = {name: asdict(load_backend(name).probe()) for name in BACKENDS}
    place = next(p for p in (state, *state.parents) if p.exists())
    return {
        "device": asdict(identify(device)),
        "agent": agent_version(),
        "python": platform.python_version(),
        "backends": probes,
        "trtexec": find_trtexec(),
        "temperatures_c": temperatures_c(),
        "load_average": os.getloadavg()[0],
        "state_dir": {"path": str(state), "writable": os.access(place, os.W_OK)},
        "tracking_uri": tracking_uri,
        "ready": any(probe["available"] for probe in probes.values()),
    }
