"""The agent in a virtual environment of Python 3.10 that has its extra and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from tests.agent import models
from tests.agent.publishing import manifest_of, publish

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


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        command, env={**kept, **environment}, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of the environment."""
    python = find_python_3_10()
    if python is None:
        pytest.skip("there is no Python 3.10: neither python3.10 on the PATH nor one of pyenv")
    place = tmp_path_factory.mktemp("bare")
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_measure_and_once_run_on_python_3_10_without_torch_and_ray(
    bare: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    absent = (
        "import sys, importlib.util as u\n"
        "assert sys.version_info[:2] == (3, 10), sys.version\n"
        "assert not [m for m in ('torch', 'ray', 'torchvision', 'cv2') if u.find_spec(m)]\n"
    )
    checked = run(bare / "python", "-c", absent)
    assert checked.returncode == 0, checked.stderr
    quick = ("--warmup-s", "0.01", "--duration-s", "0.05", "--threads", "1", "--json")
    model = models.convolution(tmp_path / "m.onnx")
    measured = run(bare / "jetson-agent", "measure", model, *quick)
    assert measured.returncode == 0, measured.stderr
    certificate = json.loads(measured.stdout)["certificate"]
    assert certificate["python"].startswith("3.10.")

    data = f"d{uuid4().hex[:8]}"
    publish(mlflow_uri, model, manifest_of(model, "conv", data=data))
    command = [
        *(bare / "jetson-agent", "once", "--device", f"board-{data}", "--select", f"{data}-*"),
        *("--state-dir", tmp_path / "state", *quick),
    ]
    first = run(*command, MLFLOW_TRACKING_URI=mlflow_uri)
    assert first.returncode == 0, first.stderr
    assert [row["architecture"] for row in json.loads(first.stdout)["timed"]] == ["conv"]
    second = run(*command, MLFLOW_TRACKING_URI=mlflow_uri)
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["timed"] == []
