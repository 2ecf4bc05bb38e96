"""Tables as text: Markdown to read, CSV to compute with."""

from __future__ import annotations

import csv
import io

from sharedenc.report.changes import Figure
from sharedenc.report.collect import StudyRows
from sharedenc.report.tables import SYNTHETIC_WARNING, Table, Unit, is_synthetic

_DIGITS: dict[Unit, str] = {
    "fraction": "{:.4f}",
    "percent": "{:+.2f} %",
    "million": "{:.2f}",
    "ms": "{:.3f}",
    "qps": "{:.1f}",
}
_UNIT_HEADS: dict[Unit, str] = {
    "fraction": "",
    "percent": "",
    "million": " (M)",
    "ms": " (ms)",
    "qps": " (1/s)",
}


def number_text(figure: Figure, unit: Unit) -> str:
    """A number of ours as readers see it; a missing one is the start of its reason."""
    if figure.value is None:
        return figure.short
    text = _DIGITS[unit].format(figure.value)
    if figure.runs > 1 and figure.low is not None and figure.high is not None:
        low, high = (
            _DIGITS[unit].format(end).removesuffix(" %") for end in (figure.low, figure.high)
        )
        text += f" ({low} to {high}, {figure.runs} runs)"
    return f"{text} [suspect]" if figure.mark else text


def published_text(value: float | None, unit: Unit) -> str:
    """A published number, in the same form as ours."""
    return "" if value is None else _DIGITS[unit].format(value)


def heads(table: Table) -> list[str]:
    """Column heads with units; a published column follows ours where there is one."""
    found = list(table.spec.heads)
    for column in table.spec.columns:
        found.append(f"{column.name}{_UNIT_HEADS[column.unit]} ours")
        if column.published is not None:
            found.append(f"{column.name} {table.published_head}")
    return found


def stamp(rows: StudyRows) -> str:
    """One line that says what the numbers were measured on; it stands on everything written."""
    line = (
        f"Study {rows.study}; data set {rows.data} ({len(rows.classes)} classes and background), "
        f"digest {rows.data_digest}."
    )
    return f"{line} {SYNTHETIC_WARNING}" if is_synthetic(rows) else line


def markdown(table: Table, rows: StudyRows) -> str:
    """A table as Markdown, with its stamp and the reasons for what is missing."""
    lines = [f"## Table {table.spec.number}: {table.spec.title}", "", stamp(rows), ""]
    lines.append("| " + " | ".join(heads(table)) + " |")
    numbers = len(heads(table)) - len(table.spec.heads)
    lines.append("|" + " --- |" * len(table.spec.heads) + " ---: |" * numbers)
    for row in table.rows:
        cells = list(row.labels)
        for column, entry in zip(table.spec.columns, row.entries, strict=True):
            cells.append(number_text(entry.ours, column.unit))
            if column.published is not None:
                cells.append(published_text(entry.published, column.unit))
        lines.append("| " + " | ".join(_flat(cell).replace("|", "\\|") for cell in cells) + " |")
    if table.notes:
        lines += ["", *(f"- {_flat(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def csv_text(table: Table, rows: StudyRows) -> str:
    """A table as CSV: full precision, range and runs where there are several, reasons, stamp."""
    columns = table.spec.columns
    several = any(entry.ours.runs > 1 for row in table.rows for entry in row.entries)
    head = list(table.spec.heads)
    for column in columns:
        name = f"{column.name} [{column.unit}]"
        head.append(f"{name} ours")
        if several:
            head += [f"{name} lowest", f"{name} highest", f"{name} runs"]
        if column.published is not None:
            head.append(f"{name} {table.published_head}")
    head += ["missing or doubtful", "study", "data set", "data digest", "synthetic"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        line: list[str | float | int | None] = list(row.labels)
        reasons = []
        for column, entry in zip(columns, row.entries, strict=True):
            ours = entry.ours
            line.append(ours.value)
            if several:
                line += [ours.low, ours.high, ours.runs]
            if column.published is not None:
                line.append(entry.published)
            if ours.why or ours.mark:
                reasons.append(f"{column.name}: {_flat(ours.why or ours.mark)}")
        line += ["; ".join(reasons), rows.study, rows.data, rows.data_digest]
        line.append("never a result" if is_synthetic(rows) else "no")
        writer.writerow(line)
    return buffer.getvalue()


def _flat(text: str) -> str:
    """One line of text."""
    return " ".join(text.split())
