"""Tables of what was timed and of the files that it was timed with: 4.16, 4.17, A.2, S.1, S.2.

Each table of timings holds one family: figures of different tools are never in one column.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from jetson_agent.protocol import COMPARISON, INT8_RECIPES
from sharedenc.report.changes import Figure, joined, relative_change
from sharedenc.report.collect import TimingRow
from sharedenc.report.table_spec import Column, Facts, RowKey, TableSpec, Unit

# The reference study's precisions in our words: its INT8 ran a plain file with `trtexec --int8`.
PUBLISHED_PRECISIONS = {"fp32": "fp32", "int8-unscaled": "int8"}
PUBLISHED_LOAD = "stream"
GRAPHS = ("encoder", "seg", "det", "dual")
INT8_KINDS = tuple(f"int8-{recipe}" for recipe in INT8_RECIPES)
_P50 = (
    "Latency is the median (p50). The published timings are of the load stream (two queries in "
    "flight) and stand beside such where there are any; single is one query at a time."
)


def chosen_family(facts: Facts, family: str | None) -> str:
    """Whose timings a table holds: the first family's where it does not say."""
    return family or next(iter(facts.families), "")


def _timing_rows(facts: Facts, family: str | None = None) -> list[RowKey]:
    """Per setup what was timed in it; the first also has the published precisions not timed yet."""
    chosen, first = chosen_family(facts, family), chosen_family(facts, None)
    rows = [row for row in facts.rows.timings if row.family == chosen and row.graph in GRAPHS]
    timed = {(row.setup, row.backbone, row.precision) for row in rows}
    setups = list(dict.fromkeys(row.setup for row in rows)) or [""]
    streams = {row.setup for row in rows if row.load == PUBLISHED_LOAD}
    home = next((setup for setup in setups if setup in streams), setups[0])
    # What the reference study timed is asked of the first family alone.
    expected = PUBLISHED_PRECISIONS if chosen == first else {}
    untimed = [p for p in expected if p not in {precision for _, _, precision in timed}]
    keys = []
    for setup in setups:
        here = {precision for where, _, precision in timed if where == setup}
        shown = [p for p in PUBLISHED_PRECISIONS if p in here or (p in untimed and setup == home)]
        others = sorted(here - set(shown))
        # One query at a time is not what was published; it stands there if nothing else was timed.
        beside = shown if setup in streams or not streams else []
        keys += [
            RowKey(
                labels=(name, precision, setup or "nothing yet"),
                published=(name, PUBLISHED_PRECISIONS[precision]) if precision in beside else (),
                backbone=name,
                setup=setup,
                precision=precision,
            )
            for name in facts.backbones
            for precision in (*shown, *others)
            if precision in shown or (setup, name, precision) in timed
        ]
    return keys


def _latency_rows(precision: str, family: str | None = None) -> Callable[[Facts], list[RowKey]]:
    def rows(facts: Facts) -> list[RowKey]:
        return [
            RowKey(
                labels=(key.backbone, key.labels[2]),
                published=(key.backbone,) if key.published else (),
                backbone=key.backbone,
                setup=key.setup,
                precision=precision,
            )
            for key in _timing_rows(facts, family)
            if key.precision == precision
        ]

    return rows


def _sharing_rows(facts: Facts, family: str | None = None) -> list[RowKey]:
    """Per backbone, setup and precision what both kinds of serving were timed in."""
    chosen = chosen_family(facts, family)
    places = dict.fromkeys(
        (row.backbone, row.setup, row.precision)
        for row in facts.rows.timings
        if row.family == chosen and row.graph in ("seg", "det", "dual", COMPARISON)
    )
    return [
        RowKey(
            labels=(backbone, precision, setup),
            published=(),
            backbone=backbone,
            setup=setup,
            precision=precision,
        )
        for backbone, setup, precision in places
    ]


def _export_rows(facts: Facts) -> list[RowKey]:
    """Per exported graph with heads the kinds of its INT8 files."""
    return [
        RowKey(
            labels=(
                export.cell or export.backbone,
                export.graph,
                kind,
                f"{export.images} {export.split} photos" if export.images else "nothing yet",
            ),
            published=(),
            backbone=export.backbone,
            setup=export.graph,
            precision=kind,
            cell=export.cell,
        )
        for export in facts.rows.exports
        if export.graph != "encoder"
        for kind in INT8_KINDS
    ]


def _timing(graph: str, what: Literal["throughput", "latency"], name: str = "") -> Column:
    metric = "throughput_qps" if what == "throughput" else "latency_ms/p50"

    def ours(facts: Facts, key: RowKey) -> Figure:
        row = facts.timing(key.backbone, graph, key.setup, key.precision)
        return _untimed(facts, key.backbone, graph) if row is None else timed_figure(row, metric)

    unit: Unit = "qps" if what == "throughput" else "ms"
    return Column(name or f"{graph} {what}", unit, name or f"{graph}_{what}", ours)


def _untimed(facts: Facts, backbone: str, graph: str) -> Figure:
    """Why there is no timing."""
    if facts.printed:
        return Figure.missing("not printed")
    if graph != COMPARISON and (backbone, graph) not in facts.rows.registered:
        return Figure.missing("not exported")
    return Figure.missing("not timed yet")


def timed_figure(row: TimingRow, metric: str) -> Figure:
    """A metric of a timing, with the caveat that belongs to it."""
    because = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
    if not row.has_figure:
        return Figure.missing(because)
    if metric not in row.metrics:
        return Figure.missing(f"not measured: the timing has no {metric}")
    if not math.isfinite(row.metrics[metric]):
        return Figure.missing(f"NaN: the timing's {metric} is not a number")
    mark = "" if row.verdict == "valid" else because
    if row.stale:
        stale = f"stale: timed with {row.runtime}, and the device has {row.stale} now"
        mark = f"{mark}; {stale}" if mark else stale
    return Figure.of([row.metrics[metric]], mark=mark)


def _part(facts: Facts, key: RowKey, graph: str, metric: str) -> Figure:
    row = facts.timing(key.backbone, graph, key.setup, key.precision)
    return _untimed(facts, key.backbone, graph) if row is None else timed_figure(row, metric)


def _one_after_the_other(facts: Facts, key: RowKey) -> Figure:
    """Two separate networks, each timed by itself: the sum of their medians."""
    parts = [_part(facts, key, graph, "latency_ms/p50") for graph in ("seg", "det")]
    values = [part.value for part in parts if part.value is not None]
    if len(values) < len(parts):
        return Figure.missing(next(part.why for part in parts if part.value is None))
    return Figure.of([sum(values)], mark=joined(part.mark for part in parts))


def _alone(facts: Facts, key: RowKey) -> Figure:
    return _part(facts, key, "dual", "latency_ms/p50")


def _saving(facts: Facts, key: RowKey) -> Figure:
    pair, shared = _one_after_the_other(facts, key), _alone(facts, key)
    if pair.value is None or shared.value is None:
        return Figure.missing(pair.why or shared.why)
    return Figure.of([relative_change(shared.value, pair.value)], mark=pair.mark or shared.mark)


def _same_run(metric: str) -> Callable[[Facts, RowKey], Figure]:
    return lambda facts, key: _part(facts, key, COMPARISON, metric)


def _ratio(metric: str) -> Callable[[Facts, RowKey], Figure]:
    """A ratio of one run as a change in percent."""

    def ours(facts: Facts, key: RowKey) -> Figure:
        found = _part(facts, key, COMPARISON, metric)
        if found.value is None:
            return found
        return Figure.of([100 * (found.value - 1)], mark=found.mark)

    return ours


def _file_score(metric: str, kind: str = "") -> Column:
    """A score of an exported file: of the float one, of the INT8 one, or what was lost."""

    def ours(facts: Facts, key: RowKey) -> Figure:
        export = next(
            e
            for e in facts.rows.exports
            if (e.backbone, e.cell, e.graph) == (key.backbone, key.cell, key.setup)
        )
        exact = export.scores.get("float", {})
        own = export.scores.get(key.precision, {})
        if metric not in exact:
            wanted = "seg" if metric == "mIoU" else "det"
            has_it = export.graph in (wanted, "dual")
            return Figure.missing("not scored" if has_it else "no such head")
        if not _is_score(exact[metric]):
            return Figure.missing(f"undefined: the float file scores {exact[metric]:g}")
        if kind == "float":
            return Figure.of([exact[metric]])
        if metric not in own:
            reason = export.int8_reason
            return Figure.missing(f"no INT8 file: {reason}" if reason else "no INT8 file")
        if not _is_score(own[metric]):
            return Figure.missing(f"undefined: the INT8 file scores {own[metric]:g}")
        return Figure.of([own[metric] if kind == "int8" else exact[metric] - own[metric]])

    return Column(f"{metric} {kind}", "fraction", None, ours)


def _is_score(value: float) -> bool:
    """COCO's scorer says -1 where a score is undefined."""
    return math.isfinite(value) and value >= 0


def latency_table(number: str, precision: str, family: str | None = None) -> TableSpec:
    """Median latencies of one precision."""
    titles = {"fp32": "FP32", "int8-unscaled": "INT8 without scales", "int8": "INT8"}
    title = f"Latency in {titles.get(precision, precision)}"
    return TableSpec(
        number=number,
        title=f"{title}, {family}" if family else title,
        heads=("backbone", "timed on"),
        columns=tuple(_timing(graph, "latency", graph) for graph in GRAPHS[1:]),
        rows=_latency_rows(precision, family),
        compare="device",
        family=family,
        reference="4.16" if precision == "fp32" else "4.17",
        note=_P50,
    )


def timing_table(number: str, family: str | None = None) -> TableSpec:
    """Throughput and median latency of every graph and precision."""
    return TableSpec(
        number=number,
        title=f"Timings, {family}" if family else "Timings",
        heads=("backbone", "precision", "timed on"),
        columns=tuple(
            _timing(graph, what) for graph in GRAPHS for what in ("throughput", "latency")
        ),
        rows=lambda facts: _timing_rows(facts, family),
        compare="device",
        family=family,
        reference="A.2",
        note=f"{_P50} Timings of different tools are never in one table.",
    )


def sharing_table(number: str, family: str | None = None) -> TableSpec:
    """One shared network against two separate ones."""
    title = "One shared network against two separate ones"
    return TableSpec(
        number=number,
        title=f"{title}, {family}" if family else title,
        heads=("backbone", "precision", "timed on"),
        columns=(
            Column("two, timed by themselves", "ms", None, _one_after_the_other),
            Column("shared, timed by itself", "ms", None, _alone),
            Column("change", "percent", None, _saving),
            Column("two, in one run", "ms", None, _same_run("pair_ms/p50")),
            Column("shared, in one run", "ms", None, _same_run("dual_ms/p50")),
            Column("change in one run", "percent", None, _ratio("ratio/p50")),
            Column("least", "percent", None, _ratio("ratio/min")),
            Column("most", "percent", None, _ratio("ratio/max")),
        ),
        rows=lambda facts: _sharing_rows(facts, family),
        compare="architecture",
        family=family,
        note=(
            "Medians. Two separate networks serve both tasks one after the other. In one run, "
            "every round times all three, so that nothing but the networks differs; least and "
            "most are over the rounds."
        ),
    )


ACCURACY_TABLE = TableSpec(
    number="S.2",
    title="What INT8 costs in accuracy",
    heads=("exported from", "graph", "file", "scored on"),
    columns=(
        *(_file_score("mIoU", kind) for kind in ("float", "int8", "drop")),
        *(_file_score("mAP", kind) for kind in ("float", "int8", "drop")),
    ),
    rows=_export_rows,
    compare="architecture",
    note=(
        "Scores of the very files that are timed, through ONNX Runtime: int8-trt is what TensorRT "
        "builds from, int8-cpu what ONNX Runtime times. A drop is float less INT8."
    ),
)
