"""A recorded sweep against the policy."""

from __future__ import annotations

import heapq
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sharedenc.spec import Cell, Recipe
from sweeps.estimates import Estimates
from sweeps.events import EventLog, read_events
from sweeps.faults import Rules
from sweeps.graph import Node
from sweeps.order import Machine
from sweeps.replay import replay
from sweeps.state import Row, Settled, SweepState
from tests.sweeps.conftest import MakeNodes

MACHINES = [Machine(cpus=2, memory=2**40, id="a"), Machine(cpus=1, memory=2**40, id="b")]
IMAGES = (640, 64, 64)


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def estimates(nodes: list[Node]) -> Estimates:
    return Estimates(nodes, IMAGES)


def record(
    nodes: list[Node], path: Path, *, seed: int, reused: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """A sweep with real decisions and made-up trials: faults, preemptions, epochs."""
    draw, clock = random.Random(seed), Clock()
    log = EventLog(path, clock=clock)

    def settled(row: Row) -> Settled | None:
        if row.node.id not in reused:
            return None
        return Settled(state="done", reason="", score=0.5, run_id="r", reused="study", attempts=1)

    learner = estimates(nodes)
    state = SweepState(
        nodes,
        MACHINES,
        rules=Rules(machine_attempts=3, backoff_s=20.0),
        log=log,
        clock=clock,
        settled=settled,
        estimates=learner,
        listener=learner.hear,
    )
    state.begin()
    happens: list[tuple[float, int, str, str]] = []
    number = 0
    while not state.finished:
        while (row := state.next()) is not None:
            left = clock.now + draw.uniform(5, 50)
            heapq.heappush(happens, (left, number, "epoch", row.node.id))
            outcome = draw.choices(["done", "machine", "code", "preempted"], [8, 2, 1, 1])[0]
            heapq.heappush(happens, (left + draw.uniform(5, 50), number + 1, outcome, row.node.id))
            number += 2
        if not happens:
            clock.now += 5.0  # a back-off
            continue
        clock.now, _, what, name = heapq.heappop(happens)
        if what == "epoch":
            report = {"epoch": 1, "epochs": 2, "score": draw.random(), "seconds": draw.random()}
            state.epoch(name, report)
        elif what == "preempted":
            state.end(name, {"state": "preempted", "reason": "gone"})
        elif what == "done":
            state.end(name, {"state": "done", "result": {"score": draw.random()}})
        else:
            state.end(name, {"state": "failed", "kind": what, "reason": "boom"})
    log.close()
    return read_events(path)


@pytest.mark.parametrize("seed", range(8))
def test_a_recorded_sweep_is_decided_the_same_way(
    seed: int, make_nodes: MakeNodes, tmp_path: Path
) -> None:
    nodes = make_nodes()
    events = record(nodes, tmp_path / "events.jsonl", seed=seed, reused=("resnet18/baseline/det",))
    learner = estimates(nodes)
    found = replay(
        nodes,
        events,
        rules=Rules(machine_attempts=3, backoff_s=20.0),
        estimates=learner,
        listener=learner.hear,
    )
    assert found.difference is None
    assert found.agrees
    assert found.starts == sum(e["event"] == "start" for e in events) > len(nodes) / 2


def test_what_a_latency_budget_withholds_and_skips_is_in_the_record(
    make_nodes: MakeNodes, tmp_path: Path
) -> None:
    nodes = make_nodes(backbones=("resnet18",), strategies=("baseline", "dual"))
    clock, one = Clock(), [MACHINES[1]]
    log = EventLog(tmp_path / "events.jsonl", clock=clock)
    state = SweepState(nodes, one, log=log, clock=clock)
    state.begin()
    # By itself the policy starts another trial first, and each of the two at some time.
    first = SweepState(nodes, one, clock=clock).next()
    assert first is not None
    others = [node.id for node in nodes if node.id != first.node.id]
    state.withhold({first.node.id: "the timing"})
    clock.now += 1
    started = []
    while (row := state.next()) is not None:
        started.append(row.node.id)
        clock.now += 10
        if len(started) == 1:
            state.skip(first.node.id, "too slow")
            state.withhold({})
        state.end(row.node.id, {"state": "done", "result": {"score": 0.5}})
    log.close()
    assert sorted(started) == sorted(others)
    assert state.finished
    found = replay(nodes, read_events(tmp_path / "events.jsonl"))
    assert found.difference is None
    assert found.starts == found.same == 2


def test_another_order_is_found(make_nodes: MakeNodes, tmp_path: Path) -> None:
    nodes = make_nodes()
    events = record(nodes, tmp_path / "events.jsonl", seed=0)
    starts = [i for i, event in enumerate(events) if event["event"] == "start"]
    first, second = starts[:2]
    events[first], events[second] = (
        {**events[second], "t": events[first]["t"]},
        {**events[first], "t": events[second]["t"]},
    )
    learner = estimates(nodes)
    found = replay(nodes, events, estimates=learner, listener=learner.hear)
    assert not found.agrees
    assert found.same == 0
    assert found.difference is not None
    assert found.difference.recorded[0] == events[first]["trial"]
    assert found.difference.chosen[0] == events[second]["trial"]


def test_a_start_that_was_not_possible_is_found(make_nodes: MakeNodes, tmp_path: Path) -> None:
    nodes = make_nodes()
    events = record(nodes, tmp_path / "events.jsonl", seed=0)
    small = [{**event} for event in events]
    small[0] = {**events[0], "machines": [asdict(MACHINES[1])]}
    assert small[0]["event"] == "machines"
    found = replay(nodes, small)
    assert found.difference is not None
    assert found.same <= 1


def test_estimates_hear_what_ends_by_itself() -> None:
    node = Node(
        id="a",
        stage="dual",
        cell=Cell.parse("resnet18/dual"),
        recipe=Recipe(),
        seed=0,
        trial=None,
    )
    learner = estimates([node])
    before = learner.epochs(node.cell, node.recipe)
    row = Row(node=node, state="failed", epoch=200)
    learner.hear("end", row)
    assert learner.epochs(node.cell, node.recipe) == before
    other = estimates([node])
    other.hear("end", Row(node=node, state="done", epoch=200))
    assert other.epochs(node.cell, node.recipe) > 1.2 * before
