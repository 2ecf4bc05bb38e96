"""A virtual environment of Python 3.10 with the agent's extra and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def find_python_3_10() -> Path | None:
    """A Python 3.10 that really starts: a shim of pyenv may be there without one behind it."""
    named = shutil.which("python3.10")
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    versions = root / "versions"
    for path in [Path(named)] * bool(named) + sorted(versions.glob("3.10*/bin/python3.10")):
        probe = subprocess.run([path, "-c", "import venv"], capture_output=True, check=False)
        if probe.returncode == 0:
            return path
    return None


def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command there, with ``more`` in its environment."""
    return subprocess.run(
        command, env={**environment(), **more}, capture_output=True, text=True, timeout=900
    )


def environment() -> dict[str, str]:
    """The environment of the agent's processes: nothing of this one's packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def install(place: Path) -> Path:
    """Make the environment below ``place``; returns its ``bin`` folder. Skips without a 3.10."""
    python = find_python_3_10()
    if python is None:
        pytest.skip("there is no Python 3.10: neither python3.10 on the PATH nor one of pyenv")
    # A copy, so that the build leaves nothing in the working tree.
    source = place / "source"
    for package in ("jetson_agent", "sharedenc", "sweeps"):
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    made = run(python, "-m", "venv", place / "venv")
    assert made.returncode == 0, made.stderr
    binaries = place / "venv" / "bin"
    installed = run(
        *(binaries / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"),
        f"{source}[agent]",
    )
    assert installed.returncode == 0, installed.stderr
    return binaries
