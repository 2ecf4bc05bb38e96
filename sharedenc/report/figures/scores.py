"""Figure 5.1: the scores of all methods, backbones side by side."""

from __future__ import annotations

from functools import partial
from typing import Any

from sharedenc.report.changes import HEADLINE, Figure, Method
from sharedenc.report.figures.canvas import (
    INK,
    MISSING,
    SMALL_PT,
    SOFT,
    WIDTH_PT,
    Canvas,
    Key,
    legend_height,
    limits,
    line,
    published_colour,
    series,
    wrapped,
)
from sharedenc.report.figures.table import (
    Row,
    Sheet,
    absent_note,
    head_beside,
    of_both_tasks,
    present_methods,
)
from sharedenc.report.table_spec import Facts

_LEFT, _PANEL, _GAP = 40.0, 130.0, 52.0
_TITLES = ("Segmentation: test mIoU", "Detection: test mAP")


def scores_sheet(facts: Facts, beside: Facts | None) -> Sheet:
    """Test mIoU and mAP (0..1) per backbone and method."""
    here, gone = present_methods(facts)
    methods = [method for method in facts.scores.methods if method.name in here]
    rows = []
    for backbone in facts.scores.backbones:
        for method in methods:
            read = partial(_score, backbone, method)
            rows.append(Row((backbone, method.name), of_both_tasks(facts, beside, read)))
    return Sheet(
        heads=("backbone", "method"),
        columns=tuple(HEADLINE.values()),
        rows=tuple(rows),
        beside=head_beside(facts, beside, "data"),
        notes=absent_note(gone),
    )


def _score(backbone: str, method: Method, facts: Facts, metric: str) -> Figure:
    return facts.scores.score(backbone, method, metric)


def draw_scores(sheet: Sheet) -> Any:
    """Grouped bars, one panel per metric; whiskers are the deviation over seeds."""
    backbones, methods = sheet.labels(0), sheet.labels(1)
    keys = backbone_keys(backbones)
    if sheet.is_beside:
        keys.append(Key(sheet.beside, published_colour(sheet.is_reference), "-"))
    top = 18.0
    legend_top = top + 2 * _PANEL + _GAP + 34
    canvas = Canvas(legend_top + legend_height(keys) + 4)
    width = WIDTH_PT - _LEFT - 4
    bar = 0.82 / max(1, len(backbones))
    for panel in range(2):
        axis = canvas.axes(_LEFT, top + panel * (_PANEL + _GAP), width, _PANEL, _TITLES[panel])
        highest = [0.0]
        marks: list[tuple[float, float]] = []
        for i, backbone in enumerate(backbones):
            colour, alpha = series(i)
            at, heights, spread = [], [], []
            for j, method in enumerate(methods):
                place = j + (i - (len(backbones) - 1) / 2) * bar
                row = sheet.row(backbone, method)
                assert row is not None
                value = row.values[panel]
                if value.published is not None:
                    marks.append((place, value.published))
                if value.number is None:
                    axis.text(place, 0.0, MISSING, ha="center", va="bottom", color=colour)
                    continue
                at.append(place)
                heights.append(value.number)
                spread.append(value.ours.sd or 0.0)
            highest += [height + sd for height, sd in zip(heights, spread, strict=True)]
            axis.bar(at, heights, 0.9 * bar, color=colour, alpha=alpha, linewidth=0)
            for x, height, sd in zip(at, heights, spread, strict=True):
                if sd:
                    line(axis, [x, x], [height - sd, height + sd], color=INK, lw=0.8)
        colour = published_colour(sheet.is_reference)
        for x, height in marks:
            line(axis, [x - bar / 2, x + bar / 2], [height] * 2, color=colour, lw=1.1)
        highest += [height for _, height in marks]
        axis.set_ylim(*limits(highest, zero=True))
        axis.set_xlim(-0.55, max(0, len(methods) - 1) + 0.55)
        names = [wrapped(name, SMALL_PT, width / max(1, len(methods)) - 4) for name in methods]
        axis.set_xticks(range(len(methods)), names)
        axis.tick_params(axis="x", length=0)
        axis.grid(axis="y")
        if not methods:
            axis.text(0, 0.5, "no cell", color=SOFT, ha="center")
    canvas.legend(keys, legend_top)
    return canvas.figure


def backbone_keys(backbones: list[str]) -> list[Key]:
    """Legend of the backbones' colours."""
    return [Key(name, series(i)[0], alpha=series(i)[1]) for i, name in enumerate(backbones)]
