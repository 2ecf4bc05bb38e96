"""A user's table as LaTeX, CSV and Markdown files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharedenc.errors import SharedencError
from sharedenc.report.changes import Figure
from sharedenc.report.latex import comment, escape
from sharedenc.report.text import APART, REASONS, STAMP_HEADS, stamp, stamp_values, titled_table
from sharedenc.report.user_tables.file import UserTable
from sharedenc.report.user_tables.filled import Filled, Head, Shown, called, head_text
from sharedenc.report.writing import Value, csv_of, one_line, replace_file


def write(filled: Filled, folder: Path) -> dict[str, Path]:
    """Write ``<name>.tex``, ``<name>.csv`` and ``<name>.md`` into ``folder``; paths by kind.

    Raises:
        SharedencError: the folder cannot be written.
    """
    texts = {"tex": latex(filled), "csv": csv_text(filled), "md": markdown(filled)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {
            kind: replace_file(folder / f"{filled.spec.name}.{kind}", text.encode())
            for kind, text in texts.items()
        }
    except OSError as error:
        raise SharedencError(f"table {filled.spec.name} cannot be written: {error}") from error


def number_text(spec: UserTable, head: Head, shown: Shown, seeds: int = 0) -> str:
    """A number as readers see it; ``seeds`` is a number of seeds that goes without saying."""
    column, figure = head.column, shown.figure
    if figure.value is None:
        return spec.missing
    digits = column.decimals
    if column.show == "n":
        return str(figure.runs)
    if column.show == "median":
        text = _rounded(shown.median, digits)
    elif column.show == "min..max":
        text = f"{_rounded(shown.low, digits)}..{_rounded(shown.high, digits)}"
    else:
        text = _rounded(figure.value, digits)
        if column.show == "mean ± sd" and figure.sd is not None:
            text += f" ± {_rounded(figure.sd, digits)}"
    if figure.mark:
        text += f" [{figure.mark.split(':')[0]}]"
    elif shown.by_seed and figure.runs != seeds:
        text += f" (n = {figure.runs})"
    change = _change_text(spec, shown.change, digits)
    return f"{text} ({change})" if change else text


def _change_text(spec: UserTable, change: Figure | None, digits: int) -> str:
    if change is None:
        return ""
    if change.value is None:
        return spec.missing
    percent = spec.change == "percent"
    text = f"{change.value:+.2f} %" if percent else f"{change.value:+.{digits}f}"
    return f"≈ {text}" if change.apart is False else text


def _rounded(value: float | None, digits: int) -> str:
    assert value is not None
    # Adding 0 turns what was rounded to -0 into 0.
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _heads(filled: Filled) -> list[str]:
    spec = filled.spec
    return [
        *(called(spec, axis) for axis in spec.rows),
        *(head_text(spec, head) for head in filled.heads),
    ]


def _cells(filled: Filled) -> list[list[tuple[str, bool]]]:
    """Text of every row's cells and whether it is bold."""
    spec, seeds = filled.spec, filled.seeds
    return [
        [
            *((called(spec, label), False) for label in line.labels),
            *(
                (number_text(spec, head, shown, seeds), shown.bold)
                for head, shown in zip(filled.heads, line.cells, strict=True)
            ),
        ]
        for line in filled.lines
    ]


def markdown(filled: Filled) -> str:
    """The table with its stamp, and its notes below."""
    spec = filled.spec
    return titled_table(
        spec.title,
        filled.rows,
        _heads(filled),
        _cells(filled),
        filled.notes,
        labels=len(spec.rows),
    )


def latex(filled: Filled) -> str:
    """A ``tabular`` of the LaTeX package booktabs; stamp and notes are comments around it."""
    spec = filled.spec
    lines = [
        comment(spec.title),
        comment(stamp(filled.rows)),
        rf"\begin{{tabular}}{{{'l' * len(spec.rows)}{'r' * len(filled.heads)}}}",
        r"\toprule",
        _latex_line([(head, False) for head in _heads(filled)]),
        r"\midrule",
        *(_latex_line(row) for row in _cells(filled)),
        r"\bottomrule",
        r"\end{tabular}",
        *(comment(note) for note in filled.notes),
    ]
    return "\n".join(lines) + "\n"


def _latex_line(cells: Sequence[tuple[str, bool]]) -> str:
    texts = [rf"\textbf{{{escape(text)}}}" if bold else escape(text) for text, bold in cells]
    return " & ".join(texts) + r" \\"


def csv_text(filled: Filled) -> str:
    """The table in full precision, with deviation, seeds, changes, reasons and the stamp."""
    head: list[Value] = [called(filled.spec, axis) for axis in filled.spec.rows]
    for one in filled.heads:
        name = head_text(filled.spec, one)
        head += [f"{name} {what}" for what in _csv_values(filled.spec, one, Shown(figure=Figure()))]
    lines = [[*head, REASONS, *STAMP_HEADS]]
    for line in filled.lines:
        values: list[Value] = [called(filled.spec, v) for v in line.labels]
        reasons = []
        for one, shown in zip(filled.heads, line.cells, strict=True):
            values += _csv_values(filled.spec, one, shown).values()
            name = head_text(filled.spec, one)
            if shown.figure.told:
                reasons.append(f"{name}: {one_line(shown.figure.told)}")
            if shown.change is not None and shown.change.told:
                reasons.append(f"{name} change: {one_line(shown.change.told)}")
        lines.append([*values, "; ".join(reasons), *stamp_values(filled.rows)])
    return csv_of(lines)


def _csv_values(spec: UserTable, head: Head, shown: Shown) -> dict[str, Value]:
    """What the CSV has of a number, by name."""
    figure, change = shown.figure, shown.change or Figure()
    values: dict[str, Value] = {"mean": figure.value, "sd": figure.sd, "n": figure.runs}
    if head.column.show == "median":
        values["median"] = shown.median
    if head.column.show == "min..max":
        values |= {"min": shown.low, "max": shown.high}
    if head.column.best != "none":
        values["bold"] = "yes" if shown.bold else "no"
    if spec.baseline:
        unit = "change %" if spec.change == "percent" else "change"
        values |= {
            unit: change.value,
            f"{unit} 95% low": change.low,
            f"{unit} 95% high": change.high,
        }
        values["apart"] = APART[change.apart]
    return values
