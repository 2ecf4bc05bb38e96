"""Rows of waiting, skipped, dead and reused trials, on the memory twin of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedenc.errors import TrackingError
from sharedenc.tracking import MemoryTracker
from sweeps.graph import Node
from sweeps.ledger import exit_code, status
from sweeps.standing import row_tags, rows_of
from tests.sweeps.conftest import MakeNodes
from tests.sweeps.ledger_help import changed, open_sweep, record, run_all, tags, train

SWAP, SOURCE = "resnet18/swap-frozen/seg", "resnet18/baseline/det"


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[MemoryTracker]:
    tracker = MemoryTracker(tmp_path / "store")
    yield tracker
    tracker.close()


@pytest.fixture
def pair(make_nodes: MakeNodes) -> list[Node]:
    """A swap and the baseline that it needs."""
    return make_nodes(only=(SWAP,))


def test_every_trial_has_a_row_before_anything_runs(
    tracker: MemoryTracker, make_nodes: MakeNodes
) -> None:
    open_sweep(tracker, make_nodes())
    trials = [run for run in tracker.runs("s") if run.tags["sharedenc.kind"] == "trial"]
    assert len(trials) == 44
    assert {run.tags["sharedenc.state"] for run in trials} == {"waiting"}
    assert {run.status for run in trials} == {"SCHEDULED"}


def test_what_no_worker_can_write_is_written(tracker: MemoryTracker, pair: list[Node]) -> None:
    _, state = open_sweep(tracker, pair)
    assert state.next() is not None
    assert tags(tracker, SOURCE)["sharedenc.state"] == "running"
    dead = {"state": "failed", "kind": "data", "reason": "died", "traceback": "x" * 9000}
    state.end(SOURCE, dead)
    assert tags(tracker, SOURCE)["sharedenc.state"] == "failed"
    assert tags(tracker, SOURCE)["sharedenc.failure_kind"] == "data"
    assert tags(tracker, SOURCE)["sharedenc.traceback"] == "x" * 4000
    assert tags(tracker, SWAP)["sharedenc.state"] == "skipped"
    assert SOURCE in tags(tracker, SWAP)["sharedenc.reason"]
    assert status(tracker, "s")["exit_code"] == 1


def test_a_trial_that_waits_once_more_says_so(tracker: MemoryTracker, pair: list[Node]) -> None:
    _, state = open_sweep(tracker, pair)
    state.next()
    state.end(SOURCE, {"state": "failed", "kind": "machine", "reason": "no space left"})
    found = tags(tracker, SOURCE)
    assert (found["sharedenc.state"], found["sharedenc.failure_kind"]) == ("waiting", "machine")
    assert "no space left" in found["sharedenc.reason"]


def test_the_next_invocation_keeps_what_is_done_and_takes_up_the_rest(
    tracker: MemoryTracker, pair: list[Node], tmp_path: Path
) -> None:
    _, state = open_sweep(tracker, pair)
    row = state.next()
    assert row is not None
    train(tracker, state, row, tmp_path, score=0.25)
    assert state.next() is not None
    state.drain("stopped by Ctrl-C")
    state.end(SWAP, {"state": "stopped"})
    assert tags(tracker, SWAP)["sharedenc.state"] == "stopped"

    _, again = open_sweep(tracker, pair)
    assert (again.rows[SOURCE].state, again.rows[SOURCE].reused) == ("done", "study")
    assert again.rows[SOURCE].score == 0.25
    assert again.rows[SWAP].state == "waiting"
    assert tags(tracker, SWAP)["sharedenc.state"] == "waiting"
    assert len(tracker.runs("s")) == 3
    row = again.next()
    assert row is not None
    assert (row.node.id, row.attempts) == (SWAP, 2)
    assert row.run_id == state.rows[SWAP].run_id


def test_running_again_trains_nothing(
    tracker: MemoryTracker, make_nodes: MakeNodes, tmp_path: Path
) -> None:
    _, state = open_sweep(tracker, make_nodes())
    assert len(run_all(tracker, state, tmp_path)) == 44
    before = tracker.runs("s")
    _, again = open_sweep(tracker, make_nodes())
    assert run_all(tracker, again, tmp_path) == []
    assert {row.state for row in again.rows.values()} == {"done"}
    assert [run.run_id for run in tracker.runs("s")] == [run.run_id for run in before]


def test_a_search_trial_that_was_cut_stays_cut(
    tracker: MemoryTracker, make_nodes: MakeNodes, tmp_path: Path
) -> None:
    def nodes() -> list[Node]:
        made = make_nodes(only=("resnet18/dual",), search_cell="resnet18/dual", search_epochs=4)
        return [node for node in made if node.search is not None]

    _, state = open_sweep(tracker, nodes())
    rows = list(state.rows.values())
    cut = state.next()
    assert cut is not None
    tracker.resume(cut.run_id).metrics({"score": 0.1, "lr": 1e-3}, 1)
    cut.reason = "cut at epoch 1: 1 of 2 trials had a better score"
    state.end(cut.node.id, {"state": "stopped"})
    _, again = open_sweep(tracker, nodes())
    assert len(again.rows) == len(rows)
    again.next()
    row = again.rows[cut.node.id]
    assert (row.state, row.reason, row.reused) == ("stopped", cut.reason, "study")
    assert row.history == [(1, 0.1)]
    assert tags(tracker, cut.node.id)["sharedenc.state"] == "stopped"


def test_a_changed_recipe_waits_in_the_row_that_has_not_been_trained(
    tracker: MemoryTracker, make_nodes: MakeNodes, tmp_path: Path
) -> None:
    nodes = make_nodes(only=("resnet18/dual", "resnet18/baseline/seg"))
    _, state = open_sweep(tracker, nodes)
    row = state.next()
    assert row is not None
    train(tracker, state, row, tmp_path)
    trained, blank = row.node.id, ({n.id for n in nodes} - {row.node.id}).pop()
    _, again = open_sweep(tracker, changed(nodes, epochs=3))
    assert again.rows[blank].run_id == state.rows[blank].run_id
    assert again.rows[trained].run_id != row.run_id
    found = tags(tracker, trained)
    assert found["sharedenc.why_not"] == "recipe.epochs 2 -> 3"
    assert tags(tracker, blank)["sharedenc.why_not"] == "no run of this cell yet"
    # The table is of what was asked for last; the older result is still there.
    cells = status(tracker, "s")["cells"]
    assert [cell["state"] for cell in cells] == ["waiting", "waiting"]
    assert tracker.record(row.run_id).tags["sharedenc.state"] == "done"


def test_status_says_what_each_cell_waits_for_and_why(
    tracker: MemoryTracker, make_nodes: MakeNodes, tmp_path: Path
) -> None:
    nodes = make_nodes(only=(SWAP, "resnet18/dual"))
    _, state = open_sweep(tracker, nodes)

    def cells() -> dict[str, dict[str, object]]:
        return {cell["cell"]: cell for cell in status(tracker, "s")["cells"]}

    assert cells()[SWAP]["waits_for"] == [{"name": SOURCE, "state": "waiting"}]
    assert cells()[SWAP]["why"] == f"needs {SOURCE} (waiting)"
    assert cells()["resnet18/dual"]["why"] == "waits for the same command to be run again"
    row = state.next()
    assert row is not None
    assert row.node.id == SOURCE
    assert cells()[SWAP]["why"] == f"needs {SOURCE} (running)"
    train(tracker, state, row, tmp_path)
    assert cells()[SWAP]["waits_for"] == []
    assert cells()[SOURCE] | {"why": "", "why_not": ""} == {
        "cell": SOURCE,
        "name": SOURCE,
        "stage": "baseline",
        "seed": 0,
        "lr": 0.0002,
        "state": "done",
        "reason": "",
        "why": "",
        "waits_for": [],
        "together": [],
        "kind": "",
        "key": row.trial.key if row.trial else "",
        "run_id": row.run_id,
        "attempts": 1,
        "score": 0.5,
        "reused": "",
        "why_not": "",
    }


def test_a_shorter_list_of_rows_leaves_nothing_of_a_longer_one(tracker: MemoryTracker) -> None:
    parent = tracker.study("s", {})
    ids = [tracker.child("s", parent, f"{n}", {}).run_id for n in range(400)]
    for count in (400, 160, 400, 3):
        tracker.tag(parent, row_tags(ids[:count][::-1]))
        found = rows_of(tracker.record(parent), tracker.runs("s"))
        assert [record.run_id for record in found] == ids[:count][::-1]


def test_a_measured_trial_says_what_it_took(
    tracker: MemoryTracker, pair: list[Node], tmp_path: Path
) -> None:
    ledger, state = open_sweep(tracker, pair)
    row = state.next()
    assert row is not None
    train(tracker, state, row, tmp_path)
    (found,) = ledger.measured()
    assert (found.cell.name, found.epochs, found.seconds) == (SOURCE, 2, 8.0)
    assert (found.seconds_per_epoch, found.peak_memory_bytes) == (4.0, 1_000_000)
    assert (found.image_px, found.batch_size, found.numerics["device"]) == (64, 2, "cpu")
    # Another study's plugin has a backbone that nobody knows here.
    tracker.tag(row.run_id, {"sharedenc.cell": "somebodys_net/dual"})
    assert ledger.measured() == []


@pytest.mark.parametrize(
    ("together", "metrics", "alone_s", "peak"),
    [
        # Of a run of today the mean over its epochs counts, whoever was there at the start.
        (8, {"epoch_s": 30.0, "epoch_share": 0.825}, 30.0 / (0.13 + 0.87 * 0.825), 0),
        (8, {"epoch_s": 30.0}, 30.0 / (0.13 + 0.87 / 8), 0),
        # A trial that was taken up again alone: its peak is its own.
        (0, {"epoch_s": 30.0, "epoch_share": 0.5}, 30.0 / (0.13 + 0.87 * 0.5), 1_000_000),
        (0, {"epoch_s": 30.0}, 30.0, 1_000_000),
    ],
)
def test_what_trained_with_others_says_what_it_takes_alone(
    tracker: MemoryTracker,
    pair: list[Node],
    tmp_path: Path,
    together: int,
    metrics: dict[str, float],
    alone_s: float,
    peak: int,
) -> None:
    ledger, state = open_sweep(tracker, pair)
    row = state.next()
    assert row is not None
    train(tracker, state, row, tmp_path)
    others = [f"run {n}" for n in range(together)]
    tracker.tag(row.run_id, {"sharedenc.together": json.dumps(others) if others else ""})
    tracker.resume(row.run_id).metrics(metrics, 3)
    (found,) = ledger.measured()
    assert found.seconds_per_epoch == pytest.approx(alone_s)
    assert found.peak_memory_bytes == peak
    (cell,) = (c for c in status(tracker, "s")["cells"] if c["name"] == SOURCE)
    assert cell["together"] == others


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


def test_a_proposal_is_kept(tracker: MemoryTracker, make_nodes: MakeNodes, tmp_path: Path) -> None:
    nodes = make_nodes(only=("resnet18/dual",), search_cell="resnet18/dual", search_epochs=4)
    ledger, state = open_sweep(tracker, nodes)
    row = next(row for row in state.rows.values() if row.node.search and row.trial)
    assert row.node.search is not None
    assert row.node.number is not None
    assert row.trial is not None
    ledger.resolved(row)
    later, _ = open_sweep(tracker, nodes)
    found = later.proposed(row.node.search, row.node.number)
    assert found is not None
    assert (found.lr, found.scheduler) == (row.trial.lr, "plateau")
    assert later.proposed(row.node.search, 99) is None
    assert record(tracker, row.node.id).tags["sharedenc.number"] == str(row.node.number)
