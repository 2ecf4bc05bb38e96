"""What a deployment costs: accuracy against latency on a board, and against parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sharedenc.report.boards import IN_ONE_RUN
from sharedenc.report.changes import Figure
from sharedenc.report.deployments import Deployment, Option
from sharedenc.report.figures.canvas import (
    BREAK,
    INK,
    MARKERS,
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
from sharedenc.report.figures.table import Row, Sheet, Value

_LEFT, _PANEL, _TOP = 50.0, 190.0, 18.0
# Published timings are medians of two queries in flight.
PUBLISHED_STAT = "p50-stream"
# From this ratio of the slowest to the fastest on, the axis is logarithmic.
_WIDE = 15.0
_STEPS = 24


def front_sheet(found: Sequence[Option], beside: Sequence[Option], head: str) -> Sheet:
    """The options of one board, precision and statistic.

    Args:
        beside: The published options, of any precision.
        head: What they are.
    """
    known = {
        (option.deployment.name, option.precision): option
        for option in beside
        if option.stat == PUBLISHED_STAT
    }
    first = found[0]
    rows = []
    for option in found:
        printed = None
        if first.stat == PUBLISHED_STAT:
            printed = known.get((option.deployment.name, option.precision))
        pairs = _pairs(
            (option.latency, option.mIoU, option.mAP),
            () if printed is None else (printed.latency, printed.mIoU, printed.mAP),
        )
        front = "yes" if option.on_front else "no"
        labels = (*_labels(option.deployment), str(option.deployment.passes), front)
        rows.append(Row(labels, pairs))
    return Sheet(
        heads=("backbone", "deployment", "encoder passes", "on the front"),
        columns=(f"latency {first.stat} (ms)", "mIoU", "mAP"),
        rows=tuple(rows),
        beside=head,
        keys=2,
        notes=(f"Timed on {first.board}, {first.precision}, {first.stat}.",),
    )


def weight_sheet(
    found: Sequence[Deployment], beside: Sequence[Deployment], best: Iterable[str], head: str
) -> Sheet:
    """All deployments by what they store; ``best`` names those on the front."""
    known = {deployment.name: deployment for deployment in beside}
    names = set(best)
    rows = []
    for deployment in found:
        printed = known.get(deployment.name)
        pairs = _pairs(
            (deployment.parameters, deployment.mIoU, deployment.mAP),
            () if printed is None else (printed.parameters, printed.mIoU, printed.mAP),
        )
        front = "yes" if deployment.name in names else "no"
        rows.append(Row((*_labels(deployment), str(deployment.passes), front), pairs))
    return Sheet(
        heads=("backbone", "deployment", "encoder passes", "on the front"),
        columns=("parameters (M)", "mIoU", "mAP"),
        rows=tuple(rows),
        beside=head,
        keys=2,
    )


def memory_sheet(found: Sequence[Option], best: Iterable[str]) -> Sheet:
    """The options of one board and precision by the memory that they take there.

    Args:
        best: Names of the deployments on the front.
    """
    names = set(best)
    rows = []
    for option in found:
        whole = option.deployment
        front = "yes" if whole.name in names else "no"
        pairs = _pairs((option.memory, option.mIoU, option.mAP), ())
        rows.append(Row((*_labels(whole), str(whole.passes), front), pairs))
    return Sheet(
        heads=("backbone", "deployment", "encoder passes", "on the front"),
        columns=("memory (MiB)", "mIoU", "mAP"),
        rows=tuple(rows),
        beside="",
        keys=2,
        notes=(f"On {found[0].board}, {found[0].precision}.",),
    )


def _pairs(ours: Sequence[Figure], printed: Sequence[Figure]) -> tuple[Value, ...]:
    known = [figure.value for figure in printed] or [None] * len(ours)
    return tuple(Value(figure, value) for figure, value in zip(ours, known, strict=True))


def _labels(deployment: Deployment) -> tuple[str, str]:
    return deployment.backbone, deployment.name.removeprefix(f"{deployment.backbone}/")


def draw_front(sheet: Sheet) -> Any:
    """A panel per task: colour is the backbone, the marker is what is deployed.

    The line is the panel's own front: nothing is both cheaper and better. Hollow marks rest on a
    number in doubt, which a note explains.
    """
    backbones, kinds = sheet.labels(0), sheet.labels(1)
    edge = published_colour(sheet.is_reference)
    keys = backbone_keys(backbones)
    keys.append(BREAK)
    keys += [Key(kind, SOFT, _marker(kinds, kind)) for kind in kinds]
    keys.append(BREAK)
    if any(map(_in_doubt, sheet.rows)):
        keys.append(Key("cost in doubt", SOFT, "hollow o"))
    keys.append(Key("front", INK, "-"))
    if sheet.is_beside:
        keys.append(Key(f"{sheet.beside} (outlined)", edge, "hollow o"))
    legend_top = _TOP + _PANEL + 38
    canvas = Canvas(legend_top + legend_height(keys) + 2)
    width = (WIDTH_PT - 2 * _LEFT - 24) / 2
    for panel in (1, 2):
        left = _LEFT + (panel - 1) * (width + _LEFT + 16)
        axis = canvas.axes(left, _TOP, width, _PANEL, ("Segmentation", "Detection")[panel - 1])
        axis.set_xlabel(sheet.columns[0].replace("(M)", "(million)"))
        axis.set_ylabel(f"test {sheet.columns[panel]}")
        axis.grid()
        _set_limits(axis, sheet, panel)
        _draw_points(axis, sheet, panel, backbones, kinds, edge)
    canvas.legend(keys, legend_top)
    return canvas.figure


def _draw_points(
    axis: Any, sheet: Sheet, panel: int, backbones: list[str], kinds: list[str], edge: str
) -> None:
    points: list[tuple[float, float, str]] = []
    rings = []
    low_x, low_y = axis.get_xlim()[0], axis.get_ylim()[0]
    for row in sheet.rows:
        cost, score = row.values[0], row.values[panel]
        colour, alpha = series(backbones.index(row.labels[0]))
        marker = _marker(kinds, row.labels[1])
        x, y = cost.number, score.number
        if x is not None and y is not None:
            points.append((x, y, f"{row.labels[0]} {row.labels[1]}"))
            face = PAPER if _in_doubt(row) else colour
            line(axis, [x], [y], marker, color=colour, mfc=face, alpha=alpha, ms=6, zorder=3)
        elif x is not None or y is not None:
            spot = (low_x if x is None else x, low_y if y is None else y)
            axis.text(*spot, MISSING, color=colour, ha="center", va="center", clip_on=False)
        if cost.published is not None and score.published is not None:
            known_x, known_y = cost.published, score.published
            rings.append((known_x, known_y))
            line(
                axis, [known_x], [known_y], marker, mfc="none", mec=edge, mew=0.8, ms=7.5, zorder=2
            )
    best = panel_front([point[:2] for point in points])
    if best:
        # From the cheapest on, what the best score is that so much buys.
        end = axis.get_xlim()[1]
        xs = [best[0][0], *(point[0] for point in best), end]
        ys = [low_y, *(point[1] for point in best), best[-1][1]]
        line(axis, xs, ys, color=INK, drawstyle="steps-post", zorder=1)
    named = [point for point in points if point[:2] in best]
    obstacles = [*(point[:2] for point in points), *rings, *_along(best, low_y, axis.get_xlim()[1])]
    place_labels(axis, named, obstacles, must=False)


def _in_doubt(row: Row) -> bool:
    """Whether the cost has a caveat; that two networks were timed in one run is none."""
    return row.values[0].ours.mark not in ("", IN_ONE_RUN)


def _along(
    best: Sequence[tuple[float, float]], low: float, end: float
) -> Iterator[tuple[float, float]]:
    """Places on the front's line, close enough for no label to fit between them."""
    level = low
    for at, (x, y) in enumerate(best):
        after = best[at + 1][0] if at + 1 < len(best) else end
        for step in range(1, _STEPS):
            share = step / _STEPS
            yield x, level + share * (y - level)
            yield x + share * (after - x), y
        level = y


def panel_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other is both cheaper than (or as cheap as) and better than, cheapest first.

    Args:
        points: Cost and score.
    """
    best: list[tuple[float, float]] = []
    for cost, score in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def _set_limits(axis: Any, sheet: Sheet, panel: int) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    pairs = [(row.values[0], row.values[panel]) for row in sheet.rows]
    xs = [v for cost, _ in pairs for v in (cost.number, cost.published) if v is not None]
    ys = [v for _, score in pairs for v in (score.number, score.published) if v is not None]
    axis.set_ylim(*limits(ys, pad=0.1))
    if xs and min(xs) > 0 and max(xs) / min(xs) > _WIDE:
        axis.set_xscale("log")
        axis.set_xlim(min(xs) / 1.3, max(xs) * 1.3)
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_xlim(*limits(xs, zero=True))


def _marker(kinds: list[str], kind: str) -> str:
    return MARKERS[kinds.index(kind) % len(MARKERS)]
