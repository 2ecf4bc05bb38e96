"""What stands below a table: how to read it, and why numbers are missing or doubtful."""

from __future__ import annotations

from collections.abc import Sequence

from sharedenc.report.table_spec import Column, Entry, RowKey, TableRow, TableSpec

# Heads of the tables of the published numbers alone.
RECOMPUTED = "recomputed"
PRINTED = "printed"


def about_seeds(rows: Sequence[TableRow], seeds: int, marks_best: bool) -> list[str]:
    """How to read what a table says about its seeds."""
    figures = [entry.ours for row in rows for entry in row.entries]
    compared = [figure for figure in figures if figure.compared]
    notes = []
    if seeds > 1:
        notes.append(f"Every score and change is a mean over {seeds} seeds.")
    if any(figure.sd is not None for figure in figures):
        notes.append("± is the standard deviation over seeds.")
    if any(figure.low is not None for figure in compared):
        notes.append(
            "[low, high] is the 95 % t interval of the differences to the same backbone's "
            "baseline, paired by seed, in percent of the baseline's mean over those seeds. ≈: the "
            "interval contains 0, so that the two cannot be told apart; bold: it does not."
        )
    if any(figure.runs == 1 for figure in compared):
        notes.append(
            "A change from one seed has no interval: whether it is more than chance is not known."
        )
    if marks_best and any(figure.sd is not None for figure in figures):
        notes.append(
            "Bold: the highest of its backbone, told apart from every other method at 95 % each "
            "(pairwise by seed, not corrected for the number of comparisons)."
        )
    elif marks_best and any(figure.value is not None for figure in figures):
        notes.append("One seed per cell: no method is marked as the best.")
    return notes


def about_published(spec: TableSpec, rows: Sequence[TableRow], head: str) -> list[str]:
    """What the published numbers beside ours are, and how to read the difference."""
    if all(column.published is None for column in spec.columns):
        return []
    if not head:
        return ["The published scores are left out: drawn shapes cannot be compared with photos."]
    if head == PRINTED:
        return [
            "Recomputed: what Tables A.1, A.2 and 5.1 give. Scores of A.1 and figures of A.2 are "
            "the printed ones themselves. A difference in the last digits is rounding of what is "
            "printed; what rounding cannot explain is listed as an inconsistency."
        ]
    beside = [entry.difference for row in rows for entry in row.entries if entry.difference]
    if any(figure.low is not None for figure in beside):
        return [
            "Difference: ours minus published, which is one run. ≈: within the 95 % interval of "
            "one further run beside ours, by the spread of our seeds, so that nothing says that "
            "the two differ; bold: outside of it."
        ]
    if any(figure.value is not None for figure in beside):
        return ["Difference: ours minus published (pp: percentage points)."]
    return []


def reasons(key: RowKey, columns: Sequence[Column], entries: Sequence[Entry]) -> list[str]:
    """Why numbers are missing or doubtful, where the cell itself does not say it all."""
    where: dict[str, list[str]] = {}
    for column, entry in zip(columns, entries, strict=True):
        text = entry.ours.mark or entry.ours.why
        if text != entry.ours.short:
            where.setdefault(text, []).append(column.name)
    name = " ".join(key.labels)
    return [f"{name}, {', '.join(heads)}: {text}" for text, heads in where.items()]
