"""The page: self-contained HTML without scripts, from a template and what `write` has at hand."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata

from sharedenc.report.collect import TrialRow
from sharedenc.report.published import inconsistencies, published
from sharedenc.report.summary import Summary
from sharedenc.report.tables import (
    SYNTHETIC_WARNING,
    Facts,
    Table,
    is_published_data,
    is_synthetic,
)
from sharedenc.report.text import number_text, published_text

_CAPTIONS = {
    "scores": "Test scores by method. An x is a cell that has no score{line}.",
    "cost": (
        "What it costs to serve both tasks, timed on {timed}. One frozen encoder with two heads "
        "has the dual network's architecture and time; a bias pair needs two passes. "
        "Hollow marks rest on suspect timings."
    ),
}


def page(
    facts: Facts, tables: Sequence[Table], summary: Summary, pictures: Mapping[str, bytes]
) -> str:
    """Render the page.

    Args:
        pictures: PNG files by name; they are put into the page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sharedenc.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ours"] = number_text
    environment.filters["published"] = published_text
    rows, numbers = facts.rows, published()
    score_head = next(t.published_head for t in tables if t.spec.compare == "data")
    line = "; a line is the published score"
    if is_synthetic(rows):
        line = ""
    elif score_head != "published":
        line += f", a {score_head}"
    return environment.get_template("report.html.j2").render(
        rows=rows,
        tables=tables,
        timing_table=next(t for t in tables if t.spec.number == "A.2"),
        summary=summary,
        figures=[
            (
                base64.b64encode(png).decode(),
                _CAPTIONS[name].format(line=line, timed=summary.timed),
            )
            for name, png in pictures.items()
        ],
        unfinished=[row for row in rows.final if row.state != "done"],
        several_seeds=_several_seeds(rows.final),
        synthetic=SYNTHETIC_WARNING if is_synthetic(rows) else "",
        comparable=is_published_data(rows, numbers),
        numbers=numbers,
        doubts=inconsistencies(numbers),
        version=metadata.version("sharedenc"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _several_seeds(rows: Sequence[TrialRow]) -> list[tuple[str, list[TrialRow]]]:
    cells: dict[str, list[TrialRow]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    return [(cell, found) for cell, found in cells.items() if len(found) > 1]
