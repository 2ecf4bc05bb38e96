"""What a table of the report is made of: its specification, and what fills it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jetson_agent.protocol import PRECISIONS
from sharedenc.report.changes import METHODS, Figure, Method, Scores
from sharedenc.report.collect import StudyRows, TimingRow
from sharedenc.report.published import PUBLISHED, published_backbones

Compare = Literal["data", "architecture", "device"]
Unit = Literal["fraction", "percent", "million", "ms", "qps", "mib"]
Count = Callable[[str, str, int], int]
# Beside the graphs: what of an encoder a bias pair stores twice.
ENCODER_BIASES = "encoder biases"
# Heads of published numbers that ours may be compared with, and of those that they are computed
# from again.
COMPARABLE = ("published", "printed")


def is_printed(rows: StudyRows) -> bool:
    """Whether a study is the published numbers themselves: those have no data to digest."""
    return rows.study == PUBLISHED and not rows.data_digest


@dataclass(frozen=True)
class Facts:
    """What columns draw from; ``count`` gives a graph's parameters for a number of classes.

    ``count(backbone, ENCODER_BIASES, ...)`` gives those of the encoder that are named ``*.bias``.
    """

    rows: StudyRows
    scores: Scores
    count: Count

    @classmethod
    def of(cls, rows: StudyRows, count: Count) -> Facts:
        """A study's rows with the scores that its cells have in them."""
        return cls(rows, Scores(rows), count)

    def timing(self, backbone: str, graph: str, setup: str, precision: str) -> TimingRow | None:
        """The timing of a graph in a setup, or None."""
        for row in self.rows.timings:
            if (row.backbone, row.graph, row.setup, row.precision) == (
                backbone,
                graph,
                setup,
                precision,
            ):
                return row
        return None

    @property
    def printed(self) -> bool:
        """Whether these are the published numbers themselves."""
        return is_printed(self.rows)

    @property
    def backbones(self) -> list[str]:
        """The published backbones in their order, then the study's others."""
        return list(dict.fromkeys([*published_backbones(), *self.scores.backbones]))

    @property
    def families(self) -> list[str]:
        """Whose timings there are: the newest TensorRT first, which is what boards deploy."""
        found = {row.family for row in self.rows.timings}

        def place(family: str) -> tuple[bool, int, str]:
            name, _, major = family.partition(" ")
            return name != "tensorrt", -int(major or 0), family

        return sorted(found, key=place)

    def precisions(self, family: str) -> list[str]:
        """What a family timed in, in the protocol's order."""
        found = {row.precision for row in self.rows.timings if row.family == family}
        return [precision for precision in PRECISIONS if precision in found]


@dataclass(frozen=True, kw_only=True)
class RowKey:
    """One row: what it is called here, and the published row it is compared with."""

    labels: tuple[str, ...]
    published: tuple[str, ...]
    backbone: str
    method: Method = METHODS[0]
    setup: str = ""
    precision: str = ""
    cell: str = ""


@dataclass(frozen=True)
class Column:
    """One column; ``published`` names the published column, None where there is none.

    ``metric`` is the test metric that it shows, where more is better.
    """

    name: str
    unit: Unit
    published: str | None
    ours: Callable[[Facts, RowKey], Figure]
    metric: str = ""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table: ``compare`` says what must agree for the published numbers to stand beside.

    ``best`` marks a backbone's best method in each column, where it can be told apart. ``family``
    is whose timings it holds, which are never mixed with others'.
    """

    number: str
    title: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: Callable[[Facts], list[RowKey]]
    compare: Compare = "data"
    family: str | None = None
    reference: str = ""
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Entry:
    """Ours and, where there is one, the published number.

    ``best``: the highest of its backbone, told apart from every other method. ``difference``: ours
    minus the published number, None where that is a mere reference. ``decimals``: those that the
    published number was printed with.
    """

    ours: Figure
    published: float | None
    best: bool = False
    difference: Figure | None = None
    decimals: int | None = None


@dataclass(frozen=True)
class TableRow:
    """Labels and one entry per column."""

    labels: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Table:
    """A filled table. ``published_head`` says whether the numbers may be compared.

    It is empty where the published numbers are left out. ``seeds`` is the number that all its
    scores and changes rest on, 0 where they differ.
    """

    spec: TableSpec
    published_head: str
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]
    seeds: int = 0
    ours_head: str = "ours"

    @property
    def compares(self) -> bool:
        """Whether the published numbers are more than a reference."""
        return self.published_head in COMPARABLE

    def shows_published(self, column: Column) -> bool:
        """Whether the published numbers stand beside ours."""
        return bool(self.published_head) and column.published is not None

    def shows_difference(self, column: Column) -> bool:
        """Whether ours minus the published numbers stands beside both."""
        return self.compares and column.published is not None
