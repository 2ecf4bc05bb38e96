"""The agent in a virtual environment of Python 3.10 that has its extra and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.agent import models
from tests.agent.bare import install, run
from tests.agent.publishing import manifest_of, publish


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of the environment."""
    return install(tmp_path_factory.mktemp("bare"))


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
    certificate = json.loads(measured.stdout)["results"][0]["certificate"]
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
