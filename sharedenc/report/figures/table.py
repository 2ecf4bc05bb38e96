"""The table behind a figure: what is drawn, what was published, and why something is missing.

Every figure is a `Sheet` first; drawing it takes nothing but the sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sharedenc.report.cells import NOT_A_NUMBER
from sharedenc.report.changes import HEADLINE, NOT_IN_STUDY, Figure
from sharedenc.report.published import published
from sharedenc.report.table_spec import Compare, Facts
from sharedenc.report.tables import published_head

# Names in one note; the others are counted.
_NAMED = 6


@dataclass(frozen=True)
class Value:
    """One number of ours and, where there is one, the published number."""

    ours: Figure
    published: float | None = None

    @property
    def number(self) -> float | None:
        """Ours, where it is a number."""
        value = self.ours.value
        return value if value is not None and math.isfinite(value) else None

    @property
    def why(self) -> str:
        """Why ours is none; empty where none was expected."""
        if self.ours.value is not None and self.number is None:
            return NOT_A_NUMBER
        return self.ours.why

    @property
    def told(self) -> str:
        """What is to be said of ours: why it is none, or its caveat; empty for nothing."""
        return self.why or self.ours.mark

    @property
    def difference(self) -> float | None:
        """Ours minus the published number, where there are both."""
        if self.number is None or self.published is None:
            return None
        return self.number - self.published


def of_both_tasks(
    facts: Facts, beside: Facts | None, read: Callable[[Facts, str], Figure]
) -> tuple[Value, ...]:
    """What ``read`` gives of each metric of `HEADLINE`, with the published number."""
    return tuple(
        Value(read(facts, metric), read(beside, metric).value if beside else None)
        for metric in HEADLINE.values()
    )


@dataclass(frozen=True)
class Row:
    """Labels and one value per column."""

    labels: tuple[str, ...]
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A figure as numbers.

    Attributes:
        heads: What the labels are.
        columns: Names of the values, with their unit.
        beside: What the published numbers are (`published_head`); empty where there are none.
        notes: What a reader must know beside the reasons in the rows.
        keys: How many labels name a row; those after them say more about it.
    """

    heads: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    beside: str = ""
    notes: tuple[str, ...] = field(default=())
    keys: int = 4

    def labels(self, at: int) -> list[str]:
        """The different labels in one place, in their order."""
        return list(dict.fromkeys(row.labels[at] for row in self.rows))

    def row(self, *labels: str) -> Row | None:
        """The row of these labels, or None."""
        return next((row for row in self.rows if row.labels == labels), None)

    @property
    def is_beside(self) -> bool:
        """Whether any published number stands beside ours."""
        return bool(self.beside) and any(
            value.published is not None for row in self.rows for value in row.values
        )

    @property
    def is_reference(self) -> bool:
        """Whether the published numbers are of something else and must not be compared."""
        return self.beside != "published"

    def flat(self) -> tuple[tuple[str, ...], tuple[tuple[str | float | None, ...], ...]]:
        """Heads and rows, with deviation and interval where there are any."""
        heads = list(self.heads)
        parts: list[tuple[str, ...]] = []
        for at, column in enumerate(self.columns):
            values = [row.values[at] for row in self.rows]
            kept = ["ours"]
            heads.append(column)
            for part, name in (("sd", "sd"), ("low", "95 % low"), ("high", "95 % high")):
                if any(getattr(value.ours, part) is not None for value in values):
                    kept.append(part)
                    heads.append(f"{column} {name}")
            if self.beside and any(value.published is not None for value in values):
                kept += ["published", "difference"]
                heads += [f"{column} {self.beside}", f"{column} difference"]
            parts.append(tuple(kept))
        rows = []
        for row in self.rows:
            line: list[str | float | None] = list(row.labels)
            for value, kept_parts in zip(row.values, parts, strict=True):
                line += [_part(value, part) for part in kept_parts]
            rows.append(tuple(line))
        return tuple(heads), tuple(rows)

    def all_notes(self) -> tuple[str, ...]:
        """The notes, and the reasons for what is missing or doubtful."""
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            for column, value in zip(self.columns, row.values, strict=True):
                text = value.told
                if text:
                    name = f"{' '.join(filter(None, row.labels[: self.keys]))} {column}"
                    reasons.setdefault(text, []).append(name)
        return (*self.notes, *(f"{named(names)}: {text}" for text, names in reasons.items()))


def named(names: Sequence[str]) -> str:
    """A list of names in one line; from the seventh on they are counted."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _part(value: Value, part: str) -> float | None:
    if part == "ours":
        return value.number
    if part == "published":
        return value.published
    if part == "difference":
        return value.difference
    found: float | None = getattr(value.ours, part)
    return found


def head_beside(
    facts: Facts, beside: Facts | None, compare: Compare, family: str | None = None
) -> str:
    """What the published numbers beside these facts are; empty where none are shown."""
    if beside is None:
        return ""
    return published_head(compare, facts.rows, published(), family)


def strictest_head(facts: Facts, beside: Facts | None) -> str:
    """What they are where scores and timings stand in one figure: a reference if either is."""
    heads = [head_beside(facts, beside, "data"), head_beside(facts, beside, "device")]
    return next((head for head in heads if head != "published"), "published")


def present_methods(facts: Facts) -> tuple[list[str], list[str]]:
    """Names of the methods that the study has a cell of, and of those that it has none of."""
    mine = {(row.strategy, row.freeze) for row in facts.rows.final}
    here = [m.name for m in facts.scores.methods if (m.strategy, m.freeze) in mine]
    gone = [m.name for m in facts.scores.methods if (m.strategy, m.freeze) not in mine]
    return here, gone


def absent_note(gone: Sequence[str]) -> tuple[str, ...]:
    """The note on methods that are in no cell of the study."""
    return (f"{named(gone)}: {NOT_IN_STUDY}",) if gone else ()
