"""What counts as done: strict, compatible, from other studies; only with whole artifacts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sharedenc.errors import TrackingError
from sharedenc.tracking import MemoryTracker
from sweeps.graph import Node
from sweeps.ledger import status
from tests.sweeps.conftest import MakeNodes
from tests.sweeps.ledger_help import (
    T0,
    open_ledger,
    open_sweep,
    record,
    renumbered,
    run_all,
    tags,
)

SWAP, SOURCE = "resnet18/swap-frozen/seg", "resnet18/baseline/det"
BEST = "checkpoint/best.safetensors"


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[MemoryTracker]:
    tracker = MemoryTracker(tmp_path / "store")
    yield tracker
    tracker.close()


@pytest.fixture
def pair(make_nodes: MakeNodes) -> list[Node]:
    """A swap and the baseline that it needs."""
    return make_nodes(only=(SWAP,))


@pytest.fixture
def finished(tracker: MemoryTracker, pair: list[Node], tmp_path: Path) -> list[Node]:
    """The pair, trained in study `s`."""
    _, state = open_sweep(tracker, pair)
    assert run_all(tracker, state, tmp_path) == [SOURCE, SWAP]
    return pair


def stored(tracker: MemoryTracker, name: str, study: str = "s") -> Path:
    return tracker.folder / record(tracker, name, study).run_id / BEST


def test_another_study_takes_over_with_a_run_of_its_own(
    tracker: MemoryTracker, finished: list[Node], tmp_path: Path
) -> None:
    _, state = open_sweep(tracker, finished, "other")
    assert run_all(tracker, state, tmp_path) == []
    row = state.rows[SOURCE]
    assert (row.state, row.reused, row.score) == ("done", "other study s", 0.5)
    there, here = record(tracker, SOURCE), record(tracker, SOURCE, "other")
    assert here.run_id == row.run_id != there.run_id
    assert (here.params, here.metrics, here.status) == (there.params, there.metrics, "FINISHED")
    assert tracker.points(here.run_id, "val/loss") == tracker.points(there.run_id, "val/loss")
    assert [p.at_ms for p in tracker.points(here.run_id, "val/loss")] == [T0 + 1, T0 + 2]
    assert here.tags["sharedenc.reused_from"] == there.run_id
    assert here.tags["sharedenc.study"] == "other"
    assert here.tags["sharedenc.key"] == there.tags["sharedenc.key"]
    got = tracker.download(here.run_id, BEST, tmp_path / "got")
    assert got.read_bytes() == stored(tracker, SOURCE).read_bytes()
    assert tracker.files(here.run_id) == {}
    assert status(tracker, "other")["exit_code"] == 0
    # A third study refers to the run that has the files, and the second needs nothing more.
    _, third = open_sweep(tracker, finished, "third")
    assert (
        record(tracker, SWAP, "third").tags["sharedenc.reused_from"] == record(tracker, SWAP).run_id
    )
    assert third.next() is None
    before = len(tracker.runs("other"))
    _, again = open_sweep(tracker, finished, "other")
    assert again.rows[SOURCE].reused == "study"
    assert len(tracker.runs("other")) == before


def test_a_plan_writes_nothing(tracker: MemoryTracker, finished: list[Node]) -> None:
    ledger = open_ledger(tracker)
    planned = replace(ledger, study="planned", parent_id="", _records=[], _hits={})
    planned.read()
    trials = [(node.id, node.trial) for node in finished if node.trial is not None]
    found = planned.lookup(trials)
    assert {name: hit.reused for name, hit in found.items()} == dict.fromkeys(
        (SOURCE, SWAP), "other study s"
    )
    assert tracker.runs("planned") == []


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_artifact_is_no_hit(
    tracker: MemoryTracker, finished: list[Node], tmp_path: Path, damage: str
) -> None:
    path = stored(tracker, SOURCE)
    if damage == "gone":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data if damage == "changed" else data[:-4])
    _, state = open_sweep(tracker, finished)
    assert state.rows[SOURCE].state == "waiting"
    # What was trained on it is still what it was.
    assert state.rows[SWAP].state == "done"
    assert BEST in tags(tracker, SOURCE)["sharedenc.why_not"]
    assert run_all(tracker, state, tmp_path) == [SOURCE]
    _, again = open_sweep(tracker, finished)
    assert again.rows[SOURCE].state == "done"


def test_what_was_verified_is_not_read_again_unless_its_size_changes(
    tracker: MemoryTracker,
    finished: list[Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[str] = []
    download = tracker.download
    monkeypatch.setattr(
        tracker, "download", lambda run, name, to: (reads.append(name), download(run, name, to))[1]
    )
    memory = tmp_path / "memory"
    open_sweep(tracker, finished, ledger=open_ledger(tracker, folder=memory))
    assert sorted(reads) == [BEST, BEST, "result.json", "result.json"]
    reads.clear()
    _, state = open_sweep(tracker, finished, ledger=open_ledger(tracker, folder=memory))
    assert (reads, state.rows[SWAP].state) == ([], "done")
    with stored(tracker, SWAP).open("ab") as file:
        file.write(b"x")
    _, state = open_sweep(tracker, finished, ledger=open_ledger(tracker, folder=memory))
    assert (reads, state.rows[SWAP].state) == ([BEST], "waiting")
    shutil.rmtree(memory)


def test_a_run_without_digests_has_to_name_its_key(
    tracker: MemoryTracker, finished: list[Node]
) -> None:
    """Runs of version 0.1: the checkpoint's own header decides."""
    for name in (SOURCE, SWAP):
        tracker.untag(record(tracker, name).run_id, ["sharedenc.sha256"])
    other = stored(tracker, SOURCE).read_bytes()
    stored(tracker, SWAP).write_bytes(other)
    _, state = open_sweep(tracker, finished)
    assert state.rows[SOURCE].state == "done"
    assert state.rows[SWAP].state == "waiting"
    assert "does not name its key" in tags(tracker, SWAP)["sharedenc.why_not"]
    stored(tracker, SOURCE).write_bytes(other[:-8])
    _, state = open_sweep(tracker, finished)
    assert state.rows[SOURCE].state == "waiting"


def test_compatible_takes_what_another_kind_of_machine_made(
    tracker: MemoryTracker, finished: list[Node], tmp_path: Path
) -> None:
    there = renumbered(finished, device="cuda", precision="bfloat16")
    _, strict = open_sweep(tracker, there, "gpu")
    assert {row.state for row in strict.rows.values()} == {"waiting"}
    told = tags(tracker, SOURCE, "gpu")["sharedenc.why_not"]
    assert told == "numerics.device cpu -> cuda, numerics.precision float32 -> bfloat16"

    _, state = open_sweep(tracker, there, "gpu", reuse="compatible")
    assert run_all(tracker, state, tmp_path) == []
    for name in (SOURCE, SWAP):
        assert state.rows[name].reused == "other study s, compatible"
        assert "numerics.device cpu -> cuda" in state.rows[name].reason
        assert tags(tracker, name, "gpu")["sharedenc.reused"] == "other study s, compatible"
    # A strict invocation does not take it for the same.
    _, strict = open_sweep(tracker, there, "gpu")
    assert strict.rows[SOURCE].state == "waiting"
    _, state = open_sweep(tracker, there, "gpu", reuse="compatible")
    assert state.rows[SWAP].reused == "study, compatible"


def test_none_and_rerun_train_again(
    tracker: MemoryTracker, finished: list[Node], tmp_path: Path
) -> None:
    old = record(tracker, SWAP).run_id
    _, state = open_sweep(tracker, finished, rerun=[SWAP])
    assert (state.rows[SOURCE].state, state.rows[SWAP].state) == ("done", "waiting")
    assert state.rows[SWAP].run_id != old
    assert tracker.record(old).tags["sharedenc.superseded"]
    assert tags(tracker, SWAP)["sharedenc.why_not"] == "--rerun asks for it"
    # An interrupted --rerun is gone on with, whatever is done elsewhere or was before.
    open_sweep(tracker, finished, "other", rerun=[SOURCE])
    _, state = open_sweep(tracker, finished)
    assert run_all(tracker, state, tmp_path) == [SWAP]
    _, state = open_sweep(tracker, finished)
    assert state.rows[SWAP].state == "done"
    _, state = open_sweep(tracker, finished, reuse="none")
    assert run_all(tracker, state, tmp_path) == [SOURCE, SWAP]
    assert [cell["state"] for cell in status(tracker, "s")["cells"]] == ["done", "done"]


def test_a_rerun_in_another_study_is_gone_on_with(
    tracker: MemoryTracker, finished: list[Node], tmp_path: Path
) -> None:
    _, state = open_sweep(tracker, finished, "other", rerun=[SOURCE])
    assert state.rows[SOURCE].state == "waiting"
    _, state = open_sweep(tracker, finished, "other")
    assert state.rows[SOURCE].state == "waiting"
    assert run_all(tracker, state, tmp_path) == [SOURCE]


def test_a_pruned_trial_is_not_reused(tracker: MemoryTracker, finished: list[Node]) -> None:
    run = record(tracker, SWAP).run_id
    tracker.tag(run, {"sharedenc.pruned": "2026-01-01"})
    _, state = open_sweep(tracker, finished)
    assert state.rows[SWAP].state == "waiting"
    assert "pruned on 2026-01-01" in tags(tracker, SWAP)["sharedenc.why_not"]


def test_only_what_is_new_is_trained(
    tracker: MemoryTracker, make_nodes: MakeNodes, tmp_path: Path
) -> None:
    one = make_nodes(backbones=("resnet18",))
    _, state = open_sweep(tracker, one)
    assert len(run_all(tracker, state, tmp_path)) == 11
    for study in ("s", "elsewhere"):
        _, more = open_sweep(tracker, make_nodes(backbones=("resnet18", "densenet121")), study)
        ran = run_all(tracker, more, tmp_path)
        if study == "s":
            assert len(ran) == 11
            assert {name.split("/")[0] for name in ran} == {"densenet121"}
        else:
            assert ran == []
    _, seeds = open_sweep(tracker, make_nodes(backbones=("resnet18",), seeds=(0, 1)))
    ran = run_all(tracker, seeds, tmp_path)
    assert len(ran) == 11
    assert all("seed=1" in name for name in ran)


def test_a_store_that_cannot_be_read_is_no_hit(
    tracker: MemoryTracker, finished: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run_id: str, name: str, to: Path) -> Path:
        raise TrackingError("403 Forbidden")

    monkeypatch.setattr(tracker, "download", broken)
    _, state = open_sweep(tracker, finished)
    assert {row.state for row in state.rows.values()} == {"waiting"}
    assert "403 Forbidden" in tags(tracker, SOURCE)["sharedenc.why_not"]
