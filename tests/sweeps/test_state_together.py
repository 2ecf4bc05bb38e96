"""Trials of one frozen encoder that start together: each is still a row with an end of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sharedenc.spec import Trial
from sweeps.events import EventLog, read_events
from sweeps.faults import Rules
from sweeps.fusion import Part
from sweeps.graph import Facts, Node, Resolver, expand
from sweeps.groups import Groups
from sweeps.mates import Mates, likely_keys
from sweeps.order import Demand, Machine
from sweeps.replay import replay
from sweeps.resources import GIB, MEMBER_BYTES
from sweeps.state import Row, Settled, SweepState
from sweeps.study import Study
from tests.contracts.launcher import searches
from tests.sweeps.conftest import MakeNodes
from tests.sweeps.test_state import DONE, ONE, Clock, failed, preempted, states

DET, SEG = "resnet18/share-frozen/det", "resnet18/share-frozen/seg"
RATES = [f"{SEG} lr={number}" for number in range(3)]


@pytest.fixture
def nodes(make_nodes: MakeNodes) -> list[Node]:
    """Two cells and three rates of one encoder that is frozen."""
    finals = make_nodes(only=("resnet18/share-frozen/*",))
    seg = next(node for node in finals if node.id == SEG)
    return [*finals, *searches(seg, count=3, rungs=(1,), epochs=3)]


def sweep(nodes: list[Node], machine: Machine = ONE, **more: Any) -> SweepState:
    return SweepState(nodes, [machine], mates=Mates(), **more)


def start(state: SweepState) -> list[str]:
    """Start what is most urgent; who started with it, itself among them."""
    row = state.next()
    return [] if row is None else list(state.group(row.node.id).members)


def test_all_of_an_encoder_start_together_where_there_is_one_slot(nodes: list[Node]) -> None:
    events: list[tuple[str, str]] = []
    state = sweep(nodes, listener=lambda event, row: events.append((event, row.node.id)))
    members = start(state)
    assert sorted(members) == sorted(node.id for node in nodes)
    assert state.next() is None
    assert [row.node.id for row in state.running] == members
    assert {row.together for row in state.running} == {tuple(members)}
    assert events == [("start", name) for name in members]
    for name in members:
        assert state.runs_with_others(name) == (name != members[-1])
        state.end(name, DONE)
    assert state.finished
    assert {row.attempts for row in state.rows.values()} == {1}


def test_nobody_joins_who_finds_a_slot_and_off_is_off(nodes: list[Node]) -> None:
    state = sweep(nodes, Machine(cpus=5, memory=64 * GIB))
    assert [start(state) for _ in nodes] == [[node.id] for node in nodes_by_urgency(state)]
    alone = SweepState(nodes, [ONE])
    row = alone.next()
    assert row is not None
    assert (alone.group(row.node.id).members, row.together) == ((row.node.id,), ())


def nodes_by_urgency(state: SweepState) -> list[Node]:
    return [row.node for row in state.running]


def test_trials_at_once_count_groups(nodes: list[Node]) -> None:
    # Four cores, but one group at a time: so the others have no slot of their own.
    state = sweep(nodes, Machine(cpus=4, memory=64 * GIB), rules=Rules(max_concurrent=1))
    assert len(start(state)) == 5
    assert len(state.wanted) == 1
    state = sweep(nodes, Machine(cpus=4, memory=64 * GIB), rules=Rules(max_concurrent=2))
    first, second = start(state), start(state)
    assert sorted(map(len, (first, second))) == [2, 3]
    assert start(state) == []


def test_what_trains_its_encoder_or_reads_another_one_trains_apart(make_nodes: MakeNodes) -> None:
    state = sweep(make_nodes(backbones=("resnet18",)))
    found: list[list[str]] = []
    while not state.finished:
        found.append(start(state))
        for name in found[-1]:
            state.end(name, DONE)
    assert [sorted(group) for group in found if len(group) > 1] == [[DET, SEG]]
    assert sum(map(len, found)) == 11


def test_a_group_is_one_process_to_the_budget(nodes: list[Node]) -> None:
    clock = Clock()
    gpu = [replace(n, demand=Demand(cpus=1, gpus=1)) for n in nodes]
    state = sweep(gpu, Machine(cpus=2, gpus=1, memory=8 * GIB), clock=clock)
    members = start(state)
    assert len(members) == 5
    clock.now += 1800
    assert state.gpu_hours == pytest.approx(0.5)
    for name in members[:4]:
        state.end(name, DONE)
    clock.now += 1800
    assert state.gpu_hours == pytest.approx(1.0)
    state.end(members[4], DONE)
    clock.now += 1800
    assert state.gpu_hours == pytest.approx(1.0)


def test_memory_is_there_for_every_member_and_taken_from_nobody(nodes: list[Node]) -> None:
    nodes = [replace(node, demand=Demand(cpus=1, memory=GIB)) for node in nodes]

    def first_group(machine: Machine) -> tuple[int, int]:
        state = sweep(nodes, machine)
        members = start(state)
        return len(members), state.group(members[0]).demand.memory

    assert first_group(Machine(cpus=1, memory=2 * GIB)) == (5, GIB + 4 * MEMBER_BYTES)
    short = GIB + 3 * MEMBER_BYTES - 1
    assert first_group(Machine(cpus=1, memory=short)) == (3, GIB + 2 * MEMBER_BYTES)
    # The second slot's trial keeps its memory.
    assert first_group(Machine(cpus=2, memory=2 * GIB)) == (1, GIB)
    narrow = [replace(node, width=2) for node in nodes]
    assert len(start(sweep(narrow, Machine(cpus=1, memory=8 * GIB)))) == 2


# A cluster that can grow.


def growing(nodes: list[Node], clock: Clock, **more: Any) -> SweepState:
    equal = [replace(node, work=node.work if node.work > 1e4 else 3600.0) for node in nodes]
    rules = Rules(machine_wait_s=900.0, **more)
    return sweep(equal, machines(1)[0], elastic=True, rules=rules, clock=clock)


def machines(count: int) -> list[Machine]:
    return [Machine(cpus=1, memory=8 * GIB, id=f"m{number}") for number in range(count)]


def test_machines_that_can_come_are_asked_for_before_trials_share_one(nodes: list[Node]) -> None:
    clock = Clock()
    state = growing(nodes, clock)
    assert len(start(state)) == 1
    assert len(state.wanted) == 5
    clock.now += 300
    state.set_machines(machines(3))
    assert [len(start(state)) for _ in range(2)] == [1, 1]
    clock.now += 600  # of which the last machines are 600 old: others are still expected
    state.end(state.running[0].node.id, DONE)
    assert len(start(state)) == 1
    assert len(state.wanted) == 4


def test_machines_that_do_not_come_are_not_waited_for(nodes: list[Node]) -> None:
    clock = Clock()
    state = growing(nodes, clock)
    (first,) = start(state)
    clock.now += 900
    state.end(first, DONE)
    assert len(start(state)) == 4


def test_what_is_wanted_later_is_waited_for_again(nodes: list[Node]) -> None:
    clock = Clock()
    state = growing(nodes, clock)
    state.withhold({node.id: "another sweep trains it" for node in nodes[1:]})
    assert start(state) == [nodes[0].id]
    clock.now += 3600  # one machine for one trial
    state.withhold({})
    state.end(nodes[0].id, DONE)
    assert len(start(state)) == 1


def test_no_more_come_than_may_run_at_once(nodes: list[Node]) -> None:
    state = growing(nodes, Clock(), max_concurrent=1)
    assert len(start(state)) == 5


def test_trials_that_hold_nothing_up_share_a_machine_all_the_same(
    nodes: list[Node], make_nodes: MakeNodes
) -> None:
    (long,) = make_nodes(only=("densenet121/baseline/det",))
    state = growing([replace(long, work=1e5), *nodes], Clock())
    assert start(state) == [long.id]
    state.set_machines(machines(2))
    assert len(start(state)) == 5


# Ends.


def test_a_cut_member_leaves_and_the_others_go_on(nodes: list[Node]) -> None:
    state = sweep(nodes)
    members = start(state)
    cut = []
    for number, name in enumerate(members):
        report = {"epoch": 1, "epochs": 2, "score": 0.5 - 0.1 * number, "seconds": 1.0}
        if state.epoch(name, report):
            cut.append(name)
    assert cut
    assert set(cut) < set(RATES)
    for name in cut:
        state.end(name, {"state": "stopped"})
        assert state.rows[name].state == "stopped"
        assert state.rows[name].reason.startswith("cut at epoch 1: ")
    assert {row.node.id for row in state.running} == set(members) - set(cut)
    assert state.next() is None  # its place is not free before all have ended
    finish(state)
    assert {state.rows[name].state for name in members if name not in cut} == {"done"}


def finish(state: SweepState) -> list[list[str]]:
    """Run what is left to a good end; who started together."""
    groups = []
    while not state.finished:
        groups += [group for group in [start(state)] if group]
        for row in state.running:
            state.end(row.node.id, DONE)
    return groups


def test_a_member_that_fails_is_its_own_failure(nodes: list[Node]) -> None:
    state = sweep(nodes)
    start(state)
    state.end(DET, failed("code", error="NonFiniteLossError"))
    assert state.rows[DET].state == "failed"
    assert len(state.running) == 4
    assert finish(state) == []
    assert sum(state == "done" for state in states(state).values()) == 4


@pytest.mark.parametrize(("kind", "delay"), [("machine", 5.0), ("oom", 0.0)])
def test_after_a_fault_of_all_each_is_tried_alone(
    nodes: list[Node], kind: str, delay: float
) -> None:
    clock = Clock()
    state = sweep(nodes, clock=clock)
    members = start(state)
    state.end(members[0], DONE)
    for name in members[1:]:
        state.end(name, failed(kind))
    assert {state.rows[name].not_before for name in members[1:]} == {clock.now + delay}
    clock.now += delay
    demand = state.demand(members[1])
    groups = finish(state)
    assert sorted(groups) == sorted([name] for name in members[1:])
    assert {row.state for row in state.rows.values()} == {"done"}
    # Nobody knows yet that one of them alone needs more than a slot.
    assert state.demand(members[1]) == demand


@pytest.mark.parametrize("order", [["lead", "mate"], ["mate", "lead"]])
def test_a_place_is_free_when_those_who_took_it_have_left(order: list[str]) -> None:
    groups = Groups([Machine(cpus=1, id=name) for name in ("m1", "m2")])
    lead, mate = Part(id="lead", work=1.0), Part(id="mate", work=1.0)
    groups.start([lead, mate], 0, Demand(cpus=1), 0.0)
    groups.leave("lead", 1.0)
    groups.start([lead], 1, Demand(cpus=1), 2.0)  # tried again while its mate goes on
    taken = {"mate": "m1", "lead": "m2"}
    for name in order:
        assert groups[name].machine.id == taken.pop(name)
        groups.leave(name, 3.0)
        free = {machine.id: machine.cpus for machine in groups.room.free}
        assert free == {name: float(name not in taken.values()) for name in ("m1", "m2")}
    assert groups.device_s(9.0) == 3.0 + 1.0


def test_out_of_memory_alone_is_still_tried_with_a_whole_machine(nodes: list[Node]) -> None:
    state = sweep(nodes[:2], Machine(cpus=1, memory=64 * GIB))
    assert len(start(state)) == 2
    for name in (DET, SEG):
        state.end(name, failed("oom"))
    (name,) = start(state)
    state.end(name, failed("oom"))
    assert state.demand(name).memory == 64 * GIB
    assert start(state) == [name]
    state.end(name, failed("oom"))
    assert state.rows[name].state == "failed"


def test_a_preemption_is_no_reason_to_part(nodes: list[Node]) -> None:
    clock = Clock()
    state = sweep(nodes, clock=clock)
    members = start(state)
    for name in members:
        state.end(name, preempted())
    assert {row.attempts for row in state.rows.values()} == {0}
    clock.now += 10
    assert sorted(start(state)) == sorted(members)


def test_a_drain_stops_them_all_and_leaves_none_half_started(nodes: list[Node]) -> None:
    state = sweep(nodes)
    start(state)
    state.drain("stopped by Ctrl-C")
    state.end(DET, DONE)
    state.interrupt("stopped by Ctrl-C")
    ends = states(state)
    assert ends.pop(DET) == "done"
    assert set(ends.values()) == {"stopped"}
    assert state.finished


def test_one_that_is_settled_or_trained_by_a_twin_does_not_start(nodes: list[Node]) -> None:
    twin = replace(nodes[0], id="twin")

    def known(row: Row) -> Settled | None:
        if row.node.id != SEG:
            return None
        return Settled(
            state="done", reason="", score=0.5, run_id="r", reused="study", attempts=1, history=[]
        )

    late = {SEG: next(node.trial for node in nodes if node.id == SEG)}

    def resolve(node: Node, rows: Any) -> Trial:
        trial = node.trial or late[node.id]
        assert trial is not None
        return trial

    hidden = [replace(n, trial=None) if n.id == SEG else n for n in nodes]
    state = sweep([*hidden, twin], settled=known, resolve=resolve)
    members = start(state)
    assert SEG not in members
    assert len({"twin", nodes[0].id} & set(members)) == 1
    for name in members:
        state.end(name, DONE)
    assert state.rows[SEG].reused == "study"
    assert start(state) == [({"twin", nodes[0].id} - set(members)).pop()]


# What is known of them.


class Heard:
    """Estimates that note what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def epoch(self, row: Row, seconds: float) -> None:
        self.told.append((row.node.id, seconds))

    def finished(self, name: str, epochs: int, *, by_itself: bool = True) -> None: ...

    def works(self) -> dict[str, float]:
        return {}


def test_estimates_are_told_what_an_epoch_takes_alone(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sweeps.fusion").fusion.SHARED, "resnet18", 0.75)
    heard = Heard()
    state = sweep(nodes[:2], estimates=heard)
    start(state)
    report = {"epoch": 1, "epochs": 2, "score": 0.5, "members": 2}
    state.epoch(DET, {**report, "seconds": 2.5})  # 1 of its own and half of 3
    assert heard.told == [(DET, pytest.approx(4.0))]
    assert state.rows[DET].seconds_per_epoch == 2.5
    state.epoch(SEG, {**report, "seconds": 3.5})
    walls = {name: state.rows[name].epoch_wall_s for name in (DET, SEG)}
    assert walls == {DET: 6.0, SEG: 6.0}
    state.end(DET, DONE)
    assert state.rows[SEG].epoch_wall_s == 3.5


def test_a_recorded_sweep_with_groups_is_decided_the_same_way(
    nodes: list[Node], make_nodes: MakeNodes, tmp_path: Path
) -> None:
    clock = Clock()
    nodes = [*nodes, *make_nodes(only=("densenet121/swap-frozen/*",))]
    log = EventLog(tmp_path / "events.jsonl", clock=clock)
    machine = Machine(cpus=2, memory=64 * GIB)
    state = SweepState(nodes, [machine], mates=Mates(), log=log, clock=clock)
    faulty = True
    while not state.finished:
        while start(state):
            pass
        clock.now += 10
        for row in state.running:
            name = row.node.id
            state.epoch(name, {"epoch": 1, "epochs": 2, "score": 0.5, "seconds": 3.0})
            state.end(name, failed("machine") if faulty and row.together else DONE)
        faulty = False
    log.close()
    events = read_events(log.path)
    groups = [event["together"] for event in events if event.get("together")]
    assert groups
    found = replay(nodes, events, mates=Mates())
    assert found.difference is None
    assert found.starts == found.same == sum(event["event"] == "start" for event in events)
    other = replay(nodes, events)
    assert other.difference is not None
    assert " + " in other.difference.recorded[0]
    assert " + " not in other.difference.chosen[0]


def test_a_recorded_sweep_of_a_growing_cluster_is_decided_the_same_way(
    nodes: list[Node], tmp_path: Path
) -> None:
    clock = Clock()
    nodes = [replace(node, work=3600.0) for node in nodes]
    log = EventLog(tmp_path / "events.jsonl", clock=clock)
    state = sweep(nodes, machines(1)[0], elastic=True, log=log, clock=clock)
    for seconds in (600, 600, 600):
        start(state)
        clock.now += seconds
        for row in state.running:
            state.end(row.node.id, DONE)
    assert state.finished
    log.close()
    events = read_events(log.path)
    assert [len(e.get("together", "1")) for e in events if e["event"] == "start"] == [1, 1, 3, 3, 3]
    assert replay(nodes, events, mates=Mates()).agrees


# Searches.


def searched(facts: Facts, mates: bool) -> tuple[dict[int, float], list[list[str]]]:
    """Rates that a search of one frozen cell tries on one slot, and who started together."""
    study = Study(
        kind="full-grid",
        only=(SEG,),
        lr_search="cell",
        search_trials=8,
        search_rungs=(),
        weights="none",
    )
    nodes = expand(study, facts)
    resolver = Resolver(nodes, study, facts)
    state = SweepState(
        nodes,
        [Machine(cpus=1, memory=2**60)],
        resolve=resolver.trial,
        mates=Mates(resolver) if mates else None,
    )
    groups = []
    while not state.finished:
        groups += [group for group in [start(state)] if group]
        for row in state.running:
            assert row.trial is not None
            score = 1 - abs(row.trial.lr - 1e-3)
            state.end(row.node.id, {"state": "done", "result": {"score": score}})
    found = {
        row.node.number: row.trial.lr
        for row in state.rows.values()
        if row.trial is not None and row.node.number is not None
    }
    return found, groups


def test_one_slot_proposes_the_same_rates_whoever_trains_together(facts: Facts) -> None:
    alone, one_by_one = searched(facts, mates=False)
    together, groups = searched(facts, mates=True)
    assert together == alone
    assert len(alone) == 8
    assert {len(group) for group in one_by_one} == {1}
    # The first four are spread whatever becomes of them, each later one follows from results.
    assert [len(group) for group in groups] == [4, 1, 1, 1, 1, 1]


def test_rates_that_are_given_all_start_together(make_nodes: MakeNodes) -> None:
    rates = (1e-4, 2e-4, 4e-4, 8e-4, 1e-3, 2e-3)
    nodes = make_nodes(only=(SEG,), search_cell=SEG, search_lrs=rates)
    assert len(start(sweep(nodes))) == 6


def test_likely_keys_are_those_of_the_trials_that_start(facts: Facts) -> None:
    study = Study(kind="full-grid", backbones=("resnet18",), lr={"*": 1e-3}, weights="none")
    nodes = expand(study, facts)
    keys = likely_keys(nodes, facts)
    assert keys[DET] == keys[SEG]
    assert len(keys) == 4
    assert len({keys[name] for name in keys if "swap" in name}) == 2
    resolver = Resolver(nodes, study, facts)
    rows = {node.id: Row(node=node, trial=node.trial) for node in nodes}
    exact = Mates(resolver)
    by_id = {node.id: node for node in nodes}
    assert exact.key(by_id[DET], rows) == exact.key(by_id[SEG], rows) == keys[DET]
    assert exact.key(by_id["resnet18/dual"], rows) is None
