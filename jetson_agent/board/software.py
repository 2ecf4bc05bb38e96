"""Versions of L4T, JetPack, TensorRT and CUDA, read from files, no package tool started."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

from jetson_agent.board.files import read_text

# dpkg's list of a full desktop image is about 5 MB.
DPKG_BYTES = 1 << 26
WANTED = re.compile(
    r"\s*Package: (nvidia-l4t-core|libnvinfer(?:[0-9]+|-bin)|cuda-cudart-[0-9-]+)\n"
)

# NVIDIA names releases by L4T; people mislabel JetPack, so it is derived here and nowhere asked.
# 36.4.4 and 36.4.7 are both 6.2.1.
JETPACK = {
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "36.2.0": "6.0-dp",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
}


def packages(sysroot: Path) -> dict[str, str]:
    """Versions of the installed Debian packages of NVIDIA that matter here."""
    path = sysroot / "var/lib/dpkg/status"
    try:
        state = path.stat()
    except OSError:
        return {}
    # A daemon asks again and again, and the list is long.
    return dict(_packages(path, state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache(maxsize=4)
def _packages(path: Path, *_version_of_the_list: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for block in read_text(path, DPKG_BYTES).split("\n\n"):
        name = WANTED.match(block)
        version = re.search(r"^Version: (\S+)$", block, re.MULTILINE) if name else None
        if name and version and re.search(r"^Status: \S+ \S+ installed$", block, re.MULTILINE):
            found[name[1]] = version[1]
    return found


def l4t(sysroot: Path, installed: dict[str, str]) -> str:
    """Release of L4T such as ``36.4.4``, ``""`` on another system.

    Args:
        installed: As `packages` gives them.
    """
    head = re.search(
        r"# R([0-9]{1,3}) \(release\), REVISION: ([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})",
        read_text(sysroot / "etc/nv_tegra_release"),
    )
    if head:
        return f"{head[1]}.{head[2]}"
    return _upstream(installed.get("nvidia-l4t-core", ""))


def jetpack(release: str) -> str:
    """JetPack of an L4T release, ``""`` for one that is not known here."""
    return JETPACK.get(release, "")


def tensorrt(installed: dict[str, str]) -> str:
    """Version of TensorRT such as ``10.3.0.30``, ``""`` without it."""
    names = sorted((n for n in installed if n.startswith("libnvinfer")), reverse=True)
    # libnvinfer10 before libnvinfer-bin: the library is what runs.
    names.sort(key=lambda name: name == "libnvinfer-bin")
    return _upstream(installed[names[0]]) if names else ""


def cuda(sysroot: Path, installed: dict[str, str]) -> str:
    """Version of CUDA's runtime library such as ``12.6.68``, ``""`` without it."""
    try:
        parts = json.loads(read_text(sysroot / "usr/local/cuda/version.json"))
        # The version of the kit, under "cuda", is not that of its parts.
        version = parts.get("cuda_cudart", parts.get("cuda"))["version"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        version = None
    if isinstance(version, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)*", version, re.ASCII):
        return version
    names = sorted(name for name in installed if name.startswith("cuda-cudart-"))
    return _upstream(installed[names[-1]]) if names else ""


def _upstream(version: str) -> str:
    """``10.3.0.30`` of ``10.3.0.30-1+cuda12.5``."""
    found = re.match(r"(?:[0-9]+:)?([0-9]+(?:\.[0-9]+)*)", version, re.ASCII)
    return found[1] if found else ""
