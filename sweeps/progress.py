"""What a user sees of a sweep: a live screen, plain lines, JSON lines, or a status to read."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, TextIO

from sweeps.grid_view import ASCII_MARKS, MARKS
from sweeps.screen import screen
from sweeps.state import Row, SweepState
from sweeps.wording import (
    describe,
    duration,
    failure_text,
    headline,
    others_text,
    retry_text,
)

__all__ = ["JsonLines", "LiveScreen", "PlainLines", "Progress", "duration", "open_progress"]

LINE_EVERY_S = 3.0
DRAW_EVERY_S = 0.5
# Running trials that one plain line names.
NAMED = 4

Works = Callable[[], Mapping[str, float]]
"""Gives the present estimate of every trial's seconds, by trial."""


class Progress(Protocol):
    """Shows a sweep; used as a context manager around it."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def watch(self, state: SweepState, works: Works | None = None) -> None:
        """Show this sweep from now on; ``works`` gives the estimates that time left rests on."""

    def event(self, name: str, row: Row) -> None:
        """A row changed: `start`, `epoch`, `end`, or `again` when it is to be tried again."""

    def beat(self) -> None:
        """Time passes; called several times a second."""

    def note(self, text: str) -> None:
        """One line outside the screen."""


def open_progress(*, log_json: bool = False, stream: TextIO | None = None) -> Progress:
    """The right display for standard error: JSON lines, a live screen, or plain lines."""
    stream = stream or sys.stderr
    if log_json:
        return JsonLines(stream)
    return LiveScreen(stream) if stream.isatty() else PlainLines(stream)


class _Base:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._state: SweepState | None = None
        self._works: Works | None = None

    def __enter__(self) -> _Base:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to take down."""

    def watch(self, state: SweepState, works: Works | None = None) -> None:
        self._state, self._works = state, works

    def event(self, name: str, row: Row) -> None:
        """Shown at the next beat."""

    def beat(self) -> None:
        """Nothing moves between events."""

    def note(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _estimates(self) -> Mapping[str, float] | None:
        return None if self._works is None else self._works()

    def _tell_trouble(self, name: str, row: Row) -> None:
        """A line for what goes wrong, when it does."""
        if name == "end" and row.state == "failed":
            self.note(f"failed: {failure_text(row)}")
        elif name == "again" and self._state is not None:
            self.note(f"{row.node.id}: {retry_text(row, self._state)}")


class PlainLines(_Base):
    """One line at a change, at most one every few seconds; what goes wrong at once."""

    def __init__(self, stream: TextIO, every_s: float = LINE_EVERY_S) -> None:
        super().__init__(stream)
        self._every_s = every_s
        self._shown = -math.inf
        self._changed = False

    def event(self, name: str, row: Row) -> None:
        self._changed = True
        self._tell_trouble(name, row)
        if name == "end" and row.state == "skipped":
            self.note(f"skipped: {row.node.id}: {row.reason}")
        self.beat()

    def beat(self) -> None:
        if self._state and self._changed and time.monotonic() - self._shown >= self._every_s:
            self._shown, self._changed = time.monotonic(), False
            rows = self._state.running
            parts = [describe(row) for row in rows[:NAMED]]
            if len(rows) > NAMED:
                parts.append(f"and {len(rows) - NAMED} more")
            self.note(" | ".join([headline(self._state, self._estimates()), "; ".join(parts)]))


class JsonLines(_Base):
    """Every event as one JSON object on a line of its own."""

    def event(self, name: str, row: Row) -> None:
        self.note(
            _to_json(
                {
                    "event": name,
                    "trial": row.node.id,
                    "cell": row.node.cell.name,
                    "stage": row.node.stage,
                    "seed": row.node.seed,
                    "state": row.state,
                    "kind": row.kind,
                    "reason": row.reason,
                    "attempts": row.attempts,
                    "preemptions": row.preemptions,
                    "reused": row.reused,
                    "together": list(row.together),
                    "epoch": row.epoch,
                    "epochs": row.epochs,
                    "score": row.score,
                    "images_per_s": row.speed,
                    "seconds": row.seconds,
                    "wait_s": self._wait_s(row),
                    "run_id": row.run_id,
                    "time": time.time(),
                }
            )
        )

    def note(self, text: str) -> None:
        super().note(text if text.startswith("{") else _to_json({"event": "note", "text": text}))

    def _wait_s(self, row: Row) -> float:
        """Seconds of back-off before the next attempt."""
        if self._state is None or row.state != "waiting":
            return 0.0
        return max(row.not_before - self._state.clock(), 0.0)


class LiveScreen(_Base):
    """One screen that redraws itself in place; notes scroll away above it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream)
        letters = "utf" in self._console.encoding.lower()
        self._marks = MARKS if letters else ASCII_MARKS
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
        )
        self._drawn = -math.inf

    def __enter__(self) -> LiveScreen:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def event(self, name: str, row: Row) -> None:
        self._tell_trouble(name, row)
        self.beat()

    def beat(self) -> None:
        if self._state and time.monotonic() - self._drawn >= DRAW_EVERY_S:
            self._drawn = time.monotonic()
            width, height = self._console.size
            drawn = screen(
                # The cursor stays on a line of its own below the last one.
                self._state,
                width,
                height - 1,
                works=self._estimates(),
                marks=self._marks,
            )
            drawn.no_wrap, drawn.overflow = True, "crop"
            self._live.update(drawn, refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


def status_text(answer: Mapping[str, Any]) -> str:
    """A study's status for people, from the object of ``sharedenc sweep status --json``.

    One line per trial with its state, attempts and score, then why it is there: what it waits for,
    how it failed, where a reused trial comes from, or why it was not reused.
    """
    rows = [*answer.get("cells", ()), *answer.get("searches", ())]
    if not rows:
        return f"study {answer['study']}: no trials yet"
    names = [str(row.get("name") or row["cell"]) for row in rows]
    width = max(len(name) for name in names)
    lines = [f"{'trial':{width}}  {'state':8}  tries  score"]
    for name, row in zip(names, rows, strict=True):
        score = row.get("score")
        number = "" if score is None else f"{score:.3f}"
        line = f"{name:{width}}  {row['state']:8}  {row.get('attempts') or '':>5}  {number:5}  "
        lines.append((line + _because(row)).rstrip())
    counts = Counter(str(row["state"]) for row in rows)
    if answer.get("run_by"):
        lines.append(f"run by {answer['run_by']}")
    lines.append(f"{len(rows)} trials: " + ", ".join(f"{n} {s}" for s, n in counts.most_common()))
    return "\n".join(lines)


def _because(row: Mapping[str, Any]) -> str:
    """Everything that explains a row's state, on one line."""
    why, reused, why_not = (str(row.get(n) or "") for n in ("why", "reused", "why_not"))
    parts = [" ".join(why.split())]
    others = row.get("together") or ()
    if others and row["state"] == "running":
        parts.append(f"trains with {others_text(others)}")
    if reused and not why.startswith("reused"):
        parts.append("done in an earlier run of this study" if reused == "study" else reused)
    if why_not and not reused:
        parts.append(f"not reused: {why_not}")
    return "; ".join(part for part in parts if part)


def _to_json(values: Mapping[str, Any]) -> str:
    """One line of JSON; what is not a finite number is null."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(plain, allow_nan=False)
