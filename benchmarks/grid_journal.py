"""Jobs that ``python -m benchmarks.grid --real`` has finished: a line of JSON each.

A line is written when its job has ended, so that a cut loses one job; a line that was cut does not
count. What was trained with other settings does not count either. Code is not among the settings:
after a change to it that matters, begin with a new folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAME = "jobs.jsonl"


@dataclass(frozen=True)
class Line:
    """One finished job.

    ``cpu_s`` is by part; ``found`` has by cell the losses of the first epoch and the score,
    ``keys`` and ``checkpoints`` what a swap needs of its source; ``code`` is a digest of ours.
    """

    way: str
    cells: tuple[str, ...]
    cpu_s: Mapping[str, float]
    wall_s: float
    found: Mapping[str, Mapping[str, float]]
    keys: Mapping[str, str]
    checkpoints: Mapping[str, str]
    code: str


class Journal:
    """The finished jobs of one folder that were trained with these settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / NAME
        # As they come back from the file.
        self._settings = json.loads(json.dumps(settings))
        self._lines: dict[tuple[str, tuple[str, ...]], Line] = {}
        for line in self._read():
            self._lines[line.way, line.cells] = line

    def _read(self) -> list[Line]:
        if not self._path.is_file():
            return []
        found, others = [], 0
        for text in self._path.read_text().splitlines():
            try:
                entry = json.loads(text)
            except ValueError:
                continue
            if entry.pop("settings") != self._settings:
                others += 1
                continue
            found.append(Line(**{**entry, "cells": tuple(entry["cells"])}))
        if others:
            print(f"{self._path}: {others} jobs have other settings", file=sys.stderr)
        return found

    def find(self, way: str, cells: Sequence[str]) -> Line | None:
        """The job of these cells in this way, if it is done."""
        return self._lines.get((way, tuple(cells)))

    def of(self, way: str) -> list[Line]:
        """All jobs of a way that are done."""
        return [line for line in self._lines.values() if line.way == way]

    def add(self, line: Line) -> None:
        """Keep one more."""
        self._lines[line.way, line.cells] = line
        cut = self._path.is_file() and not self._path.read_text().endswith("\n")
        with self._path.open("a") as file:
            text = json.dumps({**asdict(line), "settings": self._settings})
            file.write("\n" * cut + text + "\n")
