"""What starts, what is cut, what is skipped, whatever launches it."""

from __future__ import annotations

import random

import pytest

from sweeps.order import Machine
from sweeps.resources import GIB
from sweeps.state import Row, SweepState
from tests.sweeps.conftest import MakeNodes

ROOM = Machine(cpus=4, memory=64 * GIB)
DONE = {"state": "done", "result": {"score": 0.5}}


def start_all(state: SweepState) -> list[str]:
    names = []
    while (row := state.next()) is not None:
        names.append(row.node.id)
    return names


def test_a_failed_baseline_skips_its_swaps_and_nothing_else(make_nodes: MakeNodes) -> None:
    state = SweepState(make_nodes(backbones=("resnet18",)), [Machine(cpus=1, memory=64 * GIB)])
    while not state.finished:
        (name,) = start_all(state)
        broken = name == "resnet18/baseline/seg"
        failed = {"state": "failed", "kind": "code", "reason": "boom", "traceback": "T"}
        state.end(name, failed if broken else DONE)
    ends = {name: row.state for name, row in state.rows.items()}
    swaps = {"resnet18/swap-frozen/det", "resnet18/swap-bias/det"}
    assert {n for n, s in ends.items() if s == "skipped"} == swaps
    assert {n for n, s in ends.items() if s == "failed"} == {"resnet18/baseline/seg"}
    assert sum(s == "done" for s in ends.values()) == 8
    row = state.rows["resnet18/swap-bias/det"]
    assert row.reason == "needs resnet18/baseline/seg, which failed"
    failed_row = state.rows["resnet18/baseline/seg"]
    assert (failed_row.kind, failed_row.reason, failed_row.traceback) == ("code", "boom", "T")


def test_a_swap_is_ready_as_soon_as_its_own_baseline_is_done(make_nodes: MakeNodes) -> None:
    only = ("resnet18/swap-frozen/seg", "densenet121/baseline/seg")
    state = SweepState(make_nodes(only=only), [ROOM])
    assert set(start_all(state)) == {"densenet121/baseline/seg", "resnet18/baseline/det"}
    state.end("resnet18/baseline/det", DONE)
    assert start_all(state) == ["resnet18/swap-frozen/seg"]
    assert "densenet121/baseline/seg" in {row.node.id for row in state.running}


@pytest.mark.parametrize("slots", [1, 3])
def test_never_more_trials_than_slots_and_all_end(make_nodes: MakeNodes, slots: int) -> None:
    events: list[str] = []

    def listen(event: str, row: Row) -> None:
        events.append(event)

    state = SweepState(make_nodes(), [Machine(cpus=slots, memory=64 * GIB)], listener=listen)
    rng = random.Random(0)
    while not state.finished:
        start_all(state)
        assert 1 <= len(state.running) <= slots
        state.end(rng.choice(state.running).node.id, DONE)
    assert events.count("start") == events.count("end") == 44
    assert all(row.attempts == 1 and row.score == 0.5 for row in state.rows.values())


def test_memory_limits_how_many_run_at_once(make_nodes: MakeNodes) -> None:
    from sharedenc.spec import Recipe

    nodes = make_nodes(
        only=("efficientnet_v2_s/baseline/*", "densenet121/baseline/*"),
        recipe=Recipe(epochs=1, batch_size=32),
    )
    state = SweepState(nodes, [Machine(cpus=8, memory=30 * GIB)])
    assert len(start_all(state)) == 2


def test_the_number_at_once_can_be_limited(make_nodes: MakeNodes) -> None:
    state = SweepState(make_nodes(), [ROOM], concurrent=2)
    assert len(start_all(state)) == 2


def test_brackets_cut_search_trials_and_never_final_ones(make_nodes: MakeNodes) -> None:
    cell = "resnet18/share-frozen/seg"
    nodes = make_nodes(only=(cell,), search_cell=cell, search_epochs=4)
    state = SweepState(nodes, [Machine(cpus=8, memory=64 * GIB)])
    names = start_all(state)
    search = [name for name in names if "lr=" in name]
    assert not state.epoch(search[0], 1, 0.9)
    assert state.epoch(search[1], 1, 0.1)
    assert not state.epoch(cell, 1, 0.0)
    state.end(search[1], {"state": "stopped"})
    row = state.rows[search[1]]
    assert (row.state, row.reason) == (
        "stopped",
        "cut at epoch 1: 1 of 2 trials had a better score",
    )


def test_blocked_reused_and_interrupted_rows(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(
        backbones=("resnet18",), strategies=("baseline", "swap"), freeze=("none", "frozen")
    )
    reused = {"resnet18/baseline/det": ("done", "reused")}
    state = SweepState(nodes, [ROOM], reused=reused)  # type: ignore[arg-type]
    assert start_all(state) == ["resnet18/baseline/seg", "resnet18/swap-frozen/seg"]
    state.end("resnet18/baseline/seg", DONE)
    state.interrupt("Ctrl-C")
    assert {name: row.state for name, row in state.rows.items()} == {
        "resnet18/baseline/det": "done",
        "resnet18/baseline/seg": "done",
        "resnet18/swap-frozen/seg": "stopped",
        "resnet18/swap-frozen/det": "waiting",
    }
