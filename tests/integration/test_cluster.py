"""A Ray cluster of two nodes on this machine, started as docs/deploying.md says, and a study on it.

The driver is a third process that joins by `--address`; token authentication is on, the tracking
server asks for a login, and storage is a folder that both nodes see.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.infra.cluster import (
    BIN,
    HOST,
    RayCluster,
    await_true,
    mlflow_server,
    ray_cluster,
    running,
)
from tests.infra.files import INFRA
from tests.integration.sweeping import BASELINE, EPOCHS, SWAP, Sweep, sweeping, table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.alone,
    pytest.mark.timeout(900),
]

OTHER = "resnet18/baseline/seg"
CELLS = sorted([BASELINE, OTHER, SWAP])
LOGIN = {
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "a long password of a test",
}

NODES = """
import json, ray
ray.init(log_to_driver=False)
alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]

@ray.remote(num_cpus=1)
def where():
    import time
    time.sleep(1)
    return ray.get_runtime_context().get_node_id()

used = ray.get([where.remote() for _ in alive])
print(json.dumps({"alive": alive, "used": used}))
"""


def client(cluster: RayCluster, code: str = NODES, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user on another machine would: with the address and the token, no more."""
    environment = {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.address, **more}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )


def alive(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The live nodes that a client saw; none while it could not say."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return list(json.loads(lines[-1])["alive"]) if lines else []


def test_two_nodes_join_with_the_token_and_nobody_without(tmp_path: Path) -> None:
    with ray_cluster(nodes=2) as cluster:
        done = client(cluster)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert len(found["alive"]) == 2
        assert sorted(found["used"]) == sorted(found["alive"]), "each node ran one of the tasks"

        # Each waits about 20 seconds before it gives up; all wait at once.
        head = cluster.nodes[0].temp_dir.parent
        join = [str(BIN / "ray"), "start", f"--address={cluster.address}", "--block"]
        join += [f"--temp-dir={head / 'x'}"]
        ask = [sys.executable, "-c", NODES]
        strangers = {
            "a client with another token": (ask, {"RAY_AUTH_TOKEN": "0" * 64}),
            "a client without": (ask, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}),
            "a node with another token": (join, {"RAY_AUTH_TOKEN": "1" * 64}),
        }
        common = {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.address}
        with contextlib.ExitStack() as started:
            tried = {
                who: started.enter_context(
                    subprocess.Popen(
                        command, env={**common, **other}, text=True, stderr=subprocess.PIPE
                    )
                )
                for who, (command, other) in strangers.items()
            }
            errors = {who: process.communicate(timeout=120)[1] for who, process in tried.items()}
        for who, process in tried.items():
            assert process.returncode != 0, f"{who} was let in"
            assert cluster.environment["RAY_AUTH_TOKEN"] not in errors[who]
        assert "InvalidAuthToken" in errors["a node with another token"]
        assert len(alive(client(cluster))) == 2

        # A node that is killed is gone from the cluster; the other goes on.
        cluster.nodes[1].kill()
        assert cluster.nodes[0].raylet is not None

        def one_left() -> bool:
            return len(alive(client(cluster))) == 1

        await_true("the killed node is missed", one_left, 90)


def test_a_drained_node_takes_nothing_new(tmp_path: Path) -> None:
    """infra/drain.sh on a real cluster of one node: idle, so its raylet ends at once."""
    with ray_cluster(nodes=1) as cluster:
        environment = {
            **os.environ,
            **cluster.environment,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_ADDRESS": cluster.address,
            "SHAREDENC_DRAIN_FILE": str(cluster.nodes[0].drain_file),
        }
        assert cluster.nodes[0].raylet is not None
        # Other raylets of this machine may live on, so the script may wait in vain: briefly.
        done = subprocess.run(
            ["sh", str(INFRA / "drain.sh"), "5"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0
        assert "failed" not in done.stderr
        assert cluster.nodes[0].drain_file.exists()
        await_true("the raylet ends", lambda: cluster.nodes[0].raylet is None, 60)


def free_job() -> int:
    """A Slurm job's number whose ports are free; the script derives them from the number."""
    for number in random.sample(range(1000, 9000), 60):
        first = 20000 + number % 60 * 200
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + 200):
                    held.enter_context(socket.socket()).bind((HOST, port))
            except OSError:
                continue
            return number
    raise AssertionError("no block of 200 free ports")


def test_the_slurm_script_starts_and_ends_a_cluster_of_its_own(tmp_path: Path) -> None:
    """Slurm and the sweep are stand-ins; Ray is real, with the script's ports, folder and token."""
    programs, number = tmp_path / "bin", free_job()
    programs.mkdir()
    answer = tmp_path / "answer"
    (tmp_path / "nodes.py").write_text(NODES)
    for name, text in {
        "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
        "sharedenc": "while [[ $1 != --address ]]; do shift; done\n"
        f"RAY_ADDRESS=$2 exec {sys.executable} {tmp_path / 'nodes.py'} >{answer}",
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    disk = Path(tempfile.mkdtemp(prefix="se-"))
    environment = {
        **os.environ,
        "PATH": f"{programs}:{BIN}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NUM_NODES": "1",
        "SHAREDENC_HEAD_IP": HOST,
        "SHAREDENC_NODE_DIR": str(disk),
        "SHAREDENC_CACHE": str(disk / "packs"),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "SHAREDENC_STORAGE": "/shared/store",
    }
    log = tmp_path / "slurm.log"
    try:
        with running(["bash", str(INFRA / "sweep.sbatch"), "full-grid"], log, environment) as job:
            assert job.wait(240) == 0, log.read_text()[-3000:]
        assert len(json.loads(answer.read_text().splitlines()[-1])["alive"]) == 1
        left = [p.pid for p in psutil.process_iter(["cmdline"]) if str(disk) in str(p.info)]
        assert left == [], "nothing of the job's Ray is left"
        assert [path.name for path in disk.iterdir()] == ["packs"]
    finally:
        shutil.rmtree(disk, ignore_errors=True)


@dataclass
class Place:
    """A cluster with a study on it."""

    cluster: RayCluster
    sweep: Sweep
    uri: str
    process: subprocess.Popen[str]


@contextmanager
def study(folder: Path, data: Path) -> Iterator[Place]:
    """Start everything that docs/deploying.md names, and the study as a third process."""
    server = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": LOGIN["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": LOGIN["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs forms",
    }
    users = (INFRA / "mlflow" / "basic_auth.ini").read_text().splitlines()
    users = [line for line in users if not line.startswith("database_uri")]
    users.append(f"database_uri = sqlite:///{folder}/users.db")
    (folder / "basic_auth.ini").write_text("\n".join(users))
    with (
        pytest.MonkeyPatch.context() as patch,
        mlflow_server(folder, ["--app-name=basic-auth"], server) as uri,
        ray_cluster(nodes=2, environment={**LOGIN, "MLFLOW_TRACKING_URI": uri}) as cluster,
    ):
        for name, value in {**cluster.environment, **LOGIN}.items():
            patch.setenv(name, value)
        options = ("--only", OTHER, "--address", cluster.address)
        options += ("--storage", str(folder / "shared"), "--no-preflight")
        with sweeping(folder / "driver", data, uri=uri, options=options) as sweep:
            yield Place(cluster, sweep, uri, sweep.start())


def finished(place: Place) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Wait for the end; return the command's answer and the table on the tracking server."""
    answer = place.sweep.answer(place.process)
    errors = (place.sweep.folder / "err").read_text()
    assert (place.process.returncode, answer["exit_code"]) == (0, 0), errors[-3000:]
    for secret in (LOGIN["MLFLOW_TRACKING_PASSWORD"], os.environ["RAY_AUTH_TOKEN"]):
        assert secret not in errors
    rows = table(place.uri)
    assert sorted(rows) == CELLS
    for row in rows.values():
        assert (row["state"], row["status"]) == ("done", "FINISHED")
        for metric in ("train/loss", "val/loss", "lr"):
            # None lost, none doubled.
            assert [step for step, _ in row["history"][metric]] == list(range(1, EPOCHS + 1))
    return answer, rows


def both_nodes_train(place: Place) -> None:
    """Wait until each node has a trial."""

    def busy() -> bool:
        assert place.process.poll() is None, (place.sweep.folder / "err").read_text()[-3000:]
        return all(node.trials() for node in place.cluster.nodes)

    await_true("both nodes train", busy, 300)


@pytest.fixture(scope="module")
def undisturbed(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The table of a study that ran on both nodes without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with study(folder, tiny_dataset) as place:
        both_nodes_train(place)
        answer, rows = finished(place)
        machines = {event["machine"] for event in place.sweep.events() if event["event"] == "start"}
    assert {row["attempts"] for row in answer["cells"]} == {1}
    assert len(machines) == 2
    assert list((folder / "shared").rglob("*")), "checkpoints and packs are in the storage"
    return rows


def test_a_study_runs_on_both_nodes(undisturbed: dict[str, dict[str, Any]]) -> None:
    assert all(row["test"] for row in undisturbed.values())


def test_a_node_that_is_drained_then_killed_changes_no_result(
    undisturbed: dict[str, dict[str, Any]], tiny_dataset: Path, tmp_path: Path
) -> None:
    with study(tmp_path, tiny_dataset) as place:

        def handed_back() -> list[dict[str, Any]]:
            return [event for event in place.sweep.events() if event["event"] == "again"]

        both_nodes_train(place)
        node = place.cluster.nodes[1]
        for trial in (BASELINE, OTHER):
            place.sweep.wait_for(trial, 3, place.process)

        # The notice that it will go away: its trial saves, ends and is handed back.
        node.drain_file.touch()
        await_true("its trial is handed back", lambda: len(handed_back()) == 1, 120)
        node.drain_file.unlink()

        # It stays after all and takes a trial; then it is gone, without notice.
        both_nodes_train(place)
        raylet = node.raylet
        assert raylet is not None
        raylet.kill()
        await_true("its trial is missed", lambda: len(handed_back()) == 2, 120)
        answer, rows = finished(place)
        events = place.sweep.events()
    assert {event["kind"] for event in handed_back()} == {""}, "neither is a fault"
    assert {row["attempts"] for row in answer["cells"]} == {1}, "neither is charged"
    moved = handed_back()[0]["trial"]
    at = next(index for index, event in enumerate(events) if event["event"] == "again")
    mine = [(e["event"], e.get("trial")) == ("epoch", moved) for e in events]
    before = [e["epoch"] for e, own in zip(events[:at], mine, strict=False) if own]
    after = [e["epoch"] for e, own in zip(events[at:], mine[at:], strict=True) if own]
    assert before[0] == 1
    assert after[0] == before[-1] + 1, "it went on where it had saved"
    assert rows == undisturbed
