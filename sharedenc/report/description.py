"""What MLflow shows of a study on its parent run: a description, and a metric for each cell."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from statistics import fmean

from sharedenc.report.changes import HEADLINE, SCORES, Figure, Method
from sharedenc.report.collect import StudyRows
from sharedenc.report.contents import Contents
from sharedenc.report.tables import SYNTHETIC_WARNING, is_synthetic
from sharedenc.report.writing import escaped, markdown_table
from sharedenc.tracking import MAX_TAG, metric_name

BEGIN, END = "<!-- sharedenc report -->", "<!-- end of sharedenc report -->"
"""Around our part of a description; MLflow's UI does not show them."""
PLACE = "report"
"""Folder of the parent run's artifacts that the report is in."""
MOST_BACKBONES = 12
_OURS = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def cell_metrics(rows: StudyRows) -> dict[str, float]:
    """``cell/<cell>/<score>``: the mean of a test score over the cell's finished seeds."""
    values: dict[str, list[float]] = {}
    for row in rows.final:
        for name in SCORES:
            value = row.metrics.get(f"test/{name}")
            if row.state == "done" and value is not None:
                values.setdefault(metric_name(f"cell/{row.cell}/{name}"), []).append(value)
    return {name: fmean(found) for name, found in sorted(values.items())}


def report_link(experiment_id: str, run_id: str) -> str:
    """Where MLflow's UI shows the report; relative, so that it holds behind any proxy."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{PLACE}/index.html"


def describe(contents: Contents, link: str, tags: Mapping[str, str], known: str) -> str | None:
    """The parent run's description: ``known`` with our part replaced, or added behind it.

    Args:
        link: Where the report is.
        tags: Those of the parent run.
        known: The description that it has.

    Returns:
        Markdown; None where somebody's own text leaves no room for ours.
    """
    head = [f"[**Open the report**]({link})", _swept(contents, tags)]
    table = _headline(contents)
    for parts in ([*head, table] if table else head, head, head[:1]):
        ours = "\n\n".join([BEGIN, *parts, END])
        old = _OURS.search(known)
        if old is not None:
            text = known[: old.start()] + ours + known[old.end() :]
        else:
            text = f"{known.rstrip()}\n\n{ours}" if known.strip() else ours
        if len(text) <= MAX_TAG:
            return text
    return None


def _swept(contents: Contents, tags: Mapping[str, str]) -> str:
    """What was swept, in a few lines."""
    rows, scores = contents.facts.rows, contents.facts.scores
    states = Counter(state.state for state in scores.states())
    cells = ", ".join(f"{count} {state}" for state, count in states.most_common())
    seeds = sorted({row.seed for row in rows.final if row.seed is not None})
    kind = _kind(tags)
    lines = [f"**{escaped(rows.study)}**{f', kind {escaped(kind)}' if kind else ''}"]
    if rows.final:
        lines.append(f"{sum(states.values())} cells: {cells}")
        lines.append(f"backbones: {escaped(', '.join(scores.backbones))}")
    if rows.search:
        lines.append(f"learning-rate searches: {len(rows.search)} trials")
    if seeds:
        lines.append(f"seeds: {', '.join(map(str, seeds))}")
    if rows.data:
        lines.append(
            f"data: {escaped(rows.data)}, digest {escaped(rows.data_digest[:12])}, "
            f"{len(rows.classes)} classes"
        )
    if is_synthetic(rows):
        lines.append(SYNTHETIC_WARNING)
    boards = dict.fromkeys(row.board for row in rows.timings)
    if boards:
        lines.append(f"timed on: {escaped('; '.join(boards))}")
    return "\n".join(f"- {line}" for line in lines)


def _kind(tags: Mapping[str, str]) -> str:
    try:
        settings = json.loads(tags.get("sharedenc.settings", ""))
        return str(settings["kind"])
    except (ValueError, LookupError, TypeError):
        return ""


def _headline(contents: Contents) -> str:
    """mIoU and mAP by backbone and method."""
    scores = contents.facts.scores
    ran = {(row.strategy, row.freeze) for row in contents.facts.rows.final}
    methods = [m for m in scores.methods if (m.strategy, m.freeze) in ran]
    if not methods:
        return ""
    rows = [
        [escaped(backbone), *(_entry(contents, backbone, method) for method in methods)]
        for backbone in scores.backbones[:MOST_BACKBONES]
    ]
    heads = ["backbone", *(escaped(method.name) for method in methods)]
    lines = ["Test mIoU / mAP, means over seeds:", "", *markdown_table(heads, rows)]
    left = len(scores.backbones) - MOST_BACKBONES
    if left > 0:
        lines += ["", f"{left} more backbones are in the report."]
    return "\n".join(lines)


def _entry(contents: Contents, backbone: str, method: Method) -> str:
    scores = contents.facts.scores
    found = [scores.score(backbone, method, metric) for metric in HEADLINE.values()]
    return " / ".join(map(_number, found))


def _number(figure: Figure) -> str:
    return "–" if figure.value is None else f"{figure.value:.3f}"  # noqa: RUF001
