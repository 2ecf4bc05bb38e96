"""What pip itself would install on a board: Python 3.10 on aarch64, and nothing to compile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "infra" / "jetson" / "constraints.txt"
# JetPack 6 is Ubuntu 22.04, whose glibc is 2.35; pip takes tags literally, so each is named.
GLIBC = (17, 24, 26, 27, 28, 31, 34, 35)
PLATFORMS = ["manylinux2014_aarch64", *(f"manylinux_2_{n}_aarch64" for n in GLIBC)]


def requirements() -> list[str]:
    """What the distribution and its extra `agent` ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["agent"]]


def resolve(folder: Path, *options: str) -> list[dict[str, Any]]:
    """What pip would install, as its own report tells it."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--dry-run", "--ignore-installed", "--only-binary", ":all:", *options]
    command += [word for name in PLATFORMS for word in ("--platform", name)]
    command += ["--implementation", "cp", "--python-version", "3.10"]
    command += ["--target", str(folder / "target"), "--report", str(report), *requirements()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"a dependency has no wheel for a board:\n{done.stderr[-3000:]}"
    found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return found


def pinned() -> dict[str, str]:
    lines = CONSTRAINTS.read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_dependency_has_a_wheel_for_a_board_and_torch_and_ray_are_none(
    tmp_path: Path,
) -> None:
    found = resolve(tmp_path)
    files = [one["download_info"]["url"].rpartition("/")[2] for one in found]
    assert all(name.endswith(".whl") for name in files)
    assert all("aarch64" in name or "none-any" in name for name in files)
    names = {one["metadata"]["name"].lower().replace("_", "-") for one in found}
    assert {"mlflow-skinny", "onnx", "onnxruntime", "polygraphy", "numpy"} <= names
    assert not names & {"torch", "torchvision", "ray", "mlflow", "pandas", "opencv-python-headless"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_versions_of_the_container_resolve_and_none_is_left_open(tmp_path: Path) -> None:
    found = resolve(tmp_path, "--constraint", str(CONSTRAINTS))
    chosen = {
        one["metadata"]["name"].lower().replace("_", "-"): one["metadata"]["version"]
        for one in found
    }
    assert chosen == pinned()
