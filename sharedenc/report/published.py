"""The published numbers of the reference study, as data.

Source: C. Schuster, master thesis, TU Wien, 2025, Tables 4.1 to 4.17, 5.1, A.1 and A.2. Row names
are ours (`resnet18`, `swap-bias`, ...). They are only ever shown beside our own numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from sharedenc.report.interval import Interval

# What the published numbers are called as a study.
PUBLISHED = "published"
# The name that the reader gives to a folder with the image counts of the full COCO 2017.
PUBLISHED_DATA = "coco2017"
_TOLD = ("caption", "copies", "heads", "groups", "full")


@dataclass(frozen=True)
class PublishedTable:
    """One published table: ``cells[row labels][column]``, None where nothing is printed.

    Attributes:
        decimals: Printed digits after the point, by column.
        caption: The method that its caption names.
        copies: How many times its rows are printed.
        heads: What the head of a column calls its numbers, where that is to be checked.
        groups: Of a table of changes: how many labels say what a row is compared within.
        full: Of such a table: the score that is everything.
    """

    number: str
    columns: tuple[str, ...]
    cells: dict[tuple[str, ...], dict[str, float | None]]
    decimals: dict[str, int]
    caption: str = ""
    copies: int = 1
    heads: dict[str, str] = field(default_factory=dict)
    groups: int = 0
    full: float = 1.0

    def value(self, labels: tuple[str, ...], column: str) -> float | None:
        """The printed number, or None for a row or column that the table does not have."""
        return self.cells.get(labels, {}).get(column)

    def interval(self, labels: tuple[str, ...], column: str) -> Interval | None:
        """What the printed number may have been before it was rounded."""
        value = self.value(labels, column)
        return None if value is None else Interval.printed(value, self.decimals[column])


@dataclass(frozen=True)
class Statement:
    """What the text says of its numbers, in our words and as a claim that can be computed."""

    where: str
    says: str
    claim: Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """All published tables and what they were measured on.

    ``board`` is the device as a timing names it, ``runtime`` the version of its TensorRT.
    """

    source: str
    data: str
    class_list: str
    device: str
    board: str
    runtime: str
    tables: dict[str, PublishedTable]
    statements: tuple[Statement, ...] = ()

    def value(self, table: str, labels: tuple[str, ...], column: str) -> float | None:
        """One printed number, or None."""
        return self.tables[table].value(labels, column)


@cache
def published() -> Published:
    """Read the numbers that come with the package."""
    text = resources.files("sharedenc.report").joinpath("published.json").read_text("utf-8")
    raw = json.loads(text)
    tables = {}
    for number, table in raw["tables"].items():
        keys, columns = table["keys"], tuple(table["columns"])
        cells = {
            tuple(row[:keys]): dict(zip(columns[keys:], row[keys:], strict=True))
            for row in table["rows"]
        }
        tables[number] = PublishedTable(
            number,
            columns[keys:],
            cells,
            dict(zip(columns[keys:], table["decimals"], strict=True)),
            **{name: table[name] for name in _TOLD if name in table},
        )
    statements = tuple(Statement(**statement) for statement in raw["statements"])
    told = ("source", "data", "class_list", "device", "board", "runtime")
    return Published(**{name: raw[name] for name in told}, tables=tables, statements=statements)


def published_backbones() -> list[str]:
    """The published backbones, in the order of the tables."""
    return [labels[0] for labels in published().tables["4.4"].cells]


def inconsistencies(numbers: Published) -> list[str]:
    """Printed numbers and claims that rounding cannot reconcile, as texts: see `doubts`."""
    from sharedenc.report.doubts import doubts

    return [doubt.text for doubt in doubts(numbers)]
