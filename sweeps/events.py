"""What happened in a sweep, in order: one JSON object a line, appended by the driver.

`simulate.replay` drives the same policy with these events; people read them after a crash.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from sharedenc.redact import hide_credentials

if TYPE_CHECKING:
    from sweeps.order import Machine
    from sweeps.state import Row

EventName = Literal["start", "epoch", "end", "again", "machines", "withheld", "note"]


class EventLog:
    """Appends events to a file; the file and its folder are made at the first event.

    Each line has ``t`` (seconds since this log was opened, by ``clock``), ``time`` (seconds since
    1970), ``session`` (the same for all events of one invocation) and ``event``.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.session = uuid.uuid4().hex[:8]
        self._clock = clock
        self._opened = clock()
        self._file: TextIO | None = None

    def row(self, event: EventName, row: Row, **more: Any) -> None:
        """An event of one trial."""
        node = row.node
        self.write(
            event,
            trial=node.id,
            state=row.state,
            kind=row.kind,
            reason=row.reason,
            epoch=row.epoch,
            score=None if math.isnan(row.score) else row.score,
            attempts=row.attempts,
            **more,
        )

    def machines(self, machines: Sequence[Machine], *, elastic: bool = False) -> None:
        """What there is to run on from now on; ``elastic``: there may be more later."""
        listed = [asdict(machine) for machine in machines]
        self.write("machines", machines=listed, elastic=elastic)

    def withheld(self, reasons: Mapping[str, str]) -> None:
        """Trials that may not start from now on, with what they wait for; all others may."""
        self.write("withheld", trials=dict(reasons))

    def note(self, text: str) -> None:
        """Something that concerns the whole sweep."""
        self.write("note", reason=text)

    def write(self, event: EventName, **values: Any) -> None:
        """Append one event; it is in the file when this returns."""
        head = {
            "t": round(self._clock() - self._opened, 6),
            "time": time.time(),
            "session": self.session,
            "event": event,
        }
        line = hide_credentials(json.dumps({**head, **values}, allow_nan=False)) + "\n"
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = _rest_of_line(self.path) + line
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        """Close the file; a further event opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _rest_of_line(path: Path) -> str:
    """A driver that was killed may have left half a line: the next one starts on its own."""
    if not path.exists() or path.stat().st_size == 0:
        return ""
    with path.open("rb") as old:
        old.seek(-1, os.SEEK_END)
        return "" if old.read() == b"\n" else "\n"


def read_events(path: Path, session: str | None = None) -> list[dict[str, Any]]:
    """All events of a file in order, or those of one session; torn lines are left out."""
    events = []
    for event in _lines(path):
        if session is None or event["session"] == session:
            events.append(event)
    return events


def sessions(path: Path) -> list[str]:
    """The sessions in a file, oldest first."""
    return list(dict.fromkeys(event["session"] for event in _lines(path)))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "session" in event:
                yield event
