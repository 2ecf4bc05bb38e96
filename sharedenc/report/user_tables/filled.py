"""A user's table once it is filled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sharedenc.report.changes import Figure
from sharedenc.report.collect import StudyRows
from sharedenc.report.user_tables.file import MetricColumn, UserTable

Labels = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One number in the table's unit, or why there is none.

    Attributes:
        by_seed: The values behind it; empty for a timing.
        change: Against the baseline; None where there is nothing to compare.
        bold: Whether it is marked as the best.
        settings: Learning rate and recipe that it is of; empty for a timing.
    """

    figure: Figure
    by_seed: Mapping[int, float] = field(default_factory=dict)
    median: float | None = None
    low: float | None = None
    high: float | None = None
    change: Figure | None = None
    bold: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


# By the values of a row on its axes and the place of a column.
Numbers = dict[tuple[Labels, int], Shown]


@dataclass(frozen=True, kw_only=True)
class Head:
    """One column: its value on the axis across (empty where each column is a metric)."""

    column: MetricColumn
    value: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: its value on every axis of the rows, and a number per column."""

    labels: Labels
    cells: tuple[Shown, ...]


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A filled table, and what is to be said about it."""

    spec: UserTable
    rows: StudyRows
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def seeds(self) -> int:
        """The most seeds that a number rests on."""
        return max((cell.figure.runs for line in self.lines for cell in line.cells), default=0)


def called(spec: UserTable, value: str) -> str:
    """What a table calls a value of an axis, or the axis itself."""
    return spec.labels.get(value, value) or "(none)"


def head_text(spec: UserTable, head: Head) -> str:
    """What stands above a column."""
    return called(spec, head.value) if spec.columns else head.column.name
