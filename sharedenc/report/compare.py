"""Two studies side by side, written: a page, Markdown, and CSV to compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sharedenc.errors import SharedencError
from sharedenc.report.cells import number_text
from sharedenc.report.changes import SCORES, Figure
from sharedenc.report.comparison import Comparison, Pair, Side, compare
from sharedenc.report.tables import SYNTHETIC_WARNING
from sharedenc.report.templating import environment
from sharedenc.report.text import APART, REASONS
from sharedenc.report.theme import DARK, FONT, LIGHT, declarations
from sharedenc.report.writing import csv_of, escaped, markdown_table, one_line, replace_file

__all__ = ["Comparison", "ComparisonPaths", "compare", "write_comparison"]

_COLUMNS = (
    *("kind", "what", "where", "state A", "state B", "metric", "unit"),
    *("A", "A sd", "A seeds", "B", "B sd", "B seeds"),
    *("difference", "difference unit", "95% low", "95% high", "pairs", "apart"),
    *(REASONS, "set differently"),
)
_HOW = (
    "Differences are B less A. [low, high] is the 95 % t interval of the differences paired by "
    "seed, not corrected for their number; ≈: it contains 0, so that the two cannot be told apart. "
    "With one seed there is no interval."
)


@dataclass(frozen=True)
class ComparisonPaths:
    """What was written, and the comparison itself."""

    folder: Path
    index: Path
    overview: Path
    table: Path
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for ``--json``."""
        return {
            "folder": str(self.folder),
            "index": str(self.index),
            "overview": str(self.overview),
            "table": str(self.table),
            "changed": self.comparison.changed,
            "summary": summary_lines(self.comparison),
            "comparison": asdict(self.comparison),
        }


def write_comparison(comparison: Comparison, out: Path) -> ComparisonPaths:
    """Write ``index.html``, ``compare.md`` and ``compare.csv`` into ``out``.

    Raises:
        SharedencError: the folder cannot be written to.
    """
    files = {
        "index.html": page(comparison),
        "compare.md": markdown(comparison),
        "compare.csv": csv_text(comparison),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        index, overview, table = (
            replace_file(out / name, text.encode()) for name, text in files.items()
        )
    except OSError as error:
        raise SharedencError(
            f"the comparison cannot be written to {out}: {error}. "
            "Give a folder of your own by --out DIR."
        ) from error
    return ComparisonPaths(out, index, overview, table, comparison)


def summary_lines(comparison: Comparison) -> list[str]:
    """What changed, in a few sentences."""
    drawn = [name for name, side in _sides(comparison) if side.synthetic]
    warnings = [f"{' and '.join(drawn)}: {SYNTHETIC_WARNING}"] if drawn else []
    if not comparison.changed:
        nothing = "Nothing changed: the same cells, scores, settings, timings and exports."
        return [*warnings, nothing]
    cells = comparison.cells
    both = [cell for cell in cells if cell.where == "both"]
    lines = warnings
    if not comparison.same_data:
        lines.append(
            "Not the same data or classes: scores stand side by side, not comparable, and no "
            "difference is computed."
        )
    alone = [f"{sum(c.where == w for c in cells)} {w}" for w in ("only A", "only B")]
    lines.append(
        f"Cells: {len(both)} in both ({sum(cell.changed for cell in both)} changed, "
        f"{sum(cell.state_a != cell.state_b for cell in both)} in another state), "
        f"{', '.join(alone)}."
    )
    for metric in SCORES:
        found = [p.difference for cell in both for p in cell.scores if p.name == metric]
        line = _tally(found, "higher", "lower")
        if line:
            lines.append(f"{metric}: {line}.")
    found = [pair.latency.difference for pair in comparison.timings]
    line = _tally(found, "longer", "shorter")
    if line:
        lines.append(f"Latency: {line}.")
    return lines


def _how(comparison: Comparison) -> str:
    several = f" Every score is of {comparison.seeds} seeds." if comparison.seeds > 1 else ""
    return f"{_HOW}{several}"


def _sides(comparison: Comparison) -> list[tuple[str, Side]]:
    return [("A", comparison.a), ("B", comparison.b)]


def _tally(found: Sequence[Figure], up: str, down: str) -> str:
    """How many differences go which way, and how many are more than noise."""
    values = [figure.value for figure in found if figure.value is not None]
    if not values:
        return ""
    more, less = sum(value > 0 for value in values), sum(value < 0 for value in values)
    text = f"of {len(values)} compared, {more} {up} in B, {less} {down}"
    tested = [figure for figure in found if figure.apart is not None]
    if tested:
        text += f"; {sum(f.apart is True for f in tested)} of {len(tested)} told apart from noise"
    elif any(figure.runs for figure in found):
        text += "; fewer than two seeds in common, so that none is told apart from noise"
    return text


def _difference(figure: Figure, seeds: int = 0) -> str:
    """B less A of a score; ``seeds`` is a number of seeds that goes without saying."""
    return number_text(figure, "fraction", seeds, signed=True)


def page(comparison: Comparison) -> str:
    """The page: self-contained, without scripts, in light and dark."""
    templates, seeds = environment(), comparison.seeds
    templates.filters["score"] = lambda figure: number_text(figure, "fraction", seeds)
    templates.filters["ms"] = lambda figure: number_text(figure, "ms")
    templates.filters["less"] = lambda figure: _difference(figure, seeds)
    templates.filters["change"] = lambda figure: number_text(figure, "percent")
    templates.filters["why"] = lambda figure: figure.told
    return templates.get_template("compare.html.j2").render(
        comparison=comparison,
        summary=summary_lines(comparison),
        how=_how(comparison),
        light=declarations(LIGHT),
        dark=declarations(DARK),
        font=FONT,
        version=metadata.version("sharedenc"),
    )


def markdown(comparison: Comparison) -> str:
    """The comparison to read as text."""
    a, b = comparison.a, comparison.b
    lines = [f"# {escaped(a.study)} and {escaped(b.study)}", ""]
    lines += [f"- {name}: {escaped(_described(side))}" for name, side in _sides(comparison)]
    lines.append("")
    lines += [f"- {escaped(line)}" for line in summary_lines(comparison)]
    lines += ["", escaped(_how(comparison))]
    if comparison.settings:
        lines += ["", "## Set differently in every cell that is done in both", ""]
        lines += _table(("what", "A", "B"), [(s.name, s.a, s.b) for s in comparison.settings])
    lines += ["", "## Cells", "", *_cells(comparison)]
    if comparison.timings:
        lines += ["", "## Latency (median)", "", *_latencies(comparison)]
    if comparison.exports:
        lines += ["", "## Registered graphs", "", *_graphs(comparison)]
    return "\n".join(lines) + "\n"


def _cells(comparison: Comparison) -> list[str]:
    rows: list[Sequence[str]] = []
    for cell in comparison.cells:
        told = "; ".join(f"{s.name}: {s.a} → {s.b}" for s in comparison.own_settings(cell))
        states = (cell.state_a or "not in A", cell.state_b or "not in B")
        for at, pair in enumerate(cell.scores):
            numbers = [number_text(f, "fraction", comparison.seeds) for f in (pair.a, pair.b)]
            less = escaped(_difference(pair.difference, comparison.seeds))
            less = f"**{less}**" if pair.difference.apart else less
            first = (cell.cell, *states) if at == 0 else ("", "", "")
            rows.append((*first, pair.name, *numbers, _Done(less), told if at == 0 else ""))
    heads = ("cell", "state A", "state B", "metric", "A", "B", "B less A", "set differently")
    return _table(heads, rows)


def _latencies(comparison: Comparison) -> list[str]:
    rows = [
        (
            *(pair.backbone, pair.graph, pair.precision, pair.setup),
            number_text(pair.latency.a, "ms"),
            number_text(pair.latency.b, "ms"),
            number_text(pair.latency.difference, "percent"),
        )
        for pair in comparison.timings
    ]
    heads = ("backbone", "graph", "precision", "timed on", "A (ms)", "B (ms)", "B against A")
    return _table(heads, rows)


def _graphs(comparison: Comparison) -> list[str]:
    rows: list[Sequence[str]] = []
    for export in comparison.exports:
        names = (f"{export.cell} {export.graph}", export.model_a, export.model_b)
        rows.append((*names, "", "", "", ""))
        for pair in export.scores:
            numbers = [number_text(figure, "fraction") for figure in (pair.a, pair.b)]
            rows.append(("", "", "", pair.name, *numbers, _difference(pair.difference)))
    return _table(("graph", "model A", "model B", "file", "A", "B", "B less A"), rows)


class _Done(str):
    """Markdown already: not escaped again."""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return markdown_table(
        heads,
        [[text if isinstance(text, _Done) else escaped(text) for text in row] for row in rows],
    )


def _described(side: Side) -> str:
    states = ", ".join(f"{count} {state}" for state, count in side.states.items())
    left = f", {side.left_out} trials left out" if side.left_out else ""
    return (
        f"{side.study}; data set {side.data} ({len(side.classes)} classes and background), "
        f"digest {side.data_digest or 'unknown'}; {states} ({side.trials} trials{left})"
    )


def csv_text(comparison: Comparison) -> str:
    """One line per score of a cell, per latency and per score of an exported file."""
    lines: list[Sequence[object]] = [_COLUMNS]
    for cell in comparison.cells:
        told = "; ".join(f"{s.name}: {s.a} -> {s.b}" for s in cell.settings)
        head = ["cell", cell.cell, cell.where, cell.state_a, cell.state_b]
        for pair in cell.scores:
            lines.append([*head, pair.name, "fraction", *_values(pair, "fraction"), told])
    for timing in comparison.timings:
        what = f"{timing.backbone} {timing.graph} {timing.precision} on {timing.setup}"
        head = ["latency", what, timing.where, "", "", "p50", "ms"]
        lines.append([*head, *_values(timing.latency, "percent of A"), ""])
    for export in comparison.exports:
        head = ["export", f"{export.cell} {export.graph}", export.where]
        head += [export.model_a, export.model_b]
        for pair in export.scores:
            lines.append([*head, pair.name, "fraction", *_values(pair, "fraction"), ""])
    return csv_of(lines)


def _values(pair: Pair, unit: str) -> list[str | float | int | None]:
    a, b, difference = pair.a, pair.b, pair.difference
    reasons = {"A": a.told, "B": b.told}
    reasons["difference"] = difference.mark if a.why or b.why else difference.told
    told = "; ".join(f"{name}: {one_line(why)}" for name, why in reasons.items() if why)
    return [
        *(a.value, a.sd, a.runs, b.value, b.sd, b.runs),
        *(difference.value, unit, difference.low, difference.high, difference.runs),
        APART[difference.apart],
        told,
    ]
