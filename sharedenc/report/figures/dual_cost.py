"""Figure 5.2: latency of the dual networks against their parameters, by setup and precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jetson_agent.protocol import PRECISIONS
from sharedenc.report.changes import Figure, Method
from sharedenc.report.collect import TimingRow
from sharedenc.report.figures.canvas import (
    MISSING,
    PAPER,
    SOFT,
    WIDTH_PT,
    Canvas,
    Key,
    legend_height,
    limits,
    line,
    place_labels,
    published_colour,
    series,
)
from sharedenc.report.figures.scores import backbone_keys
from sharedenc.report.figures.table import Row, Sheet, Value, head_beside
from sharedenc.report.table_spec import Facts
from sharedenc.report.timing_tables import PUBLISHED_LOAD, PUBLISHED_PRECISIONS, timed_figure

_DUAL = Method("dual")
# Backbones whose names fit beside their points.
_MOST_NAMED = 6
_LEFT, _PANEL, _GAP = 38.0, 165.0, 46.0


def timed_setups(facts: Facts) -> list[str]:
    """The setups that any dual network was timed in, in the order of the families."""
    order = {family: at for at, family in enumerate(facts.families)}
    rows = [row for row in facts.rows.timings if row.graph == "dual"]
    rows.sort(key=lambda row: (order[row.family], row.load != PUBLISHED_LOAD, row.setup))
    return list(dict.fromkeys(row.setup for row in rows))


def dual_cost_sheet(facts: Facts, beside: Facts | None, setup: str) -> Sheet:
    """Parameters (million) and median latency (ms) per backbone and precision in one setup.

    Without a setup nothing was timed: the published precisions wait for it.
    """
    found = {
        (row.backbone, row.precision): row
        for row in facts.rows.timings
        if row.graph == "dual" and row.setup == setup
    }
    first = next(iter(found.values()), None)
    is_alike = first is None or first.load == PUBLISHED_LOAD
    known = _known(beside) if beside is not None and is_alike else {}
    timed = {precision for _, precision in found} or set(PUBLISHED_PRECISIONS)
    rows = []
    for precision in [p for p in PRECISIONS if p in timed]:
        for backbone in dict.fromkeys([*facts.scores.backbones, *(name for name, _ in found)]):
            millions = facts.scores.parameters(backbone, _DUAL, "")
            row = found.get((backbone, precision))
            latency = _latency(row)
            printed = known.get((backbone, precision), (None, None))
            values = (Value(millions, printed[0]), Value(latency, printed[1]))
            rows.append(Row((backbone, precision), values))
    return Sheet(
        heads=("backbone", "precision"),
        columns=("parameters (M)", "latency p50 (ms)"),
        rows=tuple(rows),
        beside=head_beside(facts, beside, "device", first.family if first else None)
        if known
        else "",
        notes=(f"Timed on {setup}." if setup else "Nothing is timed yet.",),
    )


def _latency(row: TimingRow | None) -> Figure:
    return Figure.missing("not timed yet") if row is None else timed_figure(row, "latency_ms/p50")


def _known(beside: Facts) -> dict[tuple[str, str], tuple[float | None, float | None]]:
    return {
        (row.backbone, row.precision): (
            beside.scores.parameters(row.backbone, _DUAL, "").value,
            row.metrics.get("latency_ms/p50"),
        )
        for row in beside.rows.timings
        if row.graph == "dual" and row.load == PUBLISHED_LOAD
    }


def draw_dual_cost(sheet: Sheet) -> Any:
    """One panel per precision; few points are labelled, many are in a legend.

    Hollow: the timing is in doubt.
    """
    backbones, precisions = sheet.labels(0), sheet.labels(1)
    keys = [] if len(backbones) <= _MOST_NAMED else backbone_keys(backbones)
    if any(row.values[1].ours.mark for row in sheet.rows):
        keys.append(Key("timing in doubt", series(0)[0], "hollow o"))
    if sheet.is_beside:
        keys.append(Key(sheet.beside, published_colour(sheet.is_reference), "hollow D"))
    across = min(2, max(1, len(precisions)))
    down = -(-len(precisions) // across)
    bottom = 18 + down * (_PANEL + _GAP)
    canvas = Canvas(bottom + legend_height(keys))
    width = (WIDTH_PT - across * (_LEFT + 34)) / across
    for at, precision in enumerate(precisions):
        left = _LEFT + (at % across) * (_LEFT + width + 34)
        axis = canvas.axes(left, 18 + (at // across) * (_PANEL + _GAP), width, _PANEL, precision)
        rows = [row for row in sheet.rows if row.labels[1] == precision]
        _draw_panel(axis, rows, backbones, published_colour(sheet.is_reference))
    canvas.legend(keys, bottom - 6)
    return canvas.figure


def _draw_panel(axis: Any, rows: Sequence[Row], backbones: list[str], edge: str) -> None:
    """Points of one precision; ``edge`` is the colour of the published ones."""
    xs, ys = [], []
    points, rings = [], []
    for row in rows:
        x, y = (value.number for value in row.values)
        known_x, known_y = (value.published for value in row.values)
        if x is not None and y is not None:
            points.append((x, y, row))
        if known_x is not None and known_y is not None:
            rings.append((known_x, known_y))
        # What has one of both is drawn on the axis of the other.
        xs += [value for value in (x, known_x) if value is not None]
        ys += [value for value in (y, known_y) if value is not None]
    axis.set_xlim(*limits(xs, zero=True, pad=0.12))
    axis.set_ylim(*limits(ys, zero=True, pad=0.12))
    for x, y, row in points:
        colour, alpha = series(backbones.index(row.labels[0]))
        face = PAPER if row.values[1].ours.mark else colour
        line(axis, [x], [y], "o", color=colour, mfc=face, markersize=6, alpha=alpha)
    halves = []
    for row in rows:
        x, y = (value.number for value in row.values)
        if (x is None) != (y is None):
            colour = series(backbones.index(row.labels[0]))[0]
            halves.append((x or 0.0, y or 0.0, row.labels[0]))
            spot = halves[-1][:2]
            axis.text(*spot, MISSING, color=colour, ha="center", va="center_baseline", zorder=3)
    for px, py in rings:
        line(axis, [px], [py], "D", mfc="none", mec=edge, mew=0.9, markersize=6)
    axis.grid()
    axis.set_xlabel("million parameters")
    axis.set_ylabel("latency p50 (ms)")
    if not any(row.values[1].number is not None for row in rows):
        axis.text(0.5, 0.5, "not timed yet", color=SOFT, ha="center", transform=axis.transAxes)
    if len(backbones) <= _MOST_NAMED:
        place_labels(axis, [*((x, y, row.labels[0]) for x, y, row in points), *halves], rings)
