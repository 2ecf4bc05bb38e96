"""Tables as text: Markdown to read, CSV to compute with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sharedenc.report.cells import cells, heads, number_cell
from sharedenc.report.changes import Figure
from sharedenc.report.collect import StudyRows
from sharedenc.report.published import published
from sharedenc.report.table_spec import Column, Entry, Table, is_printed
from sharedenc.report.tables import SYNTHETIC_WARNING, is_synthetic
from sharedenc.report.writing import Value, csv_of, escaped, markdown_table, one_line

REASONS = "missing or doubtful"
STAMP_HEADS = ("study", "data set", "data digest", "synthetic")
# Whether two sides can be told apart, in a CSV.
APART: Mapping[bool | None, str | None] = {True: "yes", False: "no", None: None}


def stamp(rows: StudyRows) -> str:
    """One line that says what the numbers were measured on; it stands on everything written."""
    if is_printed(rows):
        numbers = published()
        return (
            f"The published numbers of {numbers.source}; data set {numbers.data}, class list "
            f"{numbers.class_list}; timings on {numbers.device}."
        )
    line = (
        f"Study {rows.study}; data set {rows.data} ({len(rows.classes)} classes and background), "
        f"digest {rows.data_digest}."
    )
    return f"{line} {SYNTHETIC_WARNING}" if is_synthetic(rows) else line


def markdown(table: Table, rows: StudyRows) -> str:
    """A table as Markdown, with its stamp and the reasons for what is missing."""
    top = heads(table)
    return titled_table(
        f"Table {table.spec.number}: {table.spec.title}",
        rows,
        [head.text for head in top],
        [[(cell.text, cell.strong) for cell in cells(table, row)] for row in table.rows],
        table.notes,
        labels=len(table.spec.heads),
    )


def titled_table(
    title: str,
    rows: StudyRows,
    names: Sequence[str],
    body: Iterable[Iterable[tuple[str, bool]]],
    notes: Sequence[str],
    *,
    labels: int,
) -> str:
    """A table as Markdown below its title and stamp, with its notes; nothing is escaped yet.

    Args:
        names: Heads, of which the first ``labels`` are of labels and the others of numbers.
        body: Per cell its text, and whether it is bold.
    """
    lines = [
        *(f"## {escaped(title)}", "", escaped(stamp(rows)), ""),
        *markdown_table(
            [escaped(name) for name in names],
            [
                [f"**{escaped(text)}**" if bold else escaped(text) for text, bold in line]
                for line in body
            ],
            numbers=range(labels, len(names)),
        ),
    ]
    if notes:
        lines += ["", *(f"- {escaped(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def csv_text(table: Table, rows: StudyRows) -> str:
    """A table as CSV: full precision, reasons, stamp.

    Where several seeds ran, deviation, interval and number of seeds too, and of comparisons
    whether their sides can be told apart.
    """
    several = any(entry.ours.runs > 1 for row in table.rows for entry in row.entries)
    names = [name for column in table.spec.columns for name in _names(table, column, several)]
    lines: list[list[Value]] = [[*table.spec.heads, *names, REASONS, *STAMP_HEADS]]
    for row in table.rows:
        line: list[Value] = list(row.labels)
        reasons = []
        for column, entry in zip(table.spec.columns, row.entries, strict=True):
            line += _values(table, column, entry, several)
            why = number_cell(entry.ours, column.unit).title if entry.ours.value is None else ""
            if why or entry.ours.mark:
                reasons.append(f"{column.name}: {one_line(why or entry.ours.mark)}")
        lines.append([*line, "; ".join(reasons), *stamp_values(rows)])
    return csv_of(lines)


def stamp_values(rows: StudyRows) -> list[str]:
    """What a CSV says in each row of where its numbers come from, below `STAMP_HEADS`."""
    synthetic = "never a result" if is_synthetic(rows) else "no"
    return [rows.study, rows.data, rows.data_digest, synthetic]


def _names(table: Table, column: Column, several: bool) -> list[str]:
    """Heads of what `_values` gives."""
    name = f"{column.name} [{column.unit}]"
    found = [f"{name} {table.ours_head}"]
    if several:
        found += [f"{name} {what}" for what in ("sd", "95% low", "95% high", "seeds", "apart")]
    if table.shows_published(column):
        found.append(f"{name} {table.published_head}")
    if table.shows_difference(column):
        found.append(f"{name} difference")
        if several:
            found += [f"{name} difference {what}" for what in ("95% low", "95% high", "apart")]
    return found


def _values(table: Table, column: Column, entry: Entry, several: bool) -> list[Value]:
    ours, beside = entry.ours, entry.difference or Figure()
    found: list[Value] = [ours.value]
    if several:
        found += [ours.sd, ours.low, ours.high, ours.runs, APART[ours.apart]]
    if table.shows_published(column):
        found.append(entry.published)
    if table.shows_difference(column):
        found.append(beside.value)
        if several:
            found += [beside.low, beside.high, APART[beside.apart]]
    return found
