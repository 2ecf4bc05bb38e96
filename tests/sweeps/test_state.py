"""What starts, what is cut, what comes again and what is skipped, whatever launches it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from sharedenc.errors import SpecError
from sharedenc.spec import Recipe
from sweeps.faults import Rules
from sweeps.graph import Node
from sweeps.order import Demand, Machine
from sweeps.resources import GIB
from sweeps.state import Row, Settled, SweepState, Unresolvable
from tests.contracts.launcher import searches
from tests.sweeps.conftest import MakeNodes

ROOM = Machine(cpus=4, memory=64 * GIB)
ONE = Machine(cpus=1, memory=64 * GIB)
DONE = {"state": "done", "result": {"score": 0.5}}
DET, SEG = "resnet18/baseline/det", "resnet18/baseline/seg"
EPOCH = {"epoch": 1, "epochs": 2, "score": 0.25, "seconds": 2.0}


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def failed(kind: str, reason: str = "boom", **more: str) -> dict[str, Any]:
    return {"state": "failed", "kind": kind, "reason": reason, "traceback": "T", **more}


def preempted(reason: str = "its node goes away") -> dict[str, Any]:
    return {"state": "preempted", "reason": reason}


def start_all(state: SweepState) -> list[str]:
    names = []
    while (row := state.next()) is not None:
        names.append(row.node.id)
    return names


def finish(state: SweepState) -> None:
    """Run what is left to a good end."""
    while not state.finished:
        started = state.next()
        state.end((started or state.running[0]).node.id, DONE)


def states(state: SweepState) -> dict[str, str]:
    return {name: row.state for name, row in state.rows.items()}


@pytest.fixture
def baselines(make_nodes: MakeNodes) -> list[Node]:
    """Two baselines and the two swaps that need them."""
    return make_nodes(
        backbones=("resnet18",), strategies=("baseline", "swap"), freeze=("none", "frozen")
    )


def test_a_failed_baseline_skips_its_swaps_and_nothing_else(make_nodes: MakeNodes) -> None:
    state = SweepState(make_nodes(backbones=("resnet18",)), [ONE])
    while not state.finished:
        (name,) = start_all(state)
        state.end(name, failed("data") if name == SEG else DONE)
    ends = states(state)
    swaps = {"resnet18/swap-frozen/det", "resnet18/swap-bias/det"}
    assert {n for n, s in ends.items() if s == "skipped"} == swaps
    assert {n for n, s in ends.items() if s == "failed"} == {SEG}
    assert sum(s == "done" for s in ends.values()) == 8
    assert state.rows["resnet18/swap-bias/det"].reason == f"needs {SEG}, which failed"
    row = state.rows[SEG]
    assert (row.kind, row.reason, row.traceback, row.attempts) == ("data", "boom", "T", 1)


def test_a_swap_is_ready_as_soon_as_its_own_baseline_is_done(make_nodes: MakeNodes) -> None:
    only = ("resnet18/swap-frozen/seg", "densenet121/baseline/seg")
    state = SweepState(make_nodes(only=only), [ROOM])
    assert set(start_all(state)) == {"densenet121/baseline/seg", DET}
    state.end(DET, DONE)
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
    nodes = make_nodes(
        only=("efficientnet_v2_s/baseline/*", "densenet121/baseline/*"),
        recipe=Recipe(epochs=1, batch_size=32),
    )
    state = SweepState(nodes, [Machine(cpus=8, memory=30 * GIB)])
    assert len(start_all(state)) == 2


# Faults.


def test_a_machine_fault_is_retried_later_and_later_and_then_failed(
    baselines: list[Node],
) -> None:
    clock, events = Clock(), []
    state = SweepState(
        baselines, [ROOM], clock=clock, listener=lambda event, row: events.append(event)
    )
    start_all(state)
    state.end(DET, failed("machine", "the worker process died"))
    row = state.rows[DET]
    assert (row.state, row.attempts, row.not_before) == ("waiting", 1, 105.0)
    assert state.waiting_for(DET) == "its next attempt in 5 s, after: the worker process died"
    assert start_all(state) == []
    clock.now = 105.0
    assert start_all(state) == [DET]
    clock.now = 108.0
    state.end(DET, failed("machine", "the worker process died"))
    assert row.not_before == 118.0
    clock.now = 118.0
    assert start_all(state) == [DET]
    assert row.attempts == 3
    state.end(DET, failed("machine", "the worker process died"))
    assert (row.state, row.kind) == ("failed", "machine")
    assert row.reason == "the worker process died (attempt 3 of 3)"
    assert state.rows["resnet18/swap-frozen/seg"].state == "skipped"
    assert events == ["start", "start", "again", "start", "again", "start", "end", "end"]


def test_the_back_off_is_bounded(baselines: list[Node]) -> None:
    clock = Clock()
    rules = Rules(machine_attempts=20, backoff_s=5, backoff_max_s=300)
    state = SweepState(baselines, [ROOM], clock=clock, rules=rules)
    waits = []
    for _ in range(9):
        start_all(state)
        state.end(DET, failed("machine"))
        waits.append(state.rows[DET].not_before - clock.now)
        clock.now = state.rows[DET].not_before
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_preemption_is_never_charged_but_does_not_go_on_for_ever(baselines: list[Node]) -> None:
    clock = Clock()
    state = SweepState(baselines, [ROOM], clock=clock, rules=Rules(preemptions=3))
    row = state.rows[DET]
    for count in (1, 2, 3):
        start_all(state)
        state.epoch(DET, {**EPOCH, "epoch": count})
        state.end(DET, preempted())
        assert (row.state, row.attempts, row.preemptions) == ("waiting", 0, count)
        # It got further each time, so nothing says that the next machine goes away as well.
        assert row.not_before - clock.now == 5.0
        clock.now += 5
    start_all(state)
    state.end(DET, preempted())
    assert (row.state, row.attempts) == ("failed", 1)
    assert row.reason == "preempted 4 times, last: its node goes away"


def test_preempted_without_progress_waits_longer(baselines: list[Node]) -> None:
    clock = Clock()
    state = SweepState(baselines, [ROOM], clock=clock)
    waits = []
    for _ in range(3):
        start_all(state)
        state.end(DET, preempted())
        waits.append(state.rows[DET].not_before - clock.now)
        clock.now = state.rows[DET].not_before
    assert waits == [10, 20, 40]


def test_out_of_memory_gets_the_whole_machine_once(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(
        only=("resnet18/baseline/*",), recipe=Recipe(epochs=1, batch_size=8, image_px=320)
    )
    machine = Machine(cpus=4, memory=20 * GIB)
    state = SweepState(nodes, [machine])
    assert len(start_all(state)) == 2
    state.end(DET, failed("oom", "it ran out of memory"))
    assert start_all(state) == [], "the other baseline still has a core of that machine"
    assert state.waiting_for(DET) == "room on a machine: 4 CPU cores, 20.0 GiB"
    state.end(SEG, DONE)
    assert start_all(state) == [DET]
    assert state.demand(DET) == Demand(cpus=4, memory=20 * GIB)
    state.end(DET, failed("oom", "it ran out of memory"))
    row = state.rows[DET]
    assert (row.state, row.attempts) == ("failed", 2)
    assert row.reason == "it ran out of memory; try a batch size of 4"


def test_a_worker_that_names_a_batch_size_is_believed(baselines: list[Node]) -> None:
    state = SweepState(baselines, [ROOM])
    for _ in range(2):
        start_all(state)
        if state.running[0].node.id != DET:
            state.end(SEG, DONE)
            start_all(state)
        for row in state.running:
            if row.node.id != DET:
                state.end(row.node.id, DONE)
        start_all(state)
        state.end(DET, failed("oom", "out of memory; a batch of 1 would fit"))
    assert state.rows[DET].state == "failed"
    assert state.rows[DET].reason == "out of memory; a batch of 1 would fit"


def test_an_over_full_pack_falls_back_to_a_whole_gpu(baselines: list[Node]) -> None:
    packed = [replace(n, demand=Demand(cpus=1, gpus=0.5, memory=GIB)) for n in baselines]
    state = SweepState(packed, [Machine(cpus=8, gpus=1, memory=64 * GIB)])
    assert set(start_all(state)) == {DET, SEG}
    state.end(DET, failed("oom", "CUDA out of memory"))
    assert state.demand(DET).gpus == 1.0
    assert start_all(state) == [], "half of the only GPU is free"
    state.end(SEG, DONE)
    finish(state)
    assert {row.state for row in state.rows.values()} == {"done"}
    assert state.rows[DET].attempts == 2


# Holding back.


def test_a_bug_before_the_first_epoch_holds_back_its_kind_with_one_note(
    make_nodes: MakeNodes,
) -> None:
    notes: list[str] = []
    nodes = make_nodes(backbones=("resnet18",))
    state = SweepState(nodes, [Machine(cpus=2, memory=64 * GIB)], note=notes.append)
    assert set(start_all(state)) == {DET, SEG}
    state.end(DET, failed("code", "NameError: no such head\nmore"))
    why = f"held back: {DET} failed before its first epoch (NameError: no such head)"
    assert notes == [f"{why}; trials of resnet18/det wait"]
    held = [n for n, row in state.rows.items() if n.endswith("/det") and n != DET]
    assert {state.rows[name].state for name in held} == {"skipped"}, "none is left that could tell"
    assert state.rows["resnet18/share-bias/det"].reason == why
    finish(state)
    assert len(notes) == 1
    others = {n: s for n, s in states(state).items() if not n.endswith("/det")}
    assert (
        others.pop("resnet18/swap-frozen/seg")
        == others.pop("resnet18/swap-bias/seg")
        == ("skipped")
    )
    assert set(others.values()) == {"done"}


def test_held_siblings_wait_for_one_that_runs_and_go_on_with_its_first_epoch(
    make_nodes: MakeNodes,
) -> None:
    only = ("resnet18/baseline/det", "resnet18/share-*/det")
    state = SweepState(make_nodes(only=only), [Machine(cpus=2, memory=64 * GIB)])
    first, second = start_all(state)
    state.end(first, failed("code"))
    assert start_all(state) == []
    (third,) = set(state.rows) - {first, second}
    assert state.waiting_for(third).startswith(f"held back: {first} failed")
    state.epoch(second, EPOCH)
    assert start_all(state) == [third]


@pytest.mark.parametrize(
    "outcome",
    [
        failed("code", error="NonFiniteLossError"),
        failed("data"),
    ],
    ids=["a loss that is not finite", "data"],
)
def test_other_faults_hold_nothing_back(make_nodes: MakeNodes, outcome: dict[str, Any]) -> None:
    only = ("resnet18/baseline/det", "resnet18/share-*/det")
    state = SweepState(make_nodes(only=only), [ONE])
    (first,) = start_all(state)
    state.end(first, outcome)
    assert len(start_all(state)) == 1


def test_a_kind_that_has_trained_an_epoch_is_not_held_back(make_nodes: MakeNodes) -> None:
    only = ("resnet18/baseline/det", "resnet18/share-*/det")
    state = SweepState(make_nodes(only=only), [ONE])
    (first,) = start_all(state)
    state.epoch(first, EPOCH)
    state.end(first, DONE)
    (second,) = start_all(state)
    state.end(second, failed("code"))
    assert len(start_all(state)) == 1


# Limits, draining, machines.


def test_the_number_at_once_can_be_limited(make_nodes: MakeNodes) -> None:
    state = SweepState(make_nodes(), [ROOM], rules=Rules(max_concurrent=2))
    assert len(start_all(state)) == 2
    waiting = next(n for n, r in state.rows.items() if r.state == "waiting" and not r.node.needs)
    assert state.waiting_for(waiting) == "one of 2 trials to end (--max-concurrent)"
    assert len(state.wanted) == 2


def test_a_budget_of_gpu_hours_stops_handing_out_and_lets_finish_what_runs(
    baselines: list[Node],
) -> None:
    clock = Clock()
    gpu = [replace(n, demand=Demand(cpus=1, gpus=1)) for n in baselines]
    machine = Machine(cpus=8, gpus=1, memory=GIB)
    state = SweepState(gpu, [machine], clock=clock, rules=Rules(max_gpu_hours=1.0))
    first = state.next()
    assert first is not None
    clock.now += 1800
    state.end(first.node.id, DONE)
    second = state.next()
    assert second is not None
    clock.now += 1801
    assert state.gpu_hours == pytest.approx(3601 / 3600)
    assert state.next() is None
    assert not state.finished
    state.end(second.node.id, DONE)
    assert state.finished
    assert state.stopping == "budget of 1 GPU hours reached"
    waiting = [row for row in state.rows.values() if row.state == "waiting"]
    assert len(waiting) == 2
    assert {row.reason for row in waiting} == {"budget of 1 GPU hours reached"}
    assert {state.waiting_for(row.node.id) for row in waiting} == {state.stopping}


def test_a_budget_that_is_just_enough_says_nothing(baselines: list[Node]) -> None:
    clock = Clock()
    state = SweepState(baselines, [ONE], clock=clock, rules=Rules(max_gpu_hours=1.0))
    while not state.finished:
        (name,) = start_all(state)
        clock.now += 900
        state.end(name, DONE)
    assert (state.stopping, set(states(state).values())) == ("", {"done"})


def test_draining_starts_nothing_and_skips_nothing(baselines: list[Node]) -> None:
    state = SweepState(baselines, [ROOM])
    start_all(state)
    state.drain("stopped by Ctrl-C")
    assert state.next() is None
    assert not state.finished
    state.end(DET, preempted())
    state.end(SEG, failed("machine"))
    assert state.finished
    assert states(state) == {
        DET: "stopped",
        SEG: "stopped",
        "resnet18/swap-frozen/seg": "waiting",
        "resnet18/swap-frozen/det": "waiting",
    }
    assert state.rows[DET].reason == "stopped by Ctrl-C"


def test_an_interrupt_stops_what_runs_at_once(baselines: list[Node]) -> None:
    state = SweepState(baselines, [ONE])
    (name,) = start_all(state)
    state.interrupt("Ctrl-C")
    assert state.finished
    assert state.rows[name].state == "stopped"
    state.end(name, DONE)
    assert state.rows[name].state == "stopped", "what comes too late changes nothing"


def test_machines_that_join_are_used_and_those_that_leave_are_not(make_nodes: MakeNodes) -> None:
    one, two = replace(ONE, id="n1"), replace(ONE, id="n2")
    state = SweepState(make_nodes(), [one])
    assert len(start_all(state)) == 1
    state.set_machines([one, two])
    assert len(start_all(state)) == 1
    assert {row.machine for row in state.running} == {"n1", "n2"}
    state.set_machines([two])
    lost = next(row for row in state.running if row.machine == "n1")
    state.end(lost.node.id, preempted("its node died"))
    assert start_all(state) == [], "n1 is gone and n2 is busy"
    kept = next(iter(state.running))
    state.end(kept.node.id, DONE)
    (name,) = start_all(state)
    assert state.rows[name].machine == "n2"


def test_no_machine_that_fits_is_refused_unless_the_cluster_can_grow(
    baselines: list[Node],
) -> None:
    gpu = [replace(n, demand=Demand(cpus=1, gpus=1)) for n in baselines]
    with pytest.raises(SpecError, match="GPUs"):
        SweepState(gpu, [ROOM]).begin()
    done = Settled(
        state="done", reason="", score=0.5, run_id="r", reused="study", attempts=1, history=[]
    )
    settled = SweepState(gpu, [ROOM], settled=lambda row: done)
    settled.begin()
    assert settled.finished
    state = SweepState(gpu, [ROOM], elastic=True)
    assert start_all(state) == []
    assert state.waiting_for(DET) == "a machine with 1 CPU cores, 1 GPUs, 0.0 GiB"
    assert [d.gpus for d in state.wanted] == [1, 1]
    state.set_machines([ROOM, Machine(cpus=4, gpus=2, memory=64 * GIB)])
    assert set(start_all(state)) == {DET, SEG}


def test_trials_that_lost_their_last_machine_are_skipped_after_a_while(
    baselines: list[Node],
) -> None:
    clock = Clock()
    gpu = [replace(n, demand=Demand(cpus=1, gpus=1)) for n in baselines]
    machines = [replace(ROOM, id="cpu"), Machine(cpus=4, gpus=1, memory=GIB, id="gpu")]
    state = SweepState(gpu, machines, clock=clock, rules=Rules(machine_wait_s=60))
    (name,) = start_all(state)
    state.set_machines(machines[:1])
    state.end(name, preempted("its node died"))
    for _ in range(100):
        if state.finished:
            break
        assert state.next() is None
        clock.now += 10
    assert clock.now <= 100 + 10 + 60 + 20
    assert set(states(state).values()) == {"skipped"}
    assert state.rows[DET].reason == "no machine with 4 CPU cores, 1 GPUs, 0.0 GiB is left"


# Brackets, trials that are known later, what is settled.


def test_brackets_cut_search_trials_and_never_final_ones(baselines: list[Node]) -> None:
    search, others = _searches(baselines, count=3, rungs=(1,))
    state = SweepState([*search, *others], [Machine(cpus=8, memory=64 * GIB)])
    start_all(state)
    first, second, third = (node.id for node in search)
    assert not state.epoch(first, {**EPOCH, "score": 0.9})
    assert state.epoch(second, {**EPOCH, "score": 0.1})
    assert not state.epoch(DET, {**EPOCH, "score": 0.0})
    # What a bracket ranks need not be the score.
    assert not state.epoch(third, {**EPOCH, "score": 0.0, "rank": 0.95})
    state.end(second, {"state": "stopped"})
    row = state.rows[second]
    assert row.state == "stopped"
    assert row.reason.startswith("cut at epoch 1: 1 of 2 trials had a better score")
    assert state.rows[third].history == [(1, 0.95)]


def test_a_resumed_search_trial_is_not_judged_twice_at_a_rung(baselines: list[Node]) -> None:
    search, _ = _searches(baselines, count=2, rungs=(1, 2))
    clock = Clock()
    state = SweepState(search, [Machine(cpus=8, memory=64 * GIB)], clock=clock)
    start_all(state)
    first, second = (node.id for node in search)
    assert not state.epoch(first, {**EPOCH, "score": 0.3})
    assert not state.epoch(first, {**EPOCH, "epoch": 2, "score": 0.35})
    state.end(first, failed("machine"))
    assert not state.epoch(second, {**EPOCH, "score": 0.4})
    clock.now += 5
    assert start_all(state) == [first]
    assert not state.epoch(first, {**EPOCH, "score": 0.3}), "said before, and better than nobody"
    assert not state.epoch(first, {**EPOCH, "epoch": 2, "score": 0.35})
    assert not state.epoch(first, {**EPOCH, "epoch": 3, "score": 0.36})
    assert state.rows[first].history == [(1, 0.3), (2, 0.35), (3, 0.36)]


def test_a_search_settled_earlier_stands_in_its_bracket(baselines: list[Node]) -> None:
    search, _ = _searches(baselines, count=2, rungs=(1, 2))
    first, second = (node.id for node in search)
    settled = {
        first: Settled(
            state="done", reason="reused", score=0.7, run_id="r", reused="study", attempts=1,
            history=[(1, 0.7)],
        )
    }  # fmt: skip
    state = SweepState(search, [ROOM], settled=lambda row: settled.get(row.node.id))
    assert start_all(state) == [second]
    row = state.rows[first]
    assert (row.state, row.run_id, row.score, row.reused) == ("done", "r", 0.7, "study")
    assert state.epoch(second, {**EPOCH, "score": 0.6})


def _searches(
    nodes: list[Node], count: int, rungs: tuple[int, ...]
) -> tuple[list[Node], list[Node]]:
    """Search trials of one baseline, and the baselines."""
    final = next(node for node in nodes if node.id == SEG)
    search = searches(final, count=count, rungs=rungs)
    return search, [node for node in nodes if not node.needs]


def test_a_trial_is_made_when_what_it_waits_for_has_ended(baselines: list[Node]) -> None:
    search, _ = _searches(baselines, count=2, rungs=(9,))
    names = tuple(node.id for node in search)
    final = next(node for node in baselines if node.id == DET)
    known = final.trial
    assert known is not None
    asked: list[str] = []

    def resolve(node: Node, rows: Any) -> Any:
        asked.append(node.id)
        assert all(rows[name].state in ("done", "stopped", "failed") for name in node.after)
        return node.trial or known

    nodes = [*search, replace(final, trial=None, after=names)]
    state = SweepState(nodes, [ROOM], resolve=resolve)
    assert set(start_all(state)) == set(names)
    assert asked == []
    assert state.waiting_for(DET) == f"{names[0]} (running), {names[1]} (running)"
    state.end(names[0], failed("data"))
    assert start_all(state) == []
    state.end(names[1], DONE)
    assert start_all(state) == [DET]
    assert asked == [DET]
    assert state.rows[DET].trial is known


def test_a_search_trial_is_proposed_only_when_it_starts(baselines: list[Node]) -> None:
    search, _ = _searches(baselines, count=3, rungs=(9,))
    trials = {node.id: node.trial for node in search}
    asked: list[str] = []

    def resolve(node: Node, rows: Any) -> Any:
        asked.append(node.id)
        return trials[node.id]

    state = SweepState([replace(n, trial=None) for n in search], [ONE], resolve=resolve)
    for count in (1, 2, 3):
        (name,) = start_all(state)
        assert len(asked) == count
        state.end(name, DONE)
    assert state.finished


def test_a_trial_that_cannot_be_known_is_skipped_with_its_reason(baselines: list[Node]) -> None:
    def resolve(node: Node, rows: Any) -> Any:
        raise Unresolvable("no trial of its search gave a score")

    nodes = [replace(n, trial=None) if n.id == DET else n for n in baselines]
    state = SweepState(nodes, [ROOM], resolve=resolve)
    assert start_all(state) == [SEG]
    assert state.rows[DET].reason == "no trial of its search gave a score"
    assert state.rows["resnet18/swap-frozen/seg"].reason == f"needs {DET}, which was skipped"


def test_what_is_settled_takes_no_slot_and_what_is_blocked_is_skipped(
    baselines: list[Node],
) -> None:
    def settled(row: Row) -> Settled | None:
        if row.node.id not in (DET, "resnet18/swap-frozen/det"):
            return None
        return Settled(state="done", reason="", score=0.6, run_id="r", reused="study", attempts=2)

    nodes = [replace(n, blocked="no masks") if n.id == SEG else n for n in baselines]
    state = SweepState(nodes, [ONE], settled=settled)
    state.begin()
    assert states(state) == {
        DET: "done",
        SEG: "skipped",
        "resnet18/swap-frozen/seg": "waiting",
        "resnet18/swap-frozen/det": "done",
    }
    assert start_all(state) == ["resnet18/swap-frozen/seg"]
    assert state.rows[DET].attempts == 2
    assert state.gpu_hours < 1e-3


def test_a_sweep_whose_trials_are_all_settled_needs_no_machine(baselines: list[Node]) -> None:
    def settled(row: Row) -> Settled | None:
        return Settled(state="done", reason="", score=1, run_id="r", reused="study", attempts=1)

    # The swaps are known only when their parents are.
    nodes = [replace(n, trial=None) if n.needs else n for n in baselines]
    trials = {n.id: n.trial for n in baselines}
    state = SweepState(nodes, [], settled=settled, resolve=lambda n, rows: trials[n.id])  # type: ignore[arg-type,return-value]
    state.begin()
    assert state.finished
    assert set(states(state).values()) == {"done"}


def test_one_key_is_never_trained_twice_at_the_same_time(baselines: list[Node]) -> None:
    final = next(node for node in baselines if node.id == DET)
    state = SweepState([final, replace(final, id="the same")], [ROOM])
    (first,) = start_all(state)
    (other,) = {DET, "the same"} - {first}
    assert state.waiting_for(other) == f"{first} (running), which trains the same"
    state.end(first, DONE)
    assert start_all(state) == [other]
