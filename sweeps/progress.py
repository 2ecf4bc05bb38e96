"""What a user sees while a sweep runs: a live table, plain lines, or JSON lines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sweeps.order import Machine
from sweeps.resources import slots
from sweeps.state import Row, SweepState

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S = 3.0
DRAW_EVERY_S = 0.5


class Progress(Protocol):
    """Shows a sweep; used as a context manager around it."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def watch(self, state: SweepState) -> None:
        """Show this sweep from now on."""

    def event(self, name: str, row: Row) -> None:
        """A row changed."""

    def beat(self) -> None:
        """Time passes; called several times a second."""

    def note(self, text: str) -> None:
        """One line outside the table."""


def open_progress(*, log_json: bool = False, stream: TextIO | None = None) -> Progress:
    """The right display for standard error: JSON lines, a live table, or plain lines."""
    stream = stream or sys.stderr
    if log_json:
        return JsonLines(stream)
    return LiveTable(stream) if stream.isatty() else PlainLines(stream)


class _Base:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._state: SweepState | None = None

    def __enter__(self) -> _Base:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to take down."""

    def watch(self, state: SweepState) -> None:
        self._state = state

    def event(self, name: str, row: Row) -> None:
        """Shown at the next beat."""

    def beat(self) -> None:
        """Nothing moves between events."""

    def note(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class PlainLines(_Base):
    """One line at a change, at most one every few seconds; failures at once."""

    def __init__(self, stream: TextIO, every_s: float = LINE_EVERY_S) -> None:
        super().__init__(stream)
        self._every_s = every_s
        self._shown = -math.inf
        self._changed = False

    def event(self, name: str, row: Row) -> None:
        self._changed = True
        if name == "end" and row.state in ("failed", "skipped"):
            self.note(f"{row.node.id}: {row.state}: {row.reason}")
        self.beat()

    def beat(self) -> None:
        if self._state and self._changed and time.monotonic() - self._shown >= self._every_s:
            self._shown, self._changed = time.monotonic(), False
            running = "; ".join(describe(row) for row in self._state.running)
            self.note(headline(self._state) + (f" | {running}" if running else ""))


class JsonLines(_Base):
    """Every event as one JSON object on a line of its own."""

    def event(self, name: str, row: Row) -> None:
        self.note(
            _to_json(
                {
                    "event": name,
                    "trial": row.node.id,
                    "cell": row.node.cell.name,
                    "state": row.state,
                    "reason": row.reason,
                    "epoch": row.epoch,
                    "score": None if math.isnan(row.score) else row.score,
                    "run_id": row.run_id,
                    "time": time.time(),
                }
            )
        )

    def note(self, text: str) -> None:
        super().note(text if text.startswith("{") else _to_json({"event": "note", "text": text}))


class LiveTable(_Base):
    """A table that redraws itself in place."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.live import Live

        self._live = Live(
            console=Console(file=stream), auto_refresh=False, transient=True, redirect_stdout=False
        )
        self._drawn = -math.inf

    def __enter__(self) -> LiveTable:
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
        if name == "end" and row.state in ("failed", "skipped"):
            self.note(f"{row.node.id}: {row.state}: {row.reason}")
        self.beat()

    def beat(self) -> None:
        if self._state and time.monotonic() - self._drawn >= DRAW_EVERY_S:
            self._drawn = time.monotonic()
            self._live.update(self._table(self._state), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def _table(self, state: SweepState) -> RenderableType:
        from rich.table import Table

        table = Table(title=headline(state), title_justify="left", expand=False)
        for column in ("running", "epoch", "score", "time"):
            table.add_column(column, justify="left" if column == "running" else "right")
        for row in state.running:
            table.add_row(row.node.id, _epoch(row), _score(row), duration(row.seconds))
        return table


def headline(state: SweepState) -> str:
    """Counts and the time left, for example ``12/48 done, 2 running, 34 waiting, ~6:10 left``."""
    counts = Counter(row.state for row in state.rows.values())
    parts = [f"{counts['done'] + counts['stopped']}/{len(state.rows)} done"]
    parts += [f"{counts[name]} {name}" for name in ("running", "waiting")]
    parts += [f"{counts[name]} {name}" for name in ("failed", "skipped") if counts[name]]
    left = time_left(state.rows.values(), state.machines)
    return ", ".join(parts) + (f", about {duration(left)} left" if left is not None else "")


def time_left(rows: Iterable[Row], machines: Iterable[Machine]) -> float | None:
    """Seconds to go: the estimated work that is left, at the pace of the trials that are done."""
    rows, machines = list(rows), list(machines)
    done = [row for row in rows if row.state == "done" and row.seconds > 0]
    if not done:
        return None
    pace = sum(row.seconds for row in done) / sum(row.node.work for row in done)
    left = 0.0
    for row in rows:
        if row.state == "waiting":
            left += row.node.work * pace
        elif row.state == "running":
            left += max(row.node.work * pace - row.seconds, 0.0)
    demand = done[0].node.demand
    return left / max(sum(slots(machine, demand) for machine in machines), 1)


def describe(row: Row) -> str:
    """One running trial in a few words."""
    return f"{row.node.id} epoch {_epoch(row)} score {_score(row)}"


def _epoch(row: Row) -> str:
    return f"{row.epoch}/{row.epochs}"


def _score(row: Row) -> str:
    return "-" if math.isnan(row.score) else f"{row.score:.3f}"


def duration(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _to_json(values: dict[str, Any]) -> str:
    return json.dumps(values, allow_nan=False)
