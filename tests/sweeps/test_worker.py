"""A worker finds what its trial needs: on this disk, in the storage, or in MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sweeps import worker
from sweeps.graph import Node
from sweeps.signals import Deaf
from sweeps.worker import _Running, execute, make_job, make_trainable, stopped
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


def test_the_number_of_members_is_what_the_training_says() -> None:
    from sharedenc.training.job import EpochReport

    told: list[int] = []

    def on_report(name: str, report: dict[str, Any]) -> bool:
        told.append(report["members"])
        return False

    group = _Running(["a", "b"], on_report, lambda name, outcome: None)
    group.listener("a")(EpochReport(1, 2, {"score": 0.5}, 1.0, members=1))
    group.listener("a")(EpochReport(2, 2, {"score": 0.5}, 1.0, members=2))
    assert told == [1, 2]


class FakeTune:
    """Ray Tune that ends the trial with its n-th report; a further one would wait for ever."""

    def __init__(self, patch: pytest.MonkeyPatch, ends_with: int) -> None:
        self.told: list[dict[str, Any]] = []
        self._ends_with = ends_with
        from ray import tune
        from ray.tune.trainable import function_trainable

        class Wrapped:
            def setup(self, config: dict[str, Any]) -> None: ...

        def wrap(function: Any) -> type:
            self.trial = function
            return Wrapped

        patch.setattr(function_trainable, "wrap_function", wrap)
        patch.setattr(tune, "report", self.report)
        patch.setattr(worker, "_listen", lambda signals: Deaf())

    def report(self, result: dict[str, Any]) -> None:
        assert len(self.told) < self._ends_with, "nobody answers, and the process hangs"
        self.told.append(result)
        if len(self.told) == self._ends_with:
            raise SystemExit(0)


@pytest.mark.parametrize("ends_with", [1, 2])
def test_once_ray_has_ended_a_process_its_trials_save_and_report_no_more(
    ends_with: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an epoch, and with the end of the first of three."""
    fake = FakeTune(monkeypatch, ends_with)
    asked: list[Any] = []

    def run(payloads: Any, on_report: Any, on_end: Any, stop: Any) -> None:
        asked.append(on_report("a", {"epoch": 1}))
        on_end("a", {"state": "stopped"})
        asked.append(stop())
        asked.append(on_report("b", {"epoch": 1}))
        for name in ("b", "c"):
            on_end(name, {"state": "stopped", "reason": stop()})

    make_trainable(run, "nobody")
    with pytest.raises(SystemExit):
        fake.trial({"payloads": json.dumps([{"node": name} for name in "abc"])})
    assert len(fake.told) == ends_with
    assert asked[0] is (ends_with == 1)
    assert asked[1], "the others have to be told that they are to save"
    assert asked[2] is True
