"""A table as heads and cells, the same for every form that it is written in.

Page, Markdown and LaTeX differ in how they mark a cell, never in what it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sharedenc.report.changes import NOT_IN_STUDY, Figure
from sharedenc.report.table_spec import Column, Entry, Table, TableRow, Unit

Kind = Literal["label", "ours", "published", "difference"]

NOT_A_NUMBER = "NaN: the score is not a number"
# Nothing went wrong: it was not asked for, or it is still to come.
_ABSENT = frozenset(
    {
        NOT_IN_STUDY,
        "not exported",
        "not timed",
        "not timed yet",
        "not printed",
        "no such head",
        "not scored",
        "waiting",
        "running",
    }
)
_DIGITS: dict[Unit, int] = {
    "fraction": 4,
    "percent": 2,
    "million": 2,
    "ms": 3,
    "qps": 1,
    "mib": 1,
}
_UNIT_HEADS: dict[Unit, str] = {
    "fraction": "",
    "percent": "",
    "million": " (M)",
    "ms": " (ms)",
    "qps": " (1/s)",
    "mib": " (MiB)",
}


@dataclass(frozen=True)
class Head:
    """Head of one column of cells.

    Attributes:
        kind: What the cells below are.
        group: What several columns side by side share: the quantity with its unit ("mIoU",
            "dual latency (ms)"); of a label its name.
        part: Which of them it is: "ours", "published", "difference"; empty for a label.
    """

    kind: Kind
    group: str
    part: str = ""

    @property
    def text(self) -> str:
        """Both parts in one line."""
        return f"{self.group} {self.part}".rstrip()


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it says; of a missing number the start of its reason.
        sort: What it is sorted by: the number, or a label's text; None (missing) comes last.
        title: What there is to add: the whole reason, the caveat, the interval.
        best: The highest of its backbone, told apart from every other method.
        apart: More than the noise between seeds; with `best` the only ones that may be bold.
        same: Cannot be told apart: inside the noise between seeds.
        missing: There is no number where one was expected, and `title` says why.
        absent: Of a missing one: nothing went wrong, it was not asked for or is still to come.
    """

    kind: Kind
    text: str
    sort: float | str | None = None
    title: str = ""
    best: bool = False
    apart: bool = False
    same: bool = False
    missing: bool = False
    absent: bool = False

    @property
    def strong(self) -> bool:
        """Whether it may be bold."""
        return self.best or self.apart


def heads(table: Table) -> list[Head]:
    """One head per cell of a row: labels, and per column ours, published, difference."""
    found = [Head("label", name) for name in table.spec.heads]
    for column in table.spec.columns:
        group = f"{column.name}{_UNIT_HEADS[column.unit]}"
        found.append(Head("ours", group, table.ours_head))
        if table.shows_published(column):
            found.append(Head("published", group, table.published_head))
        if table.shows_difference(column):
            found.append(Head("difference", group, "difference"))
    return found


def cells(table: Table, row: TableRow) -> list[Cell]:
    """The cells of a row, in the order of `heads`."""
    found = [Cell("label", label, label) for label in row.labels]
    for column, entry in zip(table.spec.columns, row.entries, strict=True):
        found.append(number_cell(entry.ours, column.unit, best=entry.best, seeds=table.seeds))
        if table.shows_published(column):
            text = published_text(entry.published, column.unit, entry.decimals)
            found.append(Cell("published", text, entry.published))
        if table.shows_difference(column):
            found.append(_difference_cell(column, entry))
    return found


def number_cell(figure: Figure, unit: Unit, *, best: bool = False, seeds: int = 0) -> Cell:
    """A number of ours, or why there is none."""
    text = number_text(figure, unit, seeds)
    if figure.value is None or not math.isfinite(figure.value):
        why = figure.why or NOT_A_NUMBER
        return Cell("ours", text, None, why, missing=True, absent=figure.short in _ABSENT)
    title = figure.mark
    if figure.apart is False:
        title = "cannot be told apart: the 95 % interval contains 0" + (title and f"; {title}")
    same, apart = figure.apart is False, figure.apart is True
    return Cell("ours", text, figure.value, title, best=best, apart=apart, same=same)


def number_text(figure: Figure, unit: Unit, seeds: int = 0, *, signed: bool = False) -> str:
    """A number of ours as readers see it; a missing one is the start of its reason.

    Args:
        seeds: A number of seeds that goes without saying.
        signed: It is a difference: it has its sign, which a percentage always has.
    """
    if figure.value is None:
        return figure.short
    if not math.isfinite(figure.value):
        return NOT_A_NUMBER.partition(":")[0]
    sign = "+" if signed else ""
    text = _text(figure.value, unit, sign=sign)
    if figure.sd is not None:
        text += f" ± {_text(figure.sd, unit)}"
    if figure.low is not None and figure.high is not None:
        text += f" [{_ends(figure.low, figure.high, unit, signed=signed)}]"
    if figure.runs > 1 and figure.runs != seeds:
        text += f" ({figure.runs} seeds)"
    if figure.apart is False:
        text = f"≈ {text}"
    return f"{text} [{figure.mark.split(':')[0]}]" if figure.mark else text


def published_text(value: float | None, unit: Unit, decimals: int | None = None) -> str:
    """A published number, with the decimals that it was printed with (ours where not told)."""
    return "" if value is None else _text(value, unit, decimals)


def difference_text(figure: Figure, unit: Unit) -> str:
    """A difference with its sign; empty where a side is missing."""
    if figure.value is None:
        return ""
    text = _signed(figure.value, unit)
    return f"≈ {text}" if figure.apart is False else text


def _difference_cell(column: Column, entry: Entry) -> Cell:
    figure = entry.difference
    if figure is None or figure.value is None:
        return Cell("difference", "", None, figure.why if figure is not None else "")
    title = ""
    if figure.low is not None and figure.high is not None:
        ends = f"[{_ends(figure.low, figure.high, column.unit, signed=True)}]"
        says = "within" if figure.apart is False else "more than"
        title = f"{says} the noise between {figure.runs} seeds: 95 % interval {ends}"
    return Cell(
        "difference",
        difference_text(figure, column.unit),
        figure.value,
        title,
        apart=figure.apart is True,
        same=figure.apart is False,
    )


def _text(value: float, unit: Unit, decimals: int | None = None, *, sign: str = "") -> str:
    digits = _DIGITS[unit] if decimals is None else decimals
    return f"{value:+.{digits}f} %" if unit == "percent" else f"{value:{sign}.{digits}f}"


def _signed(value: float, unit: Unit) -> str:
    digits = _DIGITS[unit]
    text = f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"
    return f"{text} pp" if unit == "percent" else text


def _ends(low: float, high: float, unit: Unit, *, signed: bool = False) -> str:
    sign = "+" if signed or unit == "percent" else ""
    return ", ".join(f"{end:{sign}.{_DIGITS[unit]}f}" for end in (low, high))
