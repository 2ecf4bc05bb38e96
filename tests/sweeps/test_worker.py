"""A worker finds what its trial needs: on this disk, in the storage, or in MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sweeps.graph import Node
from sweeps.worker import execute, make_job, stopped
from tests.sweeps.conftest import MakeNodes

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset
    from sharedenc.tracking import MemoryTracker

KEY = "a" * 64


@pytest.fixture
def tracker() -> Iterator[MemoryTracker]:
    from sharedenc.tracking import MemoryTracker

    tracker = MemoryTracker()
    yield tracker
    tracker.close()


@pytest.fixture
def swap(make_nodes: MakeNodes) -> Node:
    return make_nodes(only=("resnet18/swap-frozen/seg",))[-1]


def payload(node: Node, folder: Path, **more: Any) -> dict[str, Any]:
    assert node.trial is not None
    return {
        "node": node.id,
        "trial": node.trial.to_dict(),
        "pack": str(folder / "driver" / "pack"),
        "pack_digest": KEY,
        "cache_dir": str(folder / "cache"),
        "storage": None,
        "weights": "none",
        "parent": None,
        "work_dir": str(folder / "work"),
        "device": "cpu",
        "workers": 0,
        "plugins": [],
        "keep": True,
        "predictions": False,
        "test": False,
        "tracking_uri": "http://127.0.0.1:9",
        "run_id": "r",
        "checkpoint_every": "2epochs",
        "baselines": {"det": 0.25},
        "taps_budget_bytes": 1 << 20,
        **more,
    }


def test_a_job_of_a_payload(swap: Node, tracker: MemoryTracker, tmp_path: Path) -> None:
    job = make_job(payload(swap, tmp_path, keep=False), tracker, lambda: "because")
    assert job.trial == swap.trial
    assert (job.pack, job.work_dir) == (tmp_path / "driver" / "pack", tmp_path / "work")
    assert (job.checkpoint_every, job.baselines, job.fresh) == ("2epochs", {"det": 0.25}, False)
    assert (job.stop(), job.keep) == ("because", False)
    assert job.taps_budget_bytes == 1 << 20


def test_a_pack_that_only_the_driver_has_is_fetched_from_the_storage(
    swap: Node, tracker: MemoryTracker, tmp_path: Path, tiny_pack: PackedDataset
) -> None:
    from sharedenc.data.pack_store import publish
    from sharedenc.data.packed import PackedDataset
    from sharedenc.storage import open_storage

    publish(tiny_pack.root, open_storage(str(tmp_path / "shared")))
    given = payload(swap, tmp_path, storage=str(tmp_path / "shared"), pack_digest=tiny_pack.digest)
    job = make_job(given, tracker, str)
    assert tmp_path / "cache" in job.pack.parents
    assert PackedDataset.open(job.pack).digest == tiny_pack.digest
    here = make_job({**given, "pack": str(tiny_pack.root)}, tracker, str)
    assert here.pack == tiny_pack.root


def test_a_parent_from_disk_from_the_storage_and_from_its_run(
    swap: Node, tracker: MemoryTracker, tmp_path: Path
) -> None:
    best = tmp_path / "driver" / "best.safetensors"
    run = tracker.child("study", tracker.study("study", {}), "parent", {})
    source = tmp_path / "best.safetensors"
    source.write_bytes(b"from its run")
    run.artifact(source, "checkpoint")
    parent = {"path": str(best), "run_id": run.run_id, "key": KEY}
    # The storage has nothing of this trial.
    shared = str(tmp_path / "shared")
    given = payload(swap, tmp_path, pack=str(tmp_path), parent=parent, storage=shared)
    found = make_job(given, tracker, str).parent
    assert found is not None
    assert found.read_bytes() == b"from its run"

    _finished(tmp_path / "elsewhere", tmp_path / "shared")
    found = make_job(given, tracker, str).parent
    assert found is not None
    assert found.read_bytes() != b"from its run"
    assert found.name == "best.safetensors"

    best.parent.mkdir()
    best.write_bytes(b"from disk")
    assert make_job(given, tracker, str).parent == best


def _finished(folder: Path, storage: Path) -> None:
    """Leave in the storage what a finished trial leaves there."""
    from sharedenc.models.build import build_network
    from sharedenc.storage import open_storage
    from sharedenc.training.keeper import Keeper

    network = build_network("resnet18", ["det"], 3, seed=0)
    keeper = Keeper(folder, KEY, storage=open_storage(str(storage)))
    keeper.keep_best(network, {})
    keeper.save({"end": "done", "epoch": 1, "step": 0})
    keeper.publish_best()
    keeper.settle()


def test_what_cannot_be_had_is_an_outcome(swap: Node, tmp_path: Path) -> None:
    given = payload(swap, tmp_path, plugins=[str(tmp_path / "gone.py")])
    ends: dict[str, dict[str, Any]] = {}
    execute([given], lambda name, report: False, ends.__setitem__, str)
    (outcome,) = (ends.pop(swap.id),)
    assert ends == {}
    assert (outcome["state"], outcome["result"]) == ("failed", None)
    assert "gone.py" in outcome["reason"]
    assert outcome["traceback"].startswith("Traceback")
    assert outcome["error"]


def test_a_reason_says_whether_the_trial_runs_again() -> None:
    assert stopped("preempted: its node goes away")["state"] == "preempted"
    assert stopped("stopped by Ctrl-C")["state"] == "stopped"
