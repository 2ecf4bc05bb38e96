"""Figures 5.3 and 5.4: what a method changes, and what trained biases give back."""

from __future__ import annotations

from functools import partial
from typing import Any

from sharedenc.report.changes import HEADLINE, Figure, Method
from sharedenc.report.figures.canvas import (
    INK,
    LINE,
    MISSING,
    SMALL_PT,
    SOFT,
    WIDTH_PT,
    Canvas,
    Key,
    fit,
    legend_height,
    limits,
    line,
    published_colour,
    series,
    text_width,
)
from sharedenc.report.figures.scores import backbone_keys
from sharedenc.report.figures.table import (
    Row,
    Sheet,
    Value,
    absent_note,
    head_beside,
    named,
    of_both_tasks,
    present_methods,
)
from sharedenc.report.table_spec import Facts

_NAMES, _GAP = 112.0, 14.0
_PITCH, _LEAST_PITCH, _HEADING = 11.5, 5.0, 15.0
# Rows that are still named one by one; above, colours and the legend say which is which.
_MOST_NAMED = 66


def changes_sheet(facts: Facts, beside: Facts | None) -> Sheet:
    """Change in percent against the same backbone's baseline, per backbone and method."""
    here, gone = present_methods(facts)
    methods = [m for m in facts.scores.methods if m.name in here and m.strategy != "baseline"]
    return Sheet(
        heads=("backbone", "method"),
        columns=tuple(f"{metric} change (%)" for metric in HEADLINE.values()),
        rows=tuple(
            Row(
                (backbone, method.name),
                of_both_tasks(facts, beside, partial(_change, backbone, method)),
            )
            for backbone in facts.scores.backbones
            for method in methods
        ),
        beside=head_beside(facts, beside, "data"),
        notes=absent_note([name for name in gone if name != "baseline"]),
    )


def _change(backbone: str, method: Method, facts: Facts, metric: str) -> Figure:
    return facts.scores.change(backbone, method, metric)


def _recovery(backbone: str, strategy: str, facts: Facts, metric: str) -> Figure:
    return facts.scores.recovery(backbone, strategy, metric)


def recovery_sheet(facts: Facts, beside: Facts | None) -> Sheet:
    """Percentage points of the baseline that trained biases give back, per strategy."""
    here, _ = present_methods(facts)
    strategies = dict.fromkeys(m.strategy for m in facts.scores.methods if m.freeze == "bias")
    shown = [s for s in strategies if {f"{s}-frozen", f"{s}-bias"} <= set(here)]
    gone = [s for s in strategies if s not in shown]
    rows = []
    for backbone in facts.scores.backbones:
        for strategy in shown:
            read = partial(_recovery, backbone, strategy)
            rows.append(Row((backbone, strategy), of_both_tasks(facts, beside, read)))
    notes = (f"{named(gone)}: not with both freeze modes in this study",) if gone else ()
    return Sheet(
        heads=("backbone", "strategy"),
        columns=tuple(f"{metric} recovered (pp)" for metric in HEADLINE.values()),
        rows=tuple(rows),
        beside=head_beside(facts, beside, "data"),
        notes=notes,
    )


def draw_changes(sheet: Sheet, titles: tuple[str, str], unit: str) -> Any:
    """One row per backbone in a block per method; a panel per task, sharing the rows."""
    backbones, blocks = sheet.labels(0), sheet.labels(1)
    total = len(backbones) * len(blocks)
    is_named = total <= _MOST_NAMED
    pitch = _PITCH if is_named else max(_LEAST_PITCH, _PITCH * _MOST_NAMED / total)
    height = max(30.0, total * pitch + len(blocks) * _HEADING + 4)
    keys = [] if is_named else backbone_keys(backbones)
    several = any(value.ours.low is not None for row in sheet.rows for value in row.values)
    if several:
        keys.append(Key("95 % interval over seeds", INK, "-"))
    if sheet.is_beside:
        keys.append(Key(sheet.beside, published_colour(sheet.is_reference), "hollow o"))
    top = 18.0
    legend_top = top + height + 36
    canvas = Canvas(legend_top + legend_height(keys) + 2)
    width = (WIDTH_PT - _NAMES - _GAP - 12) / 2
    places: dict[tuple[str, str], float] = {}
    headings: list[float] = []
    y = 2.0
    for block in blocks:
        canvas.text(4, top + y + _HEADING / 2, fit(block, 8.5, 300), weight="bold", fontsize=8.5)
        headings.append(y)
        y += _HEADING
        for backbone in backbones:
            places[backbone, block] = y + pitch / 2
            if is_named:
                name = fit(backbone, SMALL_PT, _NAMES - 20)
                canvas.text(_NAMES - 8, top + y + pitch / 2, name, ha="right")
            y += pitch
    for panel in range(2):
        axis = canvas.axes(_NAMES + panel * (width + _GAP), top, width, height, titles[panel])
        axis.set_xlabel(unit)
        axis.set_ylim(height, 0)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        ends = [0.0]
        for row in sheet.rows:
            value = row.values[panel]
            found = (value.number, value.ours.low, value.ours.high, value.published)
            ends += [end for end in found if end is not None]
        low, high = limits(ends)
        axis.set_xlim(low, high)
        axis.grid(axis="x")
        axis.axvline(0, color=SOFT, lw=0.9)
        for place in headings[1:]:
            axis.axhline(place, color=LINE, lw=0.7)
        for row in sheet.rows:
            _draw_row(
                axis,
                sheet,
                row.values[panel],
                places[row.labels[0], row.labels[1]],
                series(backbones.index(row.labels[0])),
                min(4.8, pitch - 1),
            )
        if not sheet.rows:
            axis.text((low + high) / 2, height / 2, "no cell", color=SOFT, ha="center")
    canvas.legend(keys, legend_top)
    return canvas.figure


def _say_missing(axis: Any, value: Value, y: float) -> None:
    """A cross and the start of the reason, where zero and the published mark leave room."""
    text = f"{MISSING} {fit(value.why.split(':')[0], SMALL_PT, 110)}"
    low, high = axis.get_xlim()
    room = (high - low) / axis.get_window_extent().width
    marks = sorted((0.0, value.published or 0.0))
    gap = 7 * room
    spans = [(marks[1] + gap, high), (low, marks[0] - gap), (marks[0] + gap, marks[1] - gap)]
    need = text_width(text, SMALL_PT) * room
    start, end = next(
        (span for span in spans if span[1] - span[0] >= need),
        max(spans, key=lambda span: span[1] - span[0]),
    )
    text = fit(text, SMALL_PT, max(0.0, (end - start) / room))
    right = end < marks[1]
    axis.text(
        end if right else start,
        y,
        text,
        color=SOFT,
        va="center_baseline",
        ha="right" if right else "left",
    )


def _draw_row(
    axis: Any, sheet: Sheet, value: Value, y: float, colour: tuple[str, float], size: float
) -> None:
    if value.number is None:
        _say_missing(axis, value, y)
    else:
        line(axis, [0, value.number], [y, y], color=colour[0], alpha=0.4, lw=2.0)
        if value.ours.low is not None and value.ours.high is not None:
            ends = [value.ours.low, value.ours.high]
            line(axis, ends, [y, y], "|", color=INK, lw=0.8, markersize=4, mew=0.8)
        line(axis, [value.number], [y], "o", color=colour[0], markersize=size, alpha=colour[1])
    if value.published is not None:
        edge = published_colour(sheet.is_reference)
        line(axis, [value.published], [y], "o", mfc="none", mec=edge, mew=0.9, markersize=size + 2)
