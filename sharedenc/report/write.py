"""Write a study's report: Markdown and CSV per table, the figures, and one page that holds all."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sharedenc.errors import SharedencError
from sharedenc.report.changes import Scores
from sharedenc.report.collect import StudyRows, collect
from sharedenc.report.html import page
from sharedenc.report.published import published
from sharedenc.report.summary import Summary, summarise
from sharedenc.report.tables import (
    Count,
    Facts,
    Table,
    build_tables,
    is_synthetic,
    published_head,
)
from sharedenc.report.text import csv_text, markdown


@dataclass(frozen=True)
class ReportPaths:
    """What was written: the page, one Markdown and one CSV file per table, and the figures."""

    folder: Path
    index: Path
    overview: Path
    tables: dict[str, dict[str, Path]]
    figures: tuple[Path, ...]
    summary: Summary

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for ``--json``."""
        return {
            "folder": str(self.folder),
            "index": str(self.index),
            "overview": str(self.overview),
            "tables": {k: {f: str(p) for f, p in v.items()} for k, v in self.tables.items()},
            "figures": [str(path) for path in self.figures],
            "summary": asdict(self.summary),
        }


def write_report(uri: str, study: str, out: Path) -> ReportPaths:
    """Read ``study`` from the MLflow server at ``uri`` and write its report into ``out``.

    Raises:
        SpecError: there is no such study, or it has no cells.
        TrackingError: the server cannot be reached.
    """
    return write_rows(collect(uri, study), out, _count())


def _count() -> Count:
    """Counts on the package's own networks; each is built once, without memory behind it."""
    from sharedenc.models.build import meta_network
    from sharedenc.models.counting import parameters_of

    network = cache(meta_network)

    def count(backbone: str, graph: str, num_classes: int) -> int:
        whole = network(backbone, num_classes)
        det, seg = parameters_of(whole.det_head), parameters_of(whole.seg_head)
        heads = {"encoder": 0, "det": det, "seg": seg, "dual": det + seg}
        return parameters_of(whole.encoder) + heads[graph]

    return count


def write_rows(rows: StudyRows, out: Path, count: Count) -> ReportPaths:
    """Write the report of rows that are at hand; ``count`` gives a graph's parameters."""
    from sharedenc.report.figures import cost_scatter, score_bars

    facts = Facts(rows, Scores(rows), count)
    tables = build_tables(facts)
    summary = summarise(facts)
    # Beside drawn shapes the published scores would only stretch the axis.
    beside = {} if is_synthetic(rows) else _published_scores()
    head = published_head("data", rows, published())
    pictures = {"scores": score_bars(facts.scores, beside, head)}
    scatter = cost_scatter(summary.deployments, summary.timed)
    if scatter is not None:
        pictures["cost"] = scatter
    try:
        for folder in (out, out / "tables", out / "figures"):
            folder.mkdir(parents=True, exist_ok=True)
        paths = {table.spec.number: _write_table(table, rows, out / "tables") for table in tables}
        figures = []
        for name, png in pictures.items():
            figures.append(out / "figures" / f"{name}.png")
            _replace(figures[-1], png)
        overview = "\n".join([f"# {rows.study}\n", *(markdown(table, rows) for table in tables)])
        _replace(out / "report.md", overview.encode())
        html = page(facts, tables, summary, pictures)
        _replace(out / "index.html", html.encode())
    except OSError as error:
        raise SharedencError(f"the report cannot be written to {out}: {error}") from error
    return ReportPaths(out, out / "index.html", out / "report.md", paths, tuple(figures), summary)


def _write_table(table: Table, rows: StudyRows, folder: Path) -> dict[str, Path]:
    stem = f"table_{table.spec.number}"
    paths = {"md": folder / f"{stem}.md", "csv": folder / f"{stem}.csv"}
    _replace(paths["md"], markdown(table, rows).encode())
    _replace(paths["csv"], csv_text(table, rows).encode())
    return paths


def _replace(path: Path, content: bytes) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _published_scores() -> dict[tuple[str, str, str], float]:
    return {
        (backbone, method, metric): value
        for (backbone, method), row in published().tables["A.1"].cells.items()
        for metric, value in row.items()
        if value is not None
    }
