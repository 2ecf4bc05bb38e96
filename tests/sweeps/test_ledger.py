"""Rows of waiting, skipped, dead and reused trials, on the memory twin of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedenc.data.classes import VOC20
from sharedenc.errors import TrackingError
from sharedenc.tracking import MemoryTracker
from sweeps.graph import Node
from sweeps.ledger import Ledger, exit_code, status
from sweeps.order import Machine
from sweeps.resources import GIB
from sweeps.state import Row, SweepState
from tests.sweeps.conftest import MakeNodes

SWAP, SOURCE = "resnet18/swap-frozen/seg", "resnet18/baseline/det"


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[MemoryTracker]:
    tracker = MemoryTracker(tmp_path)
    yield tracker
    tracker.close()


def open_sweep(tracker: MemoryTracker, nodes: list[Node]) -> tuple[Ledger, SweepState]:
    ledger = Ledger(tracker=tracker, study="s", data="d", digest="0" * 64, classes=VOC20)
    ledger.open({"kind": "full-grid"}, "sharedenc sweep")

    def listen(event: str, row: Row) -> None:
        if event == "start":
            ledger.started(row)
        if event == "end":
            ledger.ended(row)

    machines = [Machine(cpus=1, memory=64 * GIB)]
    state = SweepState(nodes, machines, reused=ledger.reused(nodes), listener=listen)
    ledger.create(state.rows)
    return ledger, state


def tags(tracker: MemoryTracker, name: str) -> dict[str, str]:
    (record,) = (run for run in tracker.runs("s") if run.name == name)
    return record.tags


def test_every_trial_has_a_row_before_anything_runs(
    tracker: MemoryTracker, make_nodes: MakeNodes
) -> None:
    open_sweep(tracker, make_nodes())
    trials = [run for run in tracker.runs("s") if run.tags["sharedenc.kind"] == "trial"]
    assert len(trials) == 44
    assert {run.tags["sharedenc.state"] for run in trials} == {"waiting"}
    assert {run.status for run in trials} == {"SCHEDULED"}


def test_what_no_worker_can_write_is_written(tracker: MemoryTracker, make_nodes: MakeNodes) -> None:
    _, state = open_sweep(tracker, make_nodes(only=(SWAP,)))
    row = state.next()
    assert row is not None
    assert tags(tracker, SOURCE)["sharedenc.state"] == "running"
    dead = {"state": "failed", "kind": "machine", "reason": "died", "traceback": "x" * 9000}
    state.end(SOURCE, dead)
    assert tags(tracker, SOURCE)["sharedenc.state"] == "failed"
    assert tags(tracker, SOURCE)["sharedenc.failure_kind"] == "machine"
    assert tags(tracker, SOURCE)["sharedenc.traceback"] == "x" * 4000
    assert tags(tracker, SWAP)["sharedenc.state"] == "skipped"
    assert tags(tracker, SWAP)["sharedenc.reason"] == f"needs {SOURCE}, which failed"
    assert status(tracker, "s")["exit_code"] == 1


def test_the_next_invocation_keeps_what_is_done_and_takes_up_the_rest(
    tracker: MemoryTracker, make_nodes: MakeNodes
) -> None:
    nodes = make_nodes(only=(SWAP,))
    _, state = open_sweep(tracker, nodes)
    state.next()
    # The worker is who says `done`.
    run = tracker.resume(state.rows[SOURCE].run_id)
    run.metrics({"score": 0.25}, step=1)
    run.end("done")
    state.end(SOURCE, {"state": "done"})
    state.next()
    state.interrupt("stopped by Ctrl-C")
    assert tags(tracker, SWAP)["sharedenc.state"] == "stopped"

    _, again = open_sweep(tracker, nodes)
    assert again.rows[SOURCE].state == "done"
    assert again.rows[SOURCE].score == 0.25
    assert again.rows[SWAP].state == "waiting"
    assert tags(tracker, SWAP)["sharedenc.state"] == "waiting"
    assert [name for name in again.rows] == [name for name in state.rows]
    assert len(tracker.runs("s")) == 3
    row = again.next()
    assert row is not None
    assert (row.node.id, row.attempts) == (SWAP, 2)
    assert row.run_id == state.rows[SWAP].run_id


def test_a_search_trial_that_was_cut_stays_cut(
    tracker: MemoryTracker, make_nodes: MakeNodes
) -> None:
    nodes = make_nodes(only=("resnet18/dual",), search_cell="resnet18/dual", search_epochs=4)
    ledger, state = open_sweep(tracker, nodes)
    cut = next(row for name, row in state.rows.items() if "lr=" in name)
    cut.state, cut.reason = "stopped", "cut at epoch 1: 1 of 2 trials had a better score"
    ledger.ended(cut)
    _, again = open_sweep(tracker, nodes)
    assert again.rows[cut.node.id].state == "stopped"
    assert again.rows[cut.node.id].reason == cut.reason


def test_exit_codes() -> None:
    assert exit_code(["done", "done"], ["done", "stopped"]) == 0
    assert exit_code(["done", "skipped"]) == 1
    assert exit_code(["done"], ["failed"]) == 1
    assert exit_code(["done", "waiting"]) == 1


def test_an_unknown_study_is_told(tracker: MemoryTracker) -> None:
    tracker.study("first", {})
    tracker.study("second", {})
    told = "no study 'frist'; it has: first, second. Did you mean 'first'"
    with pytest.raises(TrackingError, match=told):
        status(tracker, "frist")
