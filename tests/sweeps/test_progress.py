"""What a user sees of a sweep, in a terminal, in a log file and as JSON."""

from __future__ import annotations

import json
from io import StringIO

import pytest

from sharedenc.spec import Cell
from sweeps.mates import Mates
from sweeps.order import Machine
from sweeps.progress import (
    JsonLines,
    LiveScreen,
    PlainLines,
    duration,
    open_progress,
    status_text,
)
from sweeps.resources import GIB
from sweeps.state import SweepState
from sweeps.wording import headline, places, time_left
from tests.sweeps.shown import Clock, finish, grid, node, report, sweep

SEG = Cell(strategy="baseline", backbone="resnet18", task="seg")
DET = Cell(strategy="baseline", backbone="resnet18", task="det")
SWAP = Cell(strategy="swap", backbone="resnet18", freeze="bias", task="seg")


class Terminal(StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> SweepState:
    """Eleven trials, two of them running, one of those after its first epoch."""
    state = sweep(grid(("resnet18",)), cpus=2, clock=clock)
    report(state, state.running[0].node.id, 1, 0.25)
    return state


def test_plain_lines_name_counts_epochs_scores_and_speed(state: SweepState) -> None:
    stream = StringIO()
    progress = PlainLines(stream, every_s=0)
    progress.watch(state)
    progress.event("epoch", state.running[0])
    line = stream.getvalue()
    assert line.startswith("0/11 done, 2 running, 9 waiting, about ")
    wanted = f"{state.running[0].node.id} epoch 1/60 score 0.250 660 img/s 2:28 left; "
    assert wanted in line
    assert f"{state.running[1].node.id} epoch 0/60 score -" in line


def test_plain_lines_of_many_trials_stay_short() -> None:
    state = sweep(grid(), cpus=20)
    stream = StringIO()
    progress = PlainLines(stream, every_s=0)
    progress.watch(state)
    progress.event("start", state.running[0])
    assert stream.getvalue().endswith("; and 16 more\n")


def test_plain_lines_come_at_most_every_few_seconds_but_trouble_at_once(
    state: SweepState,
) -> None:
    stream = StringIO()
    progress = PlainLines(stream, every_s=3600)
    progress.watch(state)
    for _ in range(5):
        progress.event("epoch", state.running[0])
    assert len(stream.getvalue().splitlines()) == 1
    first, second = state.running
    state.end(first.node.id, {"state": "failed", "kind": "data", "reason": "no picture\nat all"})
    progress.event("end", first)
    state.end(second.node.id, {"state": "failed", "kind": "machine", "reason": "lost"})
    progress.event("again", second)
    skipped = node(SWAP)
    row = sweep([skipped], cpus=1).rows[SWAP.name]
    row.state, row.reason = "skipped", "needs its baseline"
    progress.event("end", row)
    assert stream.getvalue().splitlines()[1:] == [
        f"failed: {first.node.id}: data: no picture",
        f"{second.node.id}: attempt 2 of 3 in 20 s: lost",
        f"skipped: {SWAP.name}: needs its baseline",
    ]


def test_time_left_follows_the_pace_of_what_is_done(clock: Clock) -> None:
    # Works of 100 each, two at once. The first takes 50 s, so a unit of work is half a second:
    # nine wait (450 s), one runs and has 0 s left after 50 s.
    state = sweep(grid(("resnet18",)), cpus=2, clock=clock)
    assert "left" not in headline(state)
    clock.now += 50
    state.end(state.running[0].node.id, {"state": "done", "result": {"score": 0.5}})
    assert headline(state).endswith("about 3:45 left")


def test_time_left_before_anything_is_done_follows_the_epochs(state: SweepState) -> None:
    # 60 epochs of 2.5 s are 150 s for a work of 100. The one that reported has 59 epochs left,
    # the other all of its 150 s, nine wait: 147.5 + 150 + 1350, two at once.
    rows = state.rows.values()
    assert time_left(rows, 2) == pytest.approx((147.5 + 150 + 9 * 150) / 2)


def test_time_left_takes_estimates_and_is_never_less_than_the_longest_trial(
    state: SweepState, clock: Clock
) -> None:
    works = dict.fromkeys(state.rows, 10.0)
    clock.now += 4
    # One of the running trials has 6 s left; so has the other, whose epochs would take longer.
    assert time_left(state.rows.values(), 2, works) == pytest.approx((9 * 10 + 6 + 6) / 2)
    waiting = next(name for name, row in state.rows.items() if row.state == "waiting")
    assert time_left(state.rows.values(), 2, works | {waiting: 5000.0}) == 5000.0
    assert "about 0:51 left" in headline(state, works)


def test_time_left_counts_what_trains_together_once(clock: Clock) -> None:
    shares = [Cell(strategy="share", backbone="resnet18", freeze="frozen", task=task) for task in
              ("det", "seg")]  # fmt: skip
    nodes = [node(cell) for cell in shares]
    state = SweepState(nodes, [Machine(cpus=1, memory=64 * GIB)], clock=clock, mates=Mates())
    assert state.next() is not None
    assert len(state.running) == 2
    works = dict.fromkeys(state.rows, 300.0)
    clock.now += 6
    # Nobody knows yet how long an epoch takes: half of the device for each.
    assert time_left(state.rows.values(), 1, works) == pytest.approx(300.0)
    for row, seconds in zip(state.running, (2.0, 4.0), strict=True):
        report(state, row.node.id, 1, 0.25, seconds=seconds, members=2)
    # 59 epochs of six seconds each.
    assert time_left(state.rows.values(), 1, works) == pytest.approx(59 * 6)
    assert time_left(state.rows.values(), 4, works) == pytest.approx(59 * 6)


def test_places_are_what_machines_hold_of_the_largest_demand(state: SweepState) -> None:
    demands = [state.demand(name) for name in state.rows]
    assert places(state.machines, demands) == 2
    assert places(state.machines, demands, 1) == 1
    assert places([], demands) == 1


def test_a_sweep_that_starts_nothing_more_says_so(state: SweepState) -> None:
    state.drain("stopped by Ctrl-C")
    assert headline(state).endswith("9 waiting, stopped by Ctrl-C")


def test_json_lines_are_json(state: SweepState) -> None:
    stream = StringIO()
    progress = JsonLines(stream)
    progress.watch(state)
    first, second = state.running
    progress.note("hello")
    progress.event("epoch", first)
    progress.event("start", second)
    state.end(second.node.id, {"state": "failed", "kind": "machine", "reason": "lost"})
    progress.event("again", second)
    note, epoch, start, again = (json.loads(line) for line in stream.getvalue().splitlines())
    assert note == {"event": "note", "text": "hello"}
    assert (epoch["trial"], epoch["epoch"], epoch["epochs"]) == (first.node.id, 1, 60)
    assert (epoch["score"], epoch["images_per_s"], epoch["attempts"]) == (0.25, 660.0, 1)
    assert (start["score"], start["images_per_s"], start["wait_s"]) == (None, None, 0.0)
    assert (again["state"], again["kind"], again["wait_s"]) == ("waiting", "machine", 20.0)


def test_a_terminal_gets_a_live_screen(state: SweepState, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "100", "LINES": "30", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    row = state.running[0]
    with open_progress(stream=stream) as progress:
        assert isinstance(progress, LiveScreen)
        progress.watch(state, lambda: dict.fromkeys(state.rows, 10.0))
        progress.beat()
        progress.note("a note")
        state.end(row.node.id, {"state": "failed", "kind": "code", "reason": "boom"})
        progress.event("end", row)
    shown = stream.getvalue()
    assert "2 running" in shown
    assert "about 0:5" in shown
    assert row.node.id in shown
    assert "share-frozen" in shown
    assert "a note" in shown
    assert f"failed: {row.node.id}: code: boom" in shown
    assert isinstance(open_progress(stream=StringIO()), PlainLines)


def test_reused_trials_are_counted_and_set_no_pace(clock: Clock) -> None:
    state = sweep([node(SEG), node(DET)], cpus=2, clock=clock)
    row = state.rows[SEG.name]
    finish(state, SEG.name, 0.5)
    row.reused = "study"
    assert headline(state) == "1/2 done (1 reused), 1 running, 0 waiting"


def test_status_says_state_attempts_score_and_why() -> None:
    waits = [{"name": "x", "state": "failed"}]
    answer = {
        "study": "s",
        "run_by": "me on here, process 7, since today",
        "cells": [
            {"cell": "a/dual", "name": "a/dual seed=1", "state": "done", "attempts": 2,
             "score": 0.4321, "why": "reused: done in study t", "reused": "other study t",
             "why_not": ""},
            {"cell": "b/dual", "state": "waiting", "attempts": 0, "score": None,
             "waits_for": waits, "why": "needs x (failed)", "why_not": "recipe.alpha 3 -> 6"},
            {"cell": "c/dual", "state": "failed", "attempts": 3, "score": None,
             "waits_for": [], "why": "the worker\ndied", "reused": "", "why_not": ""},
        ],
        "searches": [{"cell": "d/dual", "name": "d lr", "state": "stopped", "score": 0.1,
                      "why": "cut at 3", "reused": "study", "together": ["b/dual"]},
                     {"cell": "e/share", "name": "e lr", "state": "running", "score": None,
                      "why": "", "together": ["f lr", "g lr", "h lr"]}],
        "exit_code": 1,
    }  # fmt: skip
    assert status_text(answer).splitlines() == [
        "trial          state     tries  score",
        "a/dual seed=1  done          2  0.432  reused: done in study t",
        "b/dual         waiting                 needs x (failed); not reused: recipe.alpha 3 -> 6",
        "c/dual         failed        3         the worker died",
        "d lr           stopped          0.100  cut at 3; done in an earlier run of this study",
        "e lr           running                 trains with f lr and 2 more",
        "run by me on here, process 7, since today",
        "5 trials: 1 done, 1 waiting, 1 failed, 1 stopped, 1 running",
    ]
    assert status_text({"study": "s", "cells": []}) == "study s: no trials yet"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (465, "7:45"), (3600, "1:00:00"), (59.6, "1:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
