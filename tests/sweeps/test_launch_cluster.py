"""The Ray launcher on a cluster: nodes that die and join, demand that makes one grow, checks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sharedenc.errors import SpecError
from sweeps.cluster import check_cluster
from sweeps.faults import Rules
from sweeps.launch import RayLauncher
from sweeps.order import Demand
from sweeps.state import Row, SweepState
from tests.contracts.launcher import launch, quick, started, summary
from tests.infra.cluster import BIN, HOST, await_true, free_ports, ray_cluster, running
from tests.sweeps.conftest import MakeNodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.alone,
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).resolve().parents[2]
# Nodes find the trials of these tests; what one process joins without a token, another may too.
OPEN = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
DET, SEG = "resnet18/baseline/det", "resnet18/baseline/seg"


@pytest.fixture(autouse=True)
def _left() -> Iterator[None]:
    """No test leaves this process in a cluster."""
    yield
    import ray

    ray.shutdown()


def wanted() -> list[dict[str, float]]:
    """What Ray's autoscaler is asked for, as it reads it."""
    import ray
    from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    assert ray.is_initialized()
    return list(json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]"))


def test_a_node_dies_and_its_trials_go_on_elsewhere_uncharged(
    make_nodes: MakeNodes, tmp_path: Path
) -> None:
    with ray_cluster(nodes=2, environment=OPEN) as cluster:
        launcher = RayLauncher(storage=tmp_path / "tune", address=cluster.address, run_trial=quick)
        machines = launcher.machines()
        assert len({machine.id for machine in machines}) == 2
        assert not launcher.elastic, "nobody starts nodes for a cluster that was started by hand"

        check_cluster(storage=str(tmp_path / "shared"))
        (port,) = free_ports(1)
        with pytest.raises(SpecError, match=f"no answer from .*{port}.*no answer from .*{port}"):
            check_cluster(tracking_uri=f"http://{HOST}:{port}")

        asked: list[list[dict[str, float]]] = []
        killed: list[str] = []

        def beat(state: SweepState) -> None:
            asked.append(wanted())
            both = {row.machine for row in state.running if row.epoch == 2}
            if len(both) == 2 and not killed:
                here = launcher._session.node  # type: ignore[union-attr]
                killed.extend(r.node.id for r in state.running if r.machine != here)
                cluster.nodes[1].kill()
            if killed and state.rows[killed[0]].preemptions:
                (tmp_path / "go").touch()

        nodes = [
            replace(node, demand=Demand(cpus=1, memory=2**20))
            for node in make_nodes(only=(DET, SEG, "resnet18/share-frozen/*"))
        ]
        rows = launch(
            launcher, nodes, tmp_path, beat=beat, lasts=f"{DET} {SEG}", rules=Rules(backoff_s=0.5)
        )
    (lost,) = killed
    (kept,) = {DET, SEG} - {lost}
    assert summary(rows[lost]) == ("done", "", "", 1, 1)
    assert rows[lost].machine == rows[kept].machine
    assert summary(rows[kept]) == ("done", "", "", 1, 0)
    assert (started(tmp_path, lost), started(tmp_path, kept)) == (2, 1)
    assert {row.state for row in rows.values()} == {"done"}
    assert [{"CPU": 1.0, "memory": 2.0**20}] * 4 in asked


def autoscaling(folder: Path, address: str) -> Path:
    """A configuration of Ray's own stand-in for a cloud, whose machines are processes here."""
    lists = ("cluster_synced_files", "initialization_commands", "setup_commands")
    lists += ("head_setup_commands", "worker_setup_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands")
    config: dict[str, Any] = {
        "cluster_name": "made-up",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        **{name: [] for name in lists},
    }
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(config))
    return path


def test_a_cluster_without_a_gpu_grows_by_what_is_wanted(
    make_nodes: MakeNodes, tmp_path: Path
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="se-ray-"))
    (port,) = free_ports(1)
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}"]
    command += [f"--node-ip-address={HOST}", "--num-cpus=1", "--include-dashboard=false"]
    command += [f"--temp-dir={folder / 'ray'}", "--object-store-memory=80000000"]
    command += [f"--autoscaling-config={autoscaling(tmp_path, f'{HOST}:{port}')}"]
    environment = {**os.environ, **OPEN, "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    log = tmp_path / "head.log"
    try:
        with running(command, log, environment) as head:

            def up() -> bool:
                assert head.poll() is None, log.read_text()[-3000:]
                return "Ray runtime started" in log.read_text()

            await_true("the head is up", up)
            grow(tmp_path, f"{HOST}:{port}", make_nodes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def grow(folder: Path, address: str, make_nodes: MakeNodes) -> None:
    """Run one trial that needs a GPU where none is."""
    launcher = RayLauncher(storage=folder / "tune", address=address, run_trial=quick)

    def reported() -> bool:
        launcher.close()
        return bool(launcher.machines()) and launcher.elastic

    await_true("the autoscaler has reported itself", reported, 60)
    assert [machine.gpus for machine in launcher.machines()] == [0]
    (node,) = make_nodes(only=("resnet18/share-frozen/det",))
    # Ray's stand-in for a cloud has no memory to ask for.
    node = replace(node, demand=Demand(cpus=0.5, gpus=0.5))
    state = SweepState([node], launcher.machines(), elastic=True)
    asked, waited = [], []
    until = time.monotonic() + 600

    def beat() -> None:
        assert time.monotonic() < until, f"nothing came; asked for {wanted()}"
        asked.append(wanted())
        waited.append(state.waiting_for(node.id))

    def payload(row: Row) -> dict[str, Any]:
        return {"node": node.id, "folder": str(folder), "epochs": 2}

    launcher.run(state, payload, beat)
    assert summary(state.rows[node.id]) == ("done", "", "", 1, 0)
    assert "a machine with 0.5 CPU cores, 0.5 GPUs, 0.0 GiB" in waited
    assert sorted(machine.gpus for machine in state.machines) == [0, 1]
    assert [{"CPU": 0.5, "GPU": 0.5}] in asked
    assert wanted() == [], "what is not wanted any more keeps no machine"
    launcher.close()
