"""Training curves: what validation said epoch by epoch, by method and backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sharedenc.report.changes import Figure
from sharedenc.report.evidence import Curve
from sharedenc.report.figures.canvas import (
    SOFT,
    WIDTH_PT,
    Canvas,
    Key,
    fit,
    legend_height,
    series,
)
from sharedenc.report.figures.scores import backbone_keys
from sharedenc.report.figures.table import Row, Sheet, Value
from sharedenc.report.table_spec import Facts

# Columns of panels: title, and metrics with the dash of their line.
PANELS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("validation mIoU", {"val/mIoU": "-"}),
    ("validation mAP", {"val/mAP": "-"}),
    ("loss", {"val/loss": "-", "train/loss": ":"}),
)
# More lines in one panel are a grey block, more points of one than pixels are no use.
MOST_LINES, MOST_POINTS, MOST_ROWS = 16, 60, 8
_LEFT, _PANEL, _GAP = 34.0, 78.0, 30.0


@dataclass(frozen=True)
class Line:
    """One curve to draw: thinned, and in its place."""

    method: str
    backbone: str
    panel: int
    dash: str
    points: tuple[tuple[int, float], ...]


def curves_sheet(facts: Facts, curves: Sequence[Curve]) -> Sheet:
    """Per trial how many epochs it ran, its best validation scores and its last losses."""
    places = _places(facts)
    by_trial: dict[tuple[str, int | None], dict[str, Curve]] = {}
    for curve in curves:
        by_trial.setdefault((curve.cell, curve.seed), {})[curve.metric] = curve
    rows = []
    for (cell, seed), mine in by_trial.items():
        backbone, method = places.get(cell, _split(cell))
        ends = [curve.points[-1][0] for curve in mine.values() if curve.points]
        values = [_value(float(max(ends)) if ends else None)]
        for metric in ("val/mIoU", "val/mAP"):
            best = _best(mine.get(metric))
            values += [_value(best and best[1]), _value(None if best is None else float(best[0]))]
        values += [_value(_last(mine.get(metric))) for metric in ("val/loss", "train/loss")]
        task = cell.rsplit("/", 1)[-1]
        labels = (backbone, method, task if task in ("seg", "det") else "both")
        rows.append(Row((*labels, "" if seed is None else str(seed)), tuple(values)))
    kept, dropped = lines(facts, curves)
    note = (
        f"At most {MOST_LINES} lines are drawn in one panel, those of the first seeds first, and "
        f"{MOST_ROWS} methods: {dropped} of {dropped + len(kept)} lines are left out. "
        "The table has all trials."
    )
    return Sheet(
        heads=("backbone", "method", "task", "seed"),
        columns=(
            "epochs",
            "best val mIoU",
            "in epoch",
            "best val mAP",
            "in epoch ",
            "last val loss",
            "last train loss",
        ),
        rows=tuple(rows),
        notes=(note,) if dropped else (),
    )


def _value(number: float | None) -> Value:
    # What another task's trial does not have is not missing.
    return Value(Figure(number))


def _places(facts: Facts) -> dict[str, tuple[str, str]]:
    """Backbone and method of each cell."""
    return {
        row.cell: (
            row.backbone,
            row.strategy if row.freeze == "none" else f"{row.strategy}-{row.freeze}",
        )
        for row in facts.rows.final
    }


def _split(cell: str) -> tuple[str, str]:
    backbone, _, rest = cell.partition("/")
    return backbone, rest.partition("/")[0]


def _finite(curve: Curve) -> list[tuple[int, float]]:
    return [point for point in curve.points if math.isfinite(point[1])]


def _best(curve: Curve | None) -> tuple[int, float] | None:
    points = [] if curve is None else _finite(curve)
    return max(points, key=lambda point: point[1]) if points else None


def _last(curve: Curve | None) -> float | None:
    points = [] if curve is None else _finite(curve)
    return points[-1][1] if points else None


def lines(facts: Facts, curves: Sequence[Curve]) -> tuple[list[Line], int]:
    """The lines to draw, and the number of those that are left out."""
    places = _places(facts)
    wanted = [
        (at, metric, dash)
        for at, (_, metrics) in enumerate(PANELS)
        for metric, dash in metrics.items()
    ]
    order = {method.name: at for at, method in enumerate(facts.scores.methods)}
    found: list[tuple[int, Line]] = []
    for curve in curves:
        points = _finite(curve)
        for at, metric, dash in wanted:
            if curve.metric == metric and points:
                backbone, method = places.get(curve.cell, _split(curve.cell))
                line = Line(method, backbone, at, dash, _thinned(points))
                found.append((curve.seed or 0, line))
    # The first seed of every backbone comes before any second one; validation before training.
    found.sort(key=lambda pair: (pair[0], pair[1].dash == ":"))
    methods = sorted({line.method for _, line in found}, key=lambda m: (order.get(m, 99), m))
    kept: list[Line] = []
    room: dict[tuple[str, int], int] = {}
    for _, line in found:
        place = (line.method, line.panel)
        if line.method in methods[:MOST_ROWS] and room.get(place, 0) < MOST_LINES:
            room[place] = room.get(place, 0) + 1
            kept.append(line)
    kept.sort(key=lambda line: order.get(line.method, 99))
    return kept, len(found) - len(kept)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Every n-th point and the last one."""
    step = -(-len(points) // MOST_POINTS)
    return tuple(dict.fromkeys([*points[::step], points[-1]]))


def draw_curves(facts: Facts, drawn: Sequence[Line]) -> Any:
    """A row of panels per method; colour is the backbone."""
    methods = list(dict.fromkeys(line.method for line in drawn))
    names = {line.backbone for line in drawn}
    known = [*facts.scores.backbones, *sorted(names - set(facts.scores.backbones))]
    keys = [key for key in backbone_keys(known) if key.label in names]
    keys = [*keys, Key("validation", SOFT, "-"), Key("training", SOFT, ":")]
    bottom = 20 + len(methods) * (_PANEL + _GAP)
    canvas = Canvas(bottom + 12 + legend_height(keys))
    width = (WIDTH_PT - 3 * _LEFT - 8) / 3
    for at, method in enumerate(methods):
        top = 26 + at * (_PANEL + _GAP)
        canvas.text(4, top - 10, fit(method, 8.5, 400), weight="bold", fontsize=8.5)
        for panel, (title, _) in enumerate(PANELS):
            axis = canvas.axes(_LEFT + panel * (width + _LEFT), top, width, _PANEL)
            mine = [line for line in drawn if (line.method, line.panel) == (method, panel)]
            if at == 0:
                canvas.text(_LEFT + panel * (width + _LEFT) + width, 8, title, ha="right")
            if not mine:
                axis.axis("off")
                axis.text(0.5, 0.5, "no curve", color=SOFT, ha="center", transform=axis.transAxes)
                continue
            for line in mine:
                colour, alpha = series(known.index(line.backbone))
                xs, ys = zip(*line.points, strict=True)
                mark = "o" if len(xs) == 1 else ""
                axis.plot(xs, ys, line.dash, color=colour, alpha=alpha, lw=1.0, marker=mark, ms=3)
            _whole_epochs(axis, {x for line in mine for x, _ in line.points})
            axis.grid(axis="y")
            if at == len(methods) - 1:
                axis.set_xlabel("epoch")
    canvas.legend(keys, bottom + 10)
    return canvas.figure


def _whole_epochs(axis: Any, epochs: set[int]) -> None:
    """Ticks at whole epochs, also where there is only one of them."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    one = len(epochs) == 1
    axis.xaxis.set_major_locator(
        FixedLocator(sorted(epochs)) if one else MaxNLocator(4, integer=True)
    )
    axis.yaxis.set_major_locator(MaxNLocator(4))
