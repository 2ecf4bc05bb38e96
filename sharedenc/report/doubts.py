"""What in the published numbers does not add up, found by computing them again.

Nothing here knows which numbers are wrong: a corrected number takes its doubt away, and a wrong one
brings one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sharedenc.report.interval import Interval, change, mean
from sharedenc.report.published import Published, PublishedTable
from sharedenc.report.statements import check

# Tables of scores by backbone, which A.1 repeats, and of latencies, which A.2 repeats.
_SCORE_TABLES = tuple(f"4.{number}" for number in range(4, 16))
_LATENCY_TABLES = {"4.16": "fp32", "4.17": "int8"}
_THRESHOLDS = ("mAP50", *(f"AP_0.{percent}" for percent in range(55, 100, 5)))


@dataclass(frozen=True)
class Doubt:
    """One printed number or claim that does not follow from the others.

    Attributes:
        where: Table and row, or section.
        printed: What stands there.
        recomputed: What the other numbers give.
        text: Both in one sentence.
    """

    where: str
    printed: str
    recomputed: str
    text: str


def doubts(numbers: Published) -> list[Doubt]:
    """All printed numbers and claims that rounding cannot reconcile with the others.

    Compared are: scores and relative changes of 4.4 to 4.15, and the methods that their captions
    name, with A.1; changes of 4.1 to 4.3 with their own scores; mAP of A.1 with its thresholds;
    latencies of 4.16 and 4.17 with A.2, encoders with networks that contain them, and heads of
    columns with their numbers; parameters of 4.4 and 4.5 with 5.1; the text with all of them.
    """
    return [
        *(doubt for number in ("4.1", "4.2", "4.3") for doubt in _changes(numbers.tables[number])),
        *_captions(numbers),
        *_scores_against_overview(numbers),
        *_means_of_thresholds(numbers),
        *_latencies_against_overview(numbers),
        *_column_heads(numbers),
        *_counts_against_overview(numbers),
        *_encoders_slower_than_networks(numbers),
        *_printed_again(numbers),
        *_statements(numbers),
    ]


def _doubt(where: str, printed: str, recomputed: str) -> Doubt:
    return Doubt(where, printed, recomputed, f"{where}: {printed}, but {recomputed}")


@dataclass(frozen=True)
class _Change:
    """A printed change, and what it should be in either reading."""

    where: str
    printed: Interval
    readings: dict[str, Interval]
    scores: str

    def fits(self, reading: str) -> bool:
        return self.readings[reading].meets(self.printed.low, self.printed.high)


def _changes(table: PublishedTable) -> Iterator[Doubt]:
    """Changes that their own scores do not give, in the reading that the column's head says."""
    score, column = table.columns
    head = table.heads[column]
    found = list(_read(table, score, column))
    if not found:
        return
    fitting = {reading: sum(c.fits(reading) for c in found) for reading in found[0].readings}
    held = max(fitting, key=lambda reading: (fitting[reading], reading == head))
    if held != head:
        first = next(c for c in found if c.fits(held) and not c.fits(head))
        yield _doubt(
            f"{table.number} {column}",
            f"headed {head}",
            f"{fitting[held]} of {len(found)} numbers are in {held} and {fitting[head]} in {head} "
            f"({first.scores} is {first.readings[head].value:+.2f} in {head}; printed is "
            f"{first.printed.value})",
        )
    for each in found:
        if not each.fits(held):
            yield _doubt(
                each.where,
                f"{each.printed.value} {held}",
                f"{each.scores} gives {each.readings[held].value:.2f}",
            )


def _read(table: PublishedTable, score: str, column: str) -> Iterator[_Change]:
    base: dict[tuple[str, ...], Interval] = {}
    for labels in table.cells:
        mine, printed = table.interval(labels, score), table.interval(labels, column)
        group = labels[: table.groups]
        if mine is not None and printed is None:
            base[group] = mine
        elif mine is not None and printed is not None and group in base:
            readings = {
                "percent": change(mine, base[group]),
                "percentage points": (mine - base[group]).scaled(100.0 / table.full),
            }
            scores = f"{mine.value} against {base[group].value}"
            yield _Change(f"{table.number} {' '.join(labels)}", printed, readings, scores)


def _captions(numbers: Published) -> Iterator[Doubt]:
    for number in _SCORE_TABLES:
        table = numbers.tables[number]
        held = _method(numbers, number)
        if held != table.caption:
            yield _doubt(
                f"{number} caption", f"says {table.caption}", f"its scores are those of {held}"
            )


def _method(numbers: Published, number: str) -> str:
    """The method of A.1 that most of a table's scores are of; its caption's where even."""
    table = numbers.tables[number]
    fitting = dict.fromkeys([table.caption, *(name for _, name in numbers.tables["A.1"].cells)], 0)
    for method in fitting:
        for (backbone,), row in table.cells.items():
            for metric, value in row.items():
                fitting[method] += value is not None and value == numbers.value(
                    "A.1", (backbone, method), metric
                )
    return max(fitting, key=lambda method: fitting[method])


def _scores_against_overview(numbers: Published) -> Iterator[Doubt]:
    overview = numbers.tables["A.1"]
    for number in _SCORE_TABLES:
        table, method = numbers.tables[number], _method(numbers, number)
        for labels in table.cells:
            (backbone,) = labels
            for column in table.columns:
                metric = column.removesuffix("_rel")
                printed = table.interval(labels, column)
                score = overview.interval((backbone, method), metric)
                base = overview.interval((backbone, "baseline"), metric)
                if printed is None or score is None or base is None:
                    continue
                where = f"{number} {backbone} {column}"
                if column == metric:
                    if abs(printed.value - score.value) > 1e-9:
                        yield _doubt(where, f"{printed.value}", f"A.1 has {score.value}")
                    continue
                exact = change(score, base)
                if not exact.meets(printed.low, printed.high):
                    yield _doubt(where, f"{printed.value} %", f"A.1 gives {exact.value:.2f} %")


def _means_of_thresholds(numbers: Published) -> Iterator[Doubt]:
    """mAP is the mean of the precisions at ten thresholds."""
    table = numbers.tables["A.1"]
    for labels in table.cells:
        printed = table.interval(labels, "mAP")
        steps = [s for name in _THRESHOLDS if (s := table.interval(labels, name)) is not None]
        if printed is None or len(steps) < len(_THRESHOLDS):
            continue
        exact = mean(steps)
        if not exact.meets(printed.low, printed.high):
            yield _doubt(
                f"A.1 {' '.join(labels)} mAP",
                f"{printed.value}",
                f"the mean over its ten thresholds is {exact.value:.4f}",
            )


def _latencies_against_overview(numbers: Published) -> Iterator[Doubt]:
    for number, precision in _LATENCY_TABLES.items():
        table = numbers.tables[number]
        for labels in table.cells:
            for graph in table.columns:
                printed = table.interval(labels, graph)
                exact = numbers.value("A.2", (labels[0], precision), f"{graph}_latency")
                if printed is not None and exact is not None:
                    if not printed.low - 1e-9 <= exact <= printed.high + 1e-9:
                        where = f"{number} {labels[0]} {graph}"
                        yield _doubt(where, f"{printed.value} ms", f"A.2 has {exact} ms")


def _column_heads(numbers: Published) -> Iterator[Doubt]:
    """Columns of A.2 that are headed as something else than the latencies which they repeat."""
    overview = numbers.tables["A.2"]
    for column, head in overview.heads.items():
        graph = column.removesuffix("_latency")
        same = [
            (number, printed.meets(exact, exact))
            for number, precision in _LATENCY_TABLES.items()
            for labels in numbers.tables[number].cells
            if (printed := numbers.tables[number].interval(labels, graph)) is not None
            if (exact := overview.value((labels[0], precision), column)) is not None
        ]
        printed_too = [number for number, fits in same if fits]
        # One number that differs is a doubt of its own, and leaves this one.
        if head != "latency" and len(printed_too) > len(same) / 2:
            tables = " and ".join(dict.fromkeys(printed_too))
            yield _doubt(
                f"A.2 {column}", f"headed {head}", f"{tables} print its numbers as latencies"
            )


def _counts_against_overview(numbers: Published) -> Iterator[Doubt]:
    for number, graph in (("4.4", "seg"), ("4.5", "det")):
        for (backbone,), row in numbers.tables[number].cells.items():
            here, there = row["parameters"], numbers.value("5.1", (backbone,), graph)
            if here is not None and there is not None and abs(here - there) > 5e-3:
                yield _doubt(
                    f"{number} {backbone} parameters",
                    f"{here} million",
                    f"5.1 has {there} million (its heads have 3 classes)",
                )


def _encoders_slower_than_networks(numbers: Published) -> Iterator[Doubt]:
    for (backbone, precision), row in numbers.tables["A.2"].cells.items():
        encoder = row["encoder_latency"]
        for graph in ("seg", "det", "dual"):
            whole = row[f"{graph}_latency"]
            if encoder is not None and whole is not None and encoder > whole:
                yield _doubt(
                    f"A.2 {backbone} {precision}",
                    f"the encoder alone takes {encoder} ms",
                    f"the {graph} network that contains it {whole} ms",
                )


def _printed_again(numbers: Published) -> Iterator[Doubt]:
    for number, table in numbers.tables.items():
        if table.copies > 1:
            rows = len(table.cells)
            yield _doubt(
                number,
                f"{table.copies * rows} rows are printed",
                f"only {rows} of them differ",
            )


def _statements(numbers: Published) -> Iterator[Doubt]:
    for statement in numbers.statements:
        found = check(numbers, statement.claim)
        if found:
            yield _doubt(statement.where, f'"{statement.says}"', found)
