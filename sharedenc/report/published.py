"""The published numbers of the reference study, as data, and what in them does not add up.

Source: C. Schuster, master thesis, TU Wien, 2025, Tables 4.4 to 4.17, 5.1, A.1 and A.2. Row names
are ours (`resnet18`, `swap-bias`, ...). They are only ever shown beside our own numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

# Half of the last printed digit, by kind of column.
_HALF_SCORE = 0.5e-4
_HALF_PERCENT = 0.5e-2
_HALF_MS = 0.5e-2

# Which A.1 row each table of scores repeats; the baseline is what its changes refer to.
_METHOD_OF_TABLE = {
    "4.4": "baseline",
    "4.5": "baseline",
    "4.6": "swap-frozen",
    "4.7": "swap-frozen",
    "4.8": "swap-bias",
    "4.9": "swap-bias",
    "4.10": "share-frozen",
    "4.11": "share-frozen",
    "4.12": "share-bias",
    "4.13": "share-bias",
    "4.14": "dual",
    "4.15": "dual",
}


@dataclass(frozen=True)
class PublishedTable:
    """One published table: ``cells[row labels][column]``, None where nothing is printed."""

    number: str
    columns: tuple[str, ...]
    cells: dict[tuple[str, ...], dict[str, float | None]]

    def value(self, labels: tuple[str, ...], column: str) -> float | None:
        """The printed number, or None for a row or column that the table does not have."""
        return self.cells.get(labels, {}).get(column)


@dataclass(frozen=True)
class Published:
    """All published tables and what they were measured on."""

    source: str
    data: str
    class_list: str
    device: str
    tables: dict[str, PublishedTable]

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
        tables[number] = PublishedTable(number, columns[keys:], cells)
    return Published(raw["source"], raw["data"], raw["class_list"], raw["device"], tables)


def published_backbones() -> list[str]:
    """The published backbones, in the order of the tables."""
    return [labels[0] for labels in published().tables["4.4"].cells]


def inconsistencies(numbers: Published) -> list[str]:
    """Find printed numbers that rounding cannot reconcile, by computing them again.

    Compared are scores against Table A.1, relative changes against the scores of A.1, latencies of
    4.16 and 4.17 against A.2, parameter counts of 4.4 and 4.5 against 5.1, and in A.2 an encoder
    that is slower than a network that contains it.
    """
    return [
        *_scores_against_overview(numbers),
        *_latencies_against_overview(numbers),
        *_counts_against_overview(numbers),
        *_encoders_slower_than_networks(numbers),
    ]


def _scores_against_overview(numbers: Published) -> Iterator[str]:
    for table, method in _METHOD_OF_TABLE.items():
        for (backbone,), row in numbers.tables[table].cells.items():
            for column, printed in row.items():
                metric = column.removesuffix("_rel")
                score = numbers.value("A.1", (backbone, method), metric)
                base = numbers.value("A.1", (backbone, "baseline"), metric)
                if printed is None or score is None or base is None:
                    continue
                if column == metric:
                    if abs(printed - score) > _HALF_SCORE:
                        yield f"{table} {backbone} {metric}: {printed}, but A.1 has {score}"
                    continue
                low = 100 * ((score - _HALF_SCORE) / (base + _HALF_SCORE) - 1) - _HALF_PERCENT
                high = 100 * ((score + _HALF_SCORE) / (base - _HALF_SCORE) - 1) + _HALF_PERCENT
                if not low <= printed <= high:
                    exact = 100 * (score / base - 1)
                    yield f"{table} {backbone} {column}: {printed} %, but A.1 gives {exact:.2f} %"


def _latencies_against_overview(numbers: Published) -> Iterator[str]:
    for table, precision in (("4.16", "fp32"), ("4.17", "int8")):
        for (backbone,), row in numbers.tables[table].cells.items():
            for graph, printed in row.items():
                exact = numbers.value("A.2", (backbone, precision), f"{graph}_latency")
                if printed is None or exact is None:
                    continue
                if abs(printed - exact) > _HALF_MS + 1e-9:
                    yield f"{table} {backbone} {graph}: {printed} ms, but A.2 has {exact} ms"


def _counts_against_overview(numbers: Published) -> Iterator[str]:
    for table, graph in (("4.4", "seg"), ("4.5", "det")):
        for (backbone,), row in numbers.tables[table].cells.items():
            here, there = row["parameters"], numbers.value("5.1", (backbone,), graph)
            if here is not None and there is not None and abs(here - there) > _HALF_MS:
                yield (
                    f"{table} {backbone}: {here} million parameters, but 5.1 has {there} "
                    "(its heads have 3 classes)"
                )


def _encoders_slower_than_networks(numbers: Published) -> Iterator[str]:
    for (backbone, precision), row in numbers.tables["A.2"].cells.items():
        encoder = row["encoder_latency"]
        for graph in ("seg", "det", "dual"):
            whole = row[f"{graph}_latency"]
            if encoder is not None and whole is not None and encoder > whole:
                yield (
                    f"A.2 {backbone} {precision}: the encoder alone takes {encoder} ms, "
                    f"the {graph} network that contains it {whole} ms"
                )
