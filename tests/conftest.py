"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

# One thread: the same number gives the same bits, and two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# How long an example takes tells how busy the machine is, and nothing of the code.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _own_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test reads or writes the user's stores."""
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "SHAREDENC_RUNS"):
        monkeypatch.delenv(name, raising=False)
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("SHAREDENC_CACHE", str(base / "cache"))
    monkeypatch.setenv("JETSON_AGENT_STATE", str(base / "agent"))
    monkeypatch.setenv("JETSON_AGENT_LOCK", str(base / "agent.lock"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and measurements beside the project."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data beside the project is not here")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set: 12 training, 6 validation, 6 test pictures."""
    from sharedenc.data.synthetic import write_synthetic

    return write_synthetic(tmp_path_factory.mktemp("tiny") / "data", images=(12, 6, 6), seed=0)


@pytest.fixture(scope="session")
def tiny_pack(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """The packed form of `tiny_dataset`."""
    from sharedenc.data.packed import prepare

    return prepare(tiny_dataset, cache=tmp_path_factory.mktemp("packs"), progress=False)


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on 127.0.0.1 for this test process."""
    yield from _serve(tmp_path_factory)


@pytest.fixture(scope="module")
def own_mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for one file's tests: an agent would time whatever others have registered."""
    yield from _serve(tmp_path_factory)


def _serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from sharedenc.mlflow_server import serve

    kept = os.environ.pop("MLFLOW_TRACKING_URI", None)
    folder = tmp_path_factory.mktemp("mlflow")
    with serve(folder) as server:
        yield server.uri
    shutil.rmtree(folder, ignore_errors=True)  # some GB of checkpoints and exported files
    if kept is not None:
        os.environ["MLFLOW_TRACKING_URI"] = kept
