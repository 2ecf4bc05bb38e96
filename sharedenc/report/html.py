"""The page: one self-contained HTML file from templates; its small script only adds comfort."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

from sharedenc.report.cells import Cell, number_cell
from sharedenc.report.contents import Contents
from sharedenc.report.findings import Verdict
from sharedenc.report.published import inconsistencies, published
from sharedenc.report.summary import Summary
from sharedenc.report.table_spec import Table
from sharedenc.report.tables import SYNTHETIC_WARNING, is_published_data, is_synthetic
from sharedenc.report.templating import environment
from sharedenc.report.theme import DARK, FONT, LIGHT, declarations
from sharedenc.report.views import bare, fold, grid, picture_rows, plates, setups, unfinished

if TYPE_CHECKING:
    from jinja2 import Environment

# Sign, class and order of a verdict; the word always stands beside the sign.
VERDICTS: Mapping[Verdict, tuple[str, str]] = {
    "differs": ("✗", "warn"),
    "agrees": ("✓", "good"),
    "cannot tell": ("?", "soft"),
}
# Longer lists have a box that filters them, and are closed until asked for.
LONG_LIST = 30
# Rows that fit on a screen; more scroll under heads that stay.
TALL_TABLE = 16
# Columns that fit on paper at a readable size.
WIDE_TABLE = 20
# Notes under so many tables are said once, above them all.
_SHARED_BY = 3
# Notes that hold for their own table alone, however many have the same.
_OWN_NOTES = ("Every score", "One seed per cell")
# Beside the theme's: surfaces, links and the words of a verdict.
_MORE_COLOURS = {
    "light": {"pale": "#f3f5f8", "mark": "#0b5c94", "warn": "#9a3412", "good": "#1a6b3c"},
    "dark": {"pale": "#1e242b", "mark": "#7cc0f5", "warn": "#ffab80", "good": "#6fd39a"},
}


def page(contents: Contents) -> str:
    """Render a report as one HTML file that loads nothing."""
    rows, numbers = contents.facts.rows, published()
    pictures = {picture.number: picture for picture in contents.pictures}
    tables = [t for t in contents.tables if not t.spec.number.startswith("A.2")]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            contents=contents,
            rows=rows,
            stamped=not contents.published,
            synthetic=SYNTHETIC_WARNING if is_synthetic(rows) else "",
            comparable=is_published_data(rows, numbers),
            setups=setups(contents.options, rows.study),
            tells_memory=any(option.memory.value is not None for option in contents.options),
            front=pictures.get("front"),
            curves=pictures.get("curves"),
            fronts=[p for p in contents.pictures if p.number.startswith("front-")],
            pictures=[p for p in contents.pictures if not p.number.startswith(("front", "curves"))],
            seeds=_seeds(contents.summary),
            best_note=_in_all(
                note for best in contents.summary.best for note in (best.mIoU_note, best.mAP_note)
            ),
            findings_why=_in_all(
                finding.why for finding in contents.findings if finding.verdict == "cannot tell"
            ),
            shared_notes=_shared_notes(tables),
            verdicts=VERDICTS,
            verdict_counts=Counter(finding.verdict for finding in contents.findings),
            plates=plates(contents.evidence.photos, rows),
            timings=[t for t in contents.tables if t.spec.number.startswith("A.2")],
            tables=tables,
            unfinished=unfinished(rows.final),
            numbers=numbers,
            doubts=inconsistencies(numbers),
            light=declarations({**LIGHT, **_MORE_COLOURS["light"]}),
            dark=declarations({**DARK, **_MORE_COLOURS["dark"]}),
            font=FONT,
            long_list=LONG_LIST,
            tall_table=TALL_TABLE,
            wide_table=WIDE_TABLE,
            version=metadata.version("sharedenc"),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _environment() -> Environment:
    from markupsafe import Markup

    found = environment()
    found.filters.update(
        bare=bare,
        fold=fold,
        grid=grid,
        number=number_cell,
        picture_rows=picture_rows,
        score=_score_cell,
        rate=_rate_cell,
        jpeg=_jpeg_attributes,
        svg=lambda text: Markup(_inline(text)),
        css=Markup,
    )
    return found


def _in_all(notes: Iterable[str]) -> str:
    """The note that all of several have, to be said once; empty where they differ."""
    found = list(notes)
    return found[0] if len(found) > 1 and len(set(found)) == 1 else ""


def _shared_notes(tables: Sequence[Table]) -> list[str]:
    """How to read what several tables have, in the order of the tables."""
    counts = Counter(note for table in tables for note in dict.fromkeys(table.notes))
    return [
        note
        for note, count in counts.items()
        if count >= _SHARED_BY and not note.startswith(_OWN_NOTES)
    ]


def _seeds(summary: Summary) -> str:
    """How many seeds the summary's changes rest on."""
    runs = {f.runs for dual in summary.dual for f in (dual.mIoU, dual.mAP) if f.runs}
    if not runs:
        return "none in common"
    least, most = min(runs), max(runs)
    return f"{least} to {most} seeds" if least < most else f"{most} seed{'s' if most > 1 else ''}"


def _score_cell(metrics: Mapping[str, float], name: str) -> Cell:
    """A metric of one trial, in a list; empty where it has none."""
    value = metrics.get(name)
    if value is None:
        return Cell("ours", "", None)
    if not math.isfinite(value) or value < 0:
        return Cell("ours", "undefined", None, "the score is not a number", missing=True)
    return Cell("ours", f"{value:.4f}", value)


def _rate_cell(value: float | None) -> Cell:
    return Cell("ours", "" if value is None else f"{value:g}", value)


def _inline(svg: str) -> str:
    """An SVG without what only a file of its own has before the element."""
    return svg[max(svg.find("<svg"), 0) :]


def _jpeg_attributes(jpeg: bytes) -> dict[str, str | int]:
    """Source, and the size that keeps its place while it is decoded."""
    from PIL import Image, UnidentifiedImageError

    found: dict[str, str | int] = {
        "src": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    }
    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            found["width"], found["height"] = image.size
    except UnidentifiedImageError:
        pass
    return found
