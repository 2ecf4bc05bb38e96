"""What a killed driver's Ray left is removed by the next one, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sharedenc.training.allocator import ENVIRONMENT
from sweeps.order import Machine
from sweeps.ray_session import clean_up, machine, worker_environment


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield process
    process.kill()
    process.wait()


def record(folder: Path, driver: int, born: float, processes: dict[str, float]) -> Path:
    scratch = folder / "ray-abc"
    scratch.mkdir()
    (scratch / "socket").touch()
    path = folder / f"ray-{driver}.json"
    everything = {str(driver): born, **processes}
    path.write_text(json.dumps({"driver": driver, "processes": everything, "folder": str(scratch)}))
    return path


def test_the_rest_of_a_dead_driver_goes(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    born = psutil.Process(sleeper.pid).create_time()
    path = record(tmp_path, 2**22 + 1, 5.0, {str(sleeper.pid): born})
    clean_up(tmp_path)
    assert sleeper.wait(timeout=60) == -9
    assert not (tmp_path / "ray-abc").exists()
    assert not path.exists()


def test_a_process_that_only_has_the_same_number_lives(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    record(tmp_path, 2**22 + 1, 5.0, {str(sleeper.pid): 5.0})
    clean_up(tmp_path)
    assert sleeper.poll() is None


def test_a_driver_that_lives_keeps_everything(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    here = psutil.Process().create_time()
    born = psutil.Process(sleeper.pid).create_time()
    path = record(tmp_path, os.getpid(), here, {str(sleeper.pid): born})
    clean_up(tmp_path)
    assert sleeper.poll() is None
    assert path.exists()
    assert (tmp_path / "ray-abc" / "socket").exists()


def test_a_record_that_cannot_be_read_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "ray-1.json").write_text("{")
    clean_up(tmp_path)
    clean_up(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_node_in_rays_words_and_in_ours() -> None:
    found = machine({"CPU": 8.0, "GPU": 2.0, "memory": 1.5e9, "node:192.0.2.1": 1.0}, "abc")
    assert found == Machine(cpus=8.0, gpus=2.0, memory=1_500_000_000, id="abc")


def test_no_credential_is_handed_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    environment = worker_environment(4)
    assert "hunter2" not in json.dumps(environment)
    assert environment["OMP_NUM_THREADS"] == "4"
    assert set(ENVIRONMENT) < set(environment)


DRIVER = """
import sys, time
from pathlib import Path
import ray
from sweeps.ray_session import RaySession

here = Path(sys.argv[1])
session = RaySession(records=here, cpus=1, memory_gib=1)
session.open()

@ray.remote
def work():
    (here / "working").touch()
    time.sleep(300)

ray.get(work.remote())
"""


@pytest.mark.slow
def test_kill_9_of_a_driver_leaves_nothing_for_long(tmp_path: Path) -> None:
    """Its own Ray ends what it can; the next session ends the rest, and takes the folder away."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)])
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "working").exists():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = psutil.Process(driver.pid).children(recursive=True)
        assert {"raylet", "gcs_server"} <= {process.name() for process in family}
    finally:
        driver.kill()
        driver.wait()
    (path,) = tmp_path.glob("ray-*.json")
    folder = Path(json.loads(path.read_text())["folder"])
    assert folder.is_dir()
    clean_up(tmp_path)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert [process.name() for process in alive] == []
    assert not folder.exists()
    assert not path.exists()
