"""Figure 5.5: the parameters that one dual network saves against two networks."""

from __future__ import annotations

from typing import Any

from sharedenc.errors import SharedencError
from sharedenc.report.changes import METHODS, Figure, Method
from sharedenc.report.figures.canvas import (
    MISSING,
    PAPER,
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
)
from sharedenc.report.figures.table import Row, Sheet, Value
from sharedenc.report.published import published
from sharedenc.report.table_spec import Facts
from sharedenc.report.tables import CLASSES_OF_5_1

GRAPHS = ("seg", "det", "dual")
_NAMES, _BAR = 112.0, 10.0
_GROUP = 2 * _BAR + 10.0
_SAVED = 3


def parameters_sheet(facts: Facts, beside: Facts | None, *, is_published: bool = False) -> Sheet:
    """Millions of parameters, with heads of 3 classes as in the published table.

    Args:
        is_published: The facts are the published ones: what was printed stands for a count.
    """
    rows = []
    for backbone in facts.scores.backbones:
        printed = {g: published().value("5.1", (backbone,), g) for g in GRAPHS}
        counts = {
            graph: _printed(printed[graph]) if is_published else _counted(facts, backbone, graph)
            for graph in GRAPHS
        }
        known = None if beside is None else _saving(*printed.values())
        values = [
            Value(counts[graph], None if beside is None else printed[graph]) for graph in GRAPHS
        ]
        why = next((figure.why for figure in counts.values() if figure.value is None), "")
        saved = _saving(*(figure.value for figure in counts.values()))
        values.append(Value(_figure(saved, why), known))
        if not is_published:
            values.append(Value(_trained(facts, backbone)))
        rows.append(Row((backbone,), tuple(values)))
    columns = ("seg (M)", "det (M)", "dual (M)", "saved (%)")
    return Sheet(
        heads=("backbone",),
        columns=columns if is_published else (*columns, "saved as trained (%)"),
        rows=tuple(rows),
        beside="" if beside is None else "published",
    )


def _printed(value: float | None) -> Figure:
    return _figure(value, "not printed")


def _figure(value: float | None, why: str) -> Figure:
    return Figure.missing(why) if value is None else Figure.of([value])


def _counted(facts: Facts, backbone: str, graph: str) -> Figure:
    try:
        return Figure.of([facts.count(backbone, graph, CLASSES_OF_5_1) / 1e6])
    except SharedencError as error:
        return Figure.missing(f"cannot be built here: {error}")


def _trained(facts: Facts, backbone: str) -> Figure:
    seg, det = (facts.scores.parameters(backbone, METHODS[0], task) for task in ("seg", "det"))
    dual = facts.scores.parameters(backbone, Method("dual"), "")
    why = next((figure.why for figure in (seg, det, dual) if figure.value is None), "")
    return _figure(_saving(seg.value, det.value, dual.value), why)


def _saving(seg: float | None, det: float | None, dual: float | None) -> float | None:
    """Percent of two networks' sum that one network does without."""
    if seg is None or det is None or dual is None:
        return None
    return 100 * (1 - dual / (seg + det))


def draw_parameters(sheet: Sheet) -> Any:
    """Two bars per backbone: both networks, one on the other, and the dual one below."""
    colours = [series(at)[0] for at in (0, 5, 2)]
    names = ("segmentation network", "detection network", "dual network")
    keys = [Key(name, colour) for name, colour in zip(names, colours, strict=True)]
    if sheet.is_beside:
        keys.append(Key(sheet.beside, published_colour(False), "-"))
    height = max(30.0, len(sheet.rows) * _GROUP + 4)
    canvas = Canvas(height + 44 + legend_height(keys))
    axis = canvas.axes(_NAMES, 6, WIDTH_PT - _NAMES - 60, height)
    ends = [0.0]
    for at, row in enumerate(sheet.rows):
        y = 4 + at * _GROUP
        name = fit(row.labels[0], SMALL_PT, _NAMES - 12)
        canvas.text(_NAMES - 8, 6 + y + _BAR, name, ha="right")
        seg, det, dual = (value.number for value in row.values[:3])
        if seg is not None and det is not None:
            axis.barh(y + _BAR / 2, seg, _BAR - 1, color=colours[0])
            axis.barh(y + _BAR / 2, det, _BAR - 1, left=seg, color=colours[1])
            line(axis, [seg, seg], [y + 0.5, y + _BAR - 0.5], color=PAPER)
            ends.append(seg + det)
        else:
            _say(axis, 0, y + _BAR / 2, f"{MISSING} {_short(row, 110)}", color=SOFT)
        if dual is not None:
            axis.barh(y + 1.5 * _BAR, dual, _BAR - 1, color=colours[2])
            ends.append(dual)
        else:
            _say(axis, 0, y + 1.5 * _BAR, f"{MISSING} {_short(row, 110)}", color=SOFT)
        saved = row.values[_SAVED].number
        if saved is not None and dual is not None:
            text = f"{-saved:+.1f} %".replace("-", "\N{MINUS SIGN}")
            _say(axis, dual, y + 1.5 * _BAR, text, weight="bold")
        known = [value.published for value in row.values[:3]]
        marks = []
        if known[0] is not None and known[1] is not None:
            marks.append((known[0] + known[1], y + _BAR / 2))
        if known[2] is not None:
            marks.append((known[2], y + 1.5 * _BAR))
        for x, middle in marks:
            ends.append(x)
            reach = [middle - _BAR / 2, middle + _BAR / 2]
            line(axis, [x, x], reach, color=published_colour(False), lw=1.1)
    axis.set_xlim(*limits(ends, zero=True))
    axis.set_ylim(height, 0)
    axis.set_yticks([])
    axis.grid(axis="x")
    axis.set_xlabel("million parameters")
    canvas.legend(keys, height + 42)
    return canvas.figure


def _say(axis: Any, x: float, y: float, text: str, **how: Any) -> None:
    """A text right of a place: a leading space would be none in the page."""
    axis.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center_baseline", **how)


def _short(row: Row, width: float) -> str:
    why = next((value.why for value in row.values if value.why), "missing")
    return fit(why.split(":")[0], SMALL_PT, width)
