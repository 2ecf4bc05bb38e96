"""What a user sees of a sweep."""

from __future__ import annotations

import json
from io import StringIO

import pytest

from sweeps.order import Machine
from sweeps.progress import JsonLines, LiveTable, PlainLines, duration, headline, open_progress
from sweeps.resources import GIB
from sweeps.state import SweepState
from tests.sweeps.conftest import MakeNodes

MACHINE = Machine(cpus=2, memory=64 * GIB)
CELL = "resnet18/baseline/det"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def state(make_nodes: MakeNodes) -> SweepState:
    """Twelve trials, two of them running, one of those after its first epoch."""
    state = SweepState(make_nodes(backbones=("resnet18",)), [MACHINE])
    state.next()
    state.next()
    state.epoch(state.running[0].node.id, 1, 0.25)
    return state


def test_plain_lines_name_counts_epochs_and_scores(state: SweepState) -> None:
    stream = StringIO()
    progress = PlainLines(stream, every_s=0)
    progress.watch(state)
    progress.event("epoch", state.running[0])
    line = stream.getvalue()
    assert line.startswith("0/11 done, 2 running, 9 waiting | ")
    assert f"{state.running[0].node.id} epoch 1/2 score 0.250" in line


def test_plain_lines_come_at_most_every_few_seconds_but_failures_at_once(
    state: SweepState,
) -> None:
    stream = StringIO()
    progress = PlainLines(stream, every_s=3600)
    progress.watch(state)
    for _ in range(5):
        progress.event("epoch", state.running[0])
    assert len(stream.getvalue().splitlines()) == 1
    row = state.running[0]
    state.end(row.node.id, {"state": "failed", "reason": "boom"})
    progress.event("end", row)
    assert stream.getvalue().splitlines()[1] == f"{row.node.id}: failed: boom"


def test_time_left_follows_the_pace_of_what_is_done(state: SweepState) -> None:
    assert "left" not in headline(state)
    row = state.running[0]
    state.end(row.node.id, {"state": "done"})
    row.started, row.ended = 0.0, row.node.work  # exactly as estimated
    assert f"about {duration(_rest(state))} left" in headline(state)


def _rest(state: SweepState) -> float:
    waiting = sum(r.node.work for r in state.rows.values() if r.state == "waiting")
    running = sum(max(r.node.work - r.seconds, 0) for r in state.running)
    return (waiting + running) / 2


def test_json_lines_are_json(state: SweepState) -> None:
    stream = StringIO()
    progress = JsonLines(stream)
    progress.note("hello")
    progress.event("epoch", state.running[0])
    progress.event("start", state.running[1])
    note, epoch, start = (json.loads(line) for line in stream.getvalue().splitlines())
    assert note == {"event": "note", "text": "hello"}
    assert (epoch["trial"], epoch["epoch"], epoch["score"]) == (state.running[0].node.id, 1, 0.25)
    assert start["score"] is None


def test_a_terminal_gets_a_live_table(state: SweepState) -> None:
    stream = Terminal()
    with open_progress(stream=stream) as progress:
        assert isinstance(progress, LiveTable)
        progress.watch(state)
        progress.beat()
        progress.note("a note")
    shown = stream.getvalue()
    assert "2 running" in shown
    assert state.running[0].node.id in shown
    assert "a note" in shown
    assert isinstance(open_progress(stream=StringIO()), PlainLines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (465, "7:45"), (3600, "1:00:00"), (59.6, "1:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
