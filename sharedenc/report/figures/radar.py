"""Figure 4.1: the baselines of each backbone, every quantity as a share of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sharedenc.report.changes import METHODS, Figure, Scores, task_of
from sharedenc.report.deployments import Option
from sharedenc.report.figures.canvas import (
    LINE,
    MISSING,
    SMALL_PT,
    SOFT,
    WIDTH_PT,
    Canvas,
    Key,
    fit,
    legend_height,
    line,
    published_colour,
    series,
    text_width,
)
from sharedenc.report.figures.table import Row, Sheet, Value, head_beside, strictest_head
from sharedenc.report.table_spec import Facts

_SCORES = {"mIoU": "mIoU", "pixel accuracy": "pixel_acc", "mAP": "mAP", "mAP50": "mAP50"}
_LATENCY, _TRAINING, _PARAMETERS = "latency (ms)", "training (images/s)", "parameters (M)"
# What is less where it is better.
_COSTS = (_LATENCY, _PARAMETERS)
# What an axis is called: with room, and without.
_AXES = {
    "mIoU": ("mIoU", "mIoU"),
    "pixel accuracy": ("pixel accuracy", "acc."),
    "mAP": ("mAP", "mAP"),
    "mAP50": ("mAP50", "mAP50"),
    _LATENCY: ("speed", "speed"),
    _TRAINING: ("training", "train."),
    _PARAMETERS: ("compactness", "compact"),
}
_RINGS = (0.25, 0.5, 0.75, 1.0)


def radar_sheet(
    facts: Facts,
    found: Sequence[Option],
    beside: Facts | None,
    published_options: Sequence[Option],
    *,
    is_published: bool = False,
) -> Sheet:
    """The baselines: scores, time and parameters for both tasks, and speed of training.

    Args:
        found: Options of one board, precision and statistic, or none.
        published_options: The published ones that may stand beside them.
    """
    ours = {o.deployment.backbone: o for o in found if o.deployment.strategy == "baseline"}
    theirs = {
        o.deployment.backbone: o
        for o in published_options
        if o.deployment.strategy == "baseline"
        and (not found or (o.precision, o.stat) == (found[0].precision, found[0].stat))
    }
    columns = [*_SCORES, _LATENCY, _TRAINING, _PARAMETERS]
    rows = []
    for backbone in facts.scores.backbones:
        mine = _quantities(facts.scores, backbone, ours.get(backbone))
        known = _quantities(beside.scores, backbone, theirs.get(backbone)) if beside else {}
        values = [Value(mine[column], known[column].value if known else None) for column in columns]
        rows.append(Row((backbone,), tuple(values)))
    kept = [
        at for at, _ in enumerate(columns) if any(row.values[at].number is not None for row in rows)
    ]
    notes = []
    for at, column in enumerate(columns):
        if at not in kept and rows:
            why = rows[0].values[at].why
            if is_published and column == _TRAINING:
                why = "the reference study did not print it"
            notes.append(f"{column} is left out: {why}.")
    if found:
        notes.append(
            f"Latency is that of both baselines, one after the other: {found[0].board}, "
            f"{found[0].precision}, {found[0].stat}."
        )
    return Sheet(
        heads=("backbone",),
        columns=tuple(columns[at] for at in kept),
        rows=tuple(Row(row.labels, tuple(row.values[at] for at in kept)) for row in rows),
        beside=strictest_head(facts, beside) if found else head_beside(facts, beside, "data"),
        notes=tuple(notes),
    )


def _quantities(scores: Scores, backbone: str, option: Option | None) -> dict[str, Figure]:
    base = METHODS[0]
    found = {name: scores.score(backbone, base, metric) for name, metric in _SCORES.items()}
    found[_LATENCY] = Figure.missing("not timed yet") if option is None else option.latency
    found[_TRAINING] = _speed(scores, backbone)
    seg, det = (scores.parameters(backbone, base, task_of(m)) for m in ("mIoU", "mAP"))
    if seg.value is None or det.value is None:
        found[_PARAMETERS] = Figure.missing(seg.why or det.why)
    else:
        found[_PARAMETERS] = Figure.of([seg.value + det.value])
    return found


def _speed(scores: Scores, backbone: str) -> Figure:
    """Mean over the tasks of the images per second that a baseline trains with."""
    means = []
    for task in ("seg", "det"):
        speeds = [
            row.metrics["images_per_s"]
            for row in scores.rows(backbone, METHODS[0], task)
            if row.state == "done" and row.metrics.get("images_per_s", 0.0) > 0
        ]
        if not speeds:
            return Figure.missing(f"no finished {task} baseline says its images per second")
        means.append(sum(speeds) / len(speeds))
    return Figure.of([sum(means) / len(means)])


def shares(values: Sequence[float | None], *, less_is_better: bool) -> list[float | None]:
    """Each value as a share (0..1) of the best; of a cost the share is the least cost by it."""
    known = [value for value in values if value is not None and value > 0]
    if not known:
        return [None] * len(values)
    best = min(known) if less_is_better else max(known)
    return [
        None
        if v is None or v < 0 or (less_is_better and v == 0)
        else (best / v if less_is_better else v / best)
        for v in values
    ]


def draw_radar(sheet: Sheet) -> Any:
    """One radar per backbone; the rim is the best backbone of each quantity."""
    count = len(sheet.rows)
    across = min(count, 2 if count <= 4 else 3) or 1
    down = -(-count // across) or 1
    box = WIDTH_PT / min(across, 3) if across > 1 else 260.0
    gap = (WIDTH_PT - across * box) / across
    keys = []
    if sheet.is_beside:
        keys.append(Key(sheet.beside, published_colour(sheet.is_reference), "--"))
    high = min(box * 0.98, 182.0)
    canvas = Canvas(down * high + 4 + legend_height(keys))
    ours, theirs = _all_shares(sheet, "number"), _all_shares(sheet, "published")
    for at, row in enumerate(sheet.rows):
        left = (at % across) * (box + gap) + gap / 2
        axis = canvas.axes(left, (at // across) * high, box, high)
        _draw_web(axis, [_AXES[c][across > 2] for c in sheet.columns], row.labels[0], box, high)
        colour, _ = series(at)
        # Published lies on top, as a thin outline.
        _draw_polygon(axis, ours[at], colour, is_filled=True)
        if any(share is not None for share in theirs[at]):
            edge = published_colour(sheet.is_reference)
            _draw_polygon(axis, theirs[at], edge, is_filled=False)
    canvas.legend(keys, down * high + 2)
    return canvas.figure


def _all_shares(sheet: Sheet, which: str) -> list[list[float | None]]:
    """Shares per row and column."""
    by_column = [
        shares(
            [getattr(row.values[at], which) for row in sheet.rows], less_is_better=column in _COSTS
        )
        for at, column in enumerate(sheet.columns)
    ]
    return [[column[at] for column in by_column] for at in range(len(sheet.rows))]


def _spokes(count: int) -> list[tuple[float, float]]:
    turn = [2 * math.pi * at / count for at in range(count)]
    return [(math.sin(angle), math.cos(angle)) for angle in turn]


def _draw_web(axis: Any, names: list[str], title: str, box: float, high: float) -> None:
    spokes = _spokes(len(names)) if names else []
    # The rim is 1; the room around it, in points, is for the names of the axes and the title.
    sides = [
        (box / 2 - 3 - text_width(name, SMALL_PT)) / (1.07 * abs(x))
        for (x, _), name in zip(spokes, names, strict=True)
        if abs(x) > 0.1
    ]
    radius = max(20.0, min([high / 2 - 20, *sides]))
    axis.set_xlim(-box / 2 / radius, box / 2 / radius)
    axis.set_ylim(-(high / 2 - 6) / radius, (high / 2 + 6) / radius)
    axis.axis("off")
    for ring in _RINGS:
        xs, ys = ([ring * spoke[at] for spoke in [*spokes, *spokes[:1]]] for at in (0, 1))
        line(axis, xs, ys, color=SOFT if ring == 1 else LINE, lw=0.6)
    for (x, y), name in zip(spokes, names, strict=True):
        line(axis, [0, x], [0, y], color=LINE, lw=0.6)
        side = "center" if abs(x) < 0.1 else "left" if x > 0 else "right"
        level = "bottom" if y > 0.9 else "top" if y < -0.9 else "center"
        axis.text(1.07 * x, 1.07 * y, name, ha=side, va=level)
    corner = ((4 - box / 2) / radius, (high / 2 + 4) / radius)
    axis.text(*corner, fit(title, 8.5, 0.75 * box), fontsize=8.5, weight="bold", va="top")


def _draw_polygon(
    axis: Any, lengths: Sequence[float | None], colour: str, *, is_filled: bool
) -> None:
    spokes = _spokes(len(lengths)) if lengths else []
    tips = [
        None if length is None else (length * x, length * y)
        for length, (x, y) in zip(lengths, spokes, strict=True)
    ]
    whole = [tip for tip in tips if tip is not None]
    if is_filled and len(whole) > 2:
        axis.fill(*zip(*whole, strict=True), color=colour, alpha=0.22, linewidth=0)
    for at, tip in enumerate(tips):
        after = tips[(at + 1) % len(tips)]
        if tip is not None and after is not None:
            wide, dash = (1.5, "-") if is_filled else (0.9, (0, (3, 2)))
            line(axis, [tip[0], after[0]], [tip[1], after[1]], color=colour, lw=wide, ls=dash)
        if tip is not None and is_filled:
            line(axis, [tip[0]], [tip[1]], "o", color=colour, markersize=3)
        if tip is None and is_filled:
            x, y = spokes[at]
            axis.text(
                0.12 * x,
                0.12 * y,
                MISSING,
                color=colour,
                ha="center",
                va="center",
                fontsize=SMALL_PT + 2,
            )
