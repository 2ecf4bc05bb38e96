"""The policy and the packing arithmetic against a real Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sweeps.events import EventLog, read_events
from sweeps.launch import RayLauncher
from sweeps.replay import replay
from sweeps.resources import GIB, gpu_share
from sweeps.state import Row, SweepState
from sweeps.worker import AskStop, OnEnd, OnReport
from tests.sweeps.conftest import MakeNodes

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayLauncher]:
    """One private Ray with two cores and two declared GPUs, which do not exist."""
    owner = RayLauncher(storage=tmp_path_factory.mktemp("ray") / "tune", threads=1, cpus=2, gpus=2)
    owner.machines()
    yield owner
    owner.close()


def sleepy(
    payloads: Sequence[dict[str, Any]], on_report: OnReport, on_end: OnEnd, stop: AskStop
) -> None:
    """Two epochs of made-up lengths; some trials fail on a machine fault the first time."""
    (payload,) = payloads
    name = payload["node"]
    on_end(name, _sleepy(payload, lambda report: on_report(name, report)))


def _sleepy(payload: dict[str, Any], on_report: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    seconds = 0.05 + sum(payload["node"].encode()) % 7 / 20
    for epoch in (1, 2):
        time.sleep(seconds)
        on_report({"epoch": epoch, "epochs": 2, "score": seconds * epoch, "seconds": seconds})
    mark = Path(payload["folder"]) / payload["node"].replace("/", ".")
    if "dual" in payload["node"] and not mark.exists():
        mark.touch()
        return {"state": "failed", "kind": "machine", "reason": "it fell over"}
    return {"state": "done", "result": {"score": seconds}}


def test_a_recorded_ray_sweep_is_what_the_policy_chooses(
    ray_session: RayLauncher, make_nodes: MakeNodes, tmp_path: Path
) -> None:
    from sweeps.faults import Rules

    nodes = make_nodes(backbones=("resnet18", "densenet121"))
    rules = Rules(backoff_s=0.2)
    log = EventLog(tmp_path / "events.jsonl")
    launcher = RayLauncher(storage=tmp_path / "tune", run_trial=sleepy)
    state = SweepState(nodes, launcher.machines(), rules=rules, log=log)
    state.begin()

    def payload(row: Row) -> dict[str, Any]:
        drain = str(tmp_path / "drain")
        return {"node": row.node.id, "folder": str(tmp_path), "drain_file": drain}

    try:
        launcher.run(state, payload, lambda: None)
    finally:
        launcher.close()
        log.close()
    assert {row.state for row in state.rows.values()} == {"done"}
    events = read_events(log.path)
    found = replay(nodes, events, rules=rules)
    assert found.difference is None
    assert found.starts == found.same == len(nodes) + 2  # two duals were tried again
    # Two at once, and never a gap while something could have started: the slots were used.
    starts = [event["t"] for event in events if event["event"] == "start"]
    assert all(a <= b for a, b in pairwise(starts))


def test_ray_accepts_the_shares_and_holds_as_many_as_fit(
    ray_session: RayLauncher, tmp_path: Path
) -> None:
    import ray

    share = gpu_share(6 * GIB, 24 * GIB)
    assert 1 / 3 < share <= 1 / 2  # two fit, a third does not

    @ray.remote(num_gpus=share, num_cpus=0, max_retries=0)
    def occupy() -> tuple[str, float, float]:
        start = time.monotonic()  # the same clock in all processes of a machine
        time.sleep(1.5)
        return os.environ["CUDA_VISIBLE_DEVICES"], start, time.monotonic()

    # Three times, because Ray's accounts of a device drift as shares are given back.
    for _ in range(3):
        spans = ray.get([occupy.remote() for _ in range(6)])
        assert {device for device, _, _ in spans} == {"0", "1"}
        # Two on each of the two devices, six were asked for.
        for _, moment, _ in spans:
            assert sum(start <= moment < end for _, start, end in spans) <= 4
