"""The log of events is whole whatever happens to its writer, and tells invocations apart."""

from __future__ import annotations

import json
from pathlib import Path

from sweeps.events import EventLog, read_events, sessions
from sweeps.faults import Rules
from sweeps.order import Machine
from sweeps.resources import GIB
from sweeps.state import SweepState
from tests.sweeps.conftest import MakeNodes


def test_a_sweeps_story_in_order(make_nodes: MakeNodes, tmp_path: Path) -> None:
    now = [0.0]
    log = EventLog(tmp_path / "study" / "events.jsonl", clock=lambda: now[0])
    nodes = make_nodes(only=("resnet18/swap-frozen/seg",))
    machine = Machine(cpus=1, memory=64 * GIB, id="n1")
    state = SweepState(nodes, [machine], log=log, clock=lambda: now[0], rules=Rules(backoff_s=3))
    det, swap = "resnet18/baseline/det", "resnet18/swap-frozen/seg"
    assert state.next() is not None
    now[0] = 2.5
    state.epoch(det, {"epoch": 1, "epochs": 2, "score": 0.25, "seconds": 2.5})
    state.end(det, {"state": "failed", "kind": "machine", "reason": "gone"})
    now[0] = 5.5
    assert state.next() is not None
    state.end(det, {"state": "done", "result": {"score": 0.5}})
    state.drain("stopped by Ctrl-C")
    log.close()
    events = read_events(log.path)
    told = [(e["event"], e.get("trial"), e["t"]) for e in events]
    assert told == [
        ("machines", None, 0),
        ("start", det, 0),
        ("epoch", det, 2.5),
        ("again", det, 2.5),
        ("start", det, 5.5),
        ("end", det, 5.5),
        ("note", None, 5.5),
    ]
    assert events[0]["machines"] == [{"cpus": 1, "gpus": 0.0, "memory": 64 * GIB, "id": "n1"}]
    assert (events[1]["machine"], events[1]["attempts"]) == ("n1", 1)
    assert (events[2]["epoch"], events[2]["score"], events[2]["seconds"]) == (1, 0.25, 2.5)
    assert (events[3]["kind"], events[3]["reason"], events[3]["delay"]) == ("machine", "gone", 3)
    assert (events[5]["state"], events[5]["score"], events[5]["reused"]) == ("done", 0.5, "")
    assert events[6]["reason"] == "stopping: stopped by Ctrl-C"
    assert swap not in {e.get("trial") for e in events}


def test_two_invocations_and_a_line_that_a_kill_has_torn(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = EventLog(path)
    first.note("one")
    first.close()
    path.write_text(path.read_text() + '{"t": 1.0, "ev')
    second = EventLog(path)
    second.note("two")
    second.note("three")
    second.close()
    assert [e["reason"] for e in read_events(path)] == ["one", "two", "three"]
    assert sessions(path) == [first.session, second.session]
    assert [e["reason"] for e in read_events(path, second.session)] == ["two", "three"]
    assert len(path.read_text().splitlines()) == 4


def test_every_line_is_there_at_once_and_is_json_to_others(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    assert not log.path.exists(), "a sweep that does nothing leaves no file"
    log.note("müde ☕")
    said = log.path.read_bytes()
    log.close()
    assert json.loads(said)["reason"] == "müde ☕"
