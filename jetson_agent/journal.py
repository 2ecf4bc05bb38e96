"""Where each job stands, on disk: what a power cut interrupts is resumed or safely repeated.

One file per job in ``<state>/journal/<server>/``, written atomically at every step. From MEASURED
on an entry holds the whole result, so that nothing is timed twice; before that a job starts again
from its downloaded files. Entries that are REPORTED stay, the newest `KEEP`, for
``jetson-agent explain``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jetson_agent import durable
from jetson_agent.outbox import server_folder

State = Literal[
    "DISCOVERED",
    "CLAIMED",
    "FETCHED",
    "CHECKED",
    "PREFLIGHT",
    "BUILT",
    "MEASURED",
    "SPOOLED",
    "REPORTED",
]
STATES: tuple[State, ...] = get_args(State)
# States in which a job is being worked on: found after a start, somebody pulled the plug.
AT_WORK: tuple[State, ...] = ("CLAIMED", "FETCHED", "CHECKED", "PREFLIGHT", "BUILT")
KEEP = 1000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One job.

    `failures` are the kinds of the tries that failed, `interrupted` counts those that the agent
    did not survive; the job is not tried before `not_before` (seconds since 1970). `workspace_mib`
    is what is left of it after failures for want of memory, 0 if untouched. `result` is the text
    of a `BenchResult`, `verdict` its verdict.
    """

    key: str
    what: str
    state: State = "DISCOVERED"
    interrupted: int = 0
    not_before: float = 0.0
    workspace_mib: int = 0
    failures: list[str] = field(default_factory=list)
    result: str = ""
    verdict: str = ""
    updated: float = 0.0


class Journal:
    """The entries of one tracking server; only the process with the state folder's lock writes."""

    def __init__(self, state: Path, tracking_uri: str) -> None:
        self.folder = state / "journal" / server_folder(tracking_uri)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._entries: dict[str, Entry] = {}
        for path in self.folder.glob("*.json"):
            entry = read_entry(path)
            if entry is None:
                path.replace(path.with_suffix(".bad"))
            else:
                self._entries[entry.key] = _without_old_result(entry)
        self._prune()

    def get(self, key: str, what: str = "") -> Entry:
        """The job's entry, or a new one in state DISCOVERED that is not on disk yet."""
        return self._entries.get(key) or Entry(key=key, what=what)

    def write(self, entry: Entry, **changes: Any) -> Entry:
        """Change an entry; when this returns, a power cut does not undo it."""
        entry = replace(entry, **changes, updated=time.time())
        durable.write_text(self._path(entry.key), json.dumps(asdict(entry), indent=1) + "\n")
        self._entries[entry.key] = _without_old_result(entry)
        return entry

    def forget(self, key: str) -> None:
        """The job starts from nothing."""
        durable.remove(self._path(key))
        self._entries.pop(key, None)

    def reported(self, key: str) -> None:
        """Note that the server has the result, which the entry keeps."""
        entry = read_entry(self._path(key))
        if entry is not None:
            self.write(entry, state="REPORTED")

    def entries(self, *states: State) -> list[Entry]:
        """Entries in one of `states`, oldest first; those that are REPORTED without results."""
        found = (entry for entry in self._entries.values() if entry.state in states)
        return sorted(found, key=lambda entry: entry.updated)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _prune(self) -> None:
        for entry in self.entries("REPORTED")[:-KEEP]:
            self.forget(entry.key)


def read_entry(path: Path) -> Entry | None:
    """The entry in a file, or None if it holds none."""
    try:
        value = json.loads(path.read_text())
        known = {f.name for f in fields(Entry)}
        entry = Entry(**{name: value[name] for name in known & set(value)})
    except (OSError, ValueError, TypeError):
        return None
    return entry if entry.state in STATES and entry.key == path.stem else None


def read_all(state: Path) -> Iterator[Entry]:
    """Entries of all servers, for reading only."""
    for path in sorted((state / "journal").glob("*/*.json")):
        entry = read_entry(path)
        if entry is not None:
            yield entry


def _without_old_result(entry: Entry) -> Entry:
    """What is kept in memory: a thousand certificates need not be."""
    return replace(entry, result="") if entry.state in ("SPOOLED", "REPORTED") else entry
