"""The report's tables as data: one `TableSpec` each, and what fills them from a study.

To add a table, add an entry to `SPECS`. A column says where our number comes from and which
published column stands beside it; nothing here looks at a published number to compute ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sharedenc.errors import SharedencError
from sharedenc.report.changes import METHODS, Figure, Method, Scores
from sharedenc.report.collect import StudyRows, TimingRow
from sharedenc.report.published import Published, published, published_backbones

Compare = Literal["data", "architecture", "device"]
Unit = Literal["fraction", "percent", "million", "ms", "qps"]
Count = Callable[[str, str, int], int]

# The reference study's precisions in our words: its INT8 ran a plain file with `trtexec --int8`.
PUBLISHED_PRECISIONS = {"fp32": "fp32", "int8-unscaled": "int8"}
# It computed Table 5.1 with heads of 3 classes, background counted.
CLASSES_OF_5_1 = 3
# The name that the reader gives to a folder with the image counts of the full COCO 2017.
_PUBLISHED_DATA = "coco2017"
IOU_STEPS = tuple(f"{0.5 + 0.05 * i:.2f}" for i in range(1, 10))
SYNTHETIC_WARNING = (
    "Synthetic data: drawn shapes. These figures show that the machinery works; "
    "they are never a result."
)


@dataclass(frozen=True)
class Facts:
    """What columns draw from; ``count`` gives a graph's parameters for a number of classes."""

    rows: StudyRows
    scores: Scores
    count: Count

    def timing(self, backbone: str, graph: str, setup: str, precision: str) -> TimingRow | None:
        """The timing of a graph in a setup, or None."""
        for row in self.rows.timings:
            if (row.backbone, row.graph, row.setup, row.precision) == (
                backbone,
                graph,
                setup,
                precision,
            ):
                return row
        return None


@dataclass(frozen=True, kw_only=True)
class RowKey:
    """One row: what it is called here, and the published row it is compared with."""

    labels: tuple[str, ...]
    published: tuple[str, ...]
    backbone: str
    method: Method = METHODS[0]
    setup: str = ""
    precision: str = ""


@dataclass(frozen=True)
class Column:
    """One column; ``published`` names the published column, None where there is none."""

    name: str
    unit: Unit
    published: str | None
    ours: Callable[[Facts, RowKey], Figure]


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table: ``compare`` says what must agree for the published numbers to stand beside."""

    number: str
    title: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: Callable[[Facts], list[RowKey]]
    compare: Compare = "data"
    reference: str = ""
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """Ours and, where there is one, the published number."""

    ours: Figure
    published: float | None


@dataclass(frozen=True)
class TableRow:
    """Labels and one entry per column."""

    labels: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Table:
    """A filled table. ``published_head`` says whether the numbers may be compared."""

    spec: TableSpec
    published_head: str
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]


def is_synthetic(rows: StudyRows) -> bool:
    """Whether the study's data set was drawn by this package."""
    return rows.data.startswith("synthetic")


def is_published_data(rows: StudyRows, numbers: Published) -> bool:
    """Whether data set and class list are those of the published numbers."""
    from sharedenc.data.classes import VOC20

    assert numbers.class_list == VOC20.name
    return rows.data == _PUBLISHED_DATA and rows.classes == VOC20.names


def build_tables(facts: Facts, specs: Sequence[TableSpec] | None = None) -> list[Table]:
    """Fill every table of ``specs`` (all of `SPECS` when left out)."""
    return [_build(spec, facts, published()) for spec in (SPECS if specs is None else specs)]


def _build(spec: TableSpec, facts: Facts, numbers: Published) -> Table:
    reference = numbers.tables.get(spec.reference or spec.number)
    rows = []
    notes = [spec.note] if spec.note else []
    for key in spec.rows(facts):
        entries = []
        for column in spec.columns:
            beside = None
            if reference is not None and column.published is not None and key.published:
                beside = reference.value(key.published, column.published)
            entries.append(Entry(column.ours(facts, key), beside))
        rows.append(TableRow(key.labels, tuple(entries)))
        notes.extend(_reasons(key, spec.columns, entries))
    return Table(spec, published_head(spec.compare, facts.rows, numbers), tuple(rows), tuple(notes))


def published_head(compare: Compare, rows: StudyRows, numbers: Published) -> str:
    """Column head of the published numbers: comparable, or a reference on something else."""
    if compare == "architecture":
        return "published"
    if compare == "data":
        return "published" if is_published_data(rows, numbers) else "reference (other data)"
    same = bool(rows.timings) and all(
        row.backend == "tensorrt" and row.load == "stream" and "orin" in row.device.lower()
        for row in rows.timings
    )
    return "published" if same else "reference (other device or load)"


def _reasons(key: RowKey, columns: Sequence[Column], entries: Sequence[Entry]) -> list[str]:
    """Why numbers are missing or doubtful, where the cell itself does not say it all."""
    where: dict[str, list[str]] = {}
    for column, entry in zip(columns, entries, strict=True):
        text = entry.ours.mark or entry.ours.why
        if text != entry.ours.short:
            where.setdefault(text, []).append(column.name)
    name = " ".join(key.labels)
    return [f"{name}, {', '.join(heads)}: {text}" for text, heads in where.items()]


def _backbones(facts: Facts) -> list[str]:
    """The published backbones in their order, then the study's others."""
    return list(dict.fromkeys([*published_backbones(), *facts.scores.backbones]))


def _backbone_rows(method: Method) -> Callable[[Facts], list[RowKey]]:
    def rows(facts: Facts) -> list[RowKey]:
        return [
            RowKey(labels=(name,), published=(name,), backbone=name, method=method)
            for name in _backbones(facts)
        ]

    return rows


def _method_rows(facts: Facts) -> list[RowKey]:
    return [
        RowKey(
            labels=(name, method.name),
            published=(name, method.name),
            backbone=name,
            method=method,
        )
        for name in _backbones(facts)
        for method in facts.scores.methods
    ]


def _timing_rows(facts: Facts) -> list[RowKey]:
    """Per setup what was timed in it; the first also has the published precisions not timed yet."""
    timed = {(row.setup, row.backbone, row.precision) for row in facts.rows.timings}
    setups = list(dict.fromkeys(row.setup for row in facts.rows.timings)) or [""]
    untimed = [p for p in PUBLISHED_PRECISIONS if p not in {precision for _, _, precision in timed}]
    keys = []
    for setup in setups:
        here = {precision for where, _, precision in timed if where == setup}
        shown = [
            p for p in PUBLISHED_PRECISIONS if p in here or (p in untimed and setup == setups[0])
        ]
        others = sorted(here - set(shown))
        keys += [
            RowKey(
                labels=(name, precision, setup or "nothing yet"),
                published=(name, PUBLISHED_PRECISIONS[precision]) if precision in shown else (),
                backbone=name,
                setup=setup,
                precision=precision,
            )
            for name in _backbones(facts)
            for precision in (*shown, *others)
            if precision in shown or (setup, name, precision) in timed
        ]
    return keys


def _latency_rows(precision: str) -> Callable[[Facts], list[RowKey]]:
    def rows(facts: Facts) -> list[RowKey]:
        return [
            RowKey(
                labels=(key.backbone, key.labels[2]),
                published=(key.backbone,) if key.published else (),
                backbone=key.backbone,
                setup=key.setup,
                precision=precision,
            )
            for key in _timing_rows(facts)
            if key.precision == precision
        ]

    return rows


def _score(metric: str) -> Column:
    return Column(
        metric,
        "fraction",
        metric,
        lambda facts, key: facts.scores.score(key.backbone, key.method, metric),
    )


def _change(metric: str) -> Column:
    return Column(
        f"{metric} change",
        "percent",
        f"{metric}_rel",
        lambda facts, key: facts.scores.change(key.backbone, key.method, metric),
    )


def _parameters(task: str) -> Column:
    return Column(
        "parameters",
        "million",
        "parameters",
        lambda facts, key: facts.scores.parameters(key.backbone, key.method, task),
    )


def _counted(graph: str) -> Column:
    """Parameters of a graph with the class count that the published table was made with."""

    def ours(facts: Facts, key: RowKey) -> Figure:
        try:
            return Figure.of([facts.count(key.backbone, graph, CLASSES_OF_5_1) / 1e6])
        except SharedencError as error:
            return Figure.missing(f"cannot be built here: {error}")

    return Column(graph, "million", graph, ours)


def _trained(graph: str) -> Column:
    """Parameters of a graph as the study trained it."""

    def ours(facts: Facts, key: RowKey) -> Figure:
        if graph in ("seg", "det"):
            return facts.scores.parameters(key.backbone, METHODS[0], graph)
        dual = Method("dual")
        if graph == "dual":
            return facts.scores.parameters(key.backbone, dual, "")
        from_dual = facts.scores.parameters(key.backbone, dual, "", "encoder")
        if from_dual.value is not None:
            return from_dual
        return facts.scores.parameters(key.backbone, METHODS[0], "seg", "encoder")

    return Column(graph, "million", None, ours)


def _saved(parts: tuple[Column, Column, Column]) -> Column:
    """What one dual network saves against two networks: percent of their sum, negative."""

    def ours(facts: Facts, key: RowKey) -> Figure:
        det, seg, dual = (part.ours(facts, key) for part in parts)
        for figure in (det, seg, dual):
            if figure.value is None:
                return Figure.missing(figure.why)
        assert det.value is not None
        assert seg.value is not None
        assert dual.value is not None
        return Figure.of([100 * (dual.value / (det.value + seg.value) - 1)])

    return Column("dual against two networks", "percent", None, ours)


def _timing(graph: str, what: Literal["throughput", "latency"], name: str = "") -> Column:
    metric = "throughput_qps" if what == "throughput" else "latency_ms/p50"

    def ours(facts: Facts, key: RowKey) -> Figure:
        row = facts.timing(key.backbone, graph, key.setup, key.precision)
        if row is None:
            if (key.backbone, graph) not in facts.rows.registered:
                return Figure.missing("not exported")
            return Figure.missing("not timed yet")
        because = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
        if row.verdict not in ("valid", "suspect") or metric not in row.metrics:
            return Figure.missing(because)
        return Figure.of([row.metrics[metric]], mark="" if row.verdict == "valid" else because)

    unit: Unit = "qps" if what == "throughput" else "ms"
    return Column(name or f"{graph} {what}", unit, name or f"{graph}_{what}", ours)


_GRAPHS = ("encoder", "seg", "det", "dual")
_SEG = (_score("mIoU"), _change("mIoU"), _score("pixel_acc"), _change("pixel_acc"))
_DET = (_score("mAP"), _change("mAP"), _score("mAP50"), _change("mAP50"))
# Table 5.1 has detection first.
_COUNTED = {graph: _counted(graph) for graph in ("encoder", "det", "seg", "dual")}
_TRAINED = {graph: _trained(graph) for graph in _COUNTED}
_P50 = (
    "Latency is the median (p50). The published timings are of the load stream "
    "(two queries in flight); single is one query at a time."
)


def _scores(number: str, title: str, method: Method, columns: tuple[Column, ...]) -> TableSpec:
    return TableSpec(
        number=number,
        title=title,
        heads=("backbone",),
        columns=columns,
        rows=_backbone_rows(method),
    )


SPECS: tuple[TableSpec, ...] = (
    _scores(
        "4.4",
        "Segmentation baselines",
        METHODS[0],
        (_score("mIoU"), _score("pixel_acc"), _parameters("seg")),
    ),
    _scores(
        "4.5",
        "Detection baselines",
        METHODS[0],
        (_score("mAP"), _score("mAP50"), _parameters("det")),
    ),
    _scores("4.6", "Segmentation on the detector's frozen encoder", METHODS[1], _SEG),
    _scores("4.7", "Detection on the segmenter's frozen encoder", METHODS[1], _DET),
    _scores("4.8", "Segmentation on the detector's encoder, biases trained", METHODS[2], _SEG),
    _scores("4.9", "Detection on the segmenter's encoder, biases trained", METHODS[2], _DET),
    _scores("4.10", "Segmentation on the frozen pretrained encoder", METHODS[3], _SEG),
    _scores("4.11", "Detection on the frozen pretrained encoder", METHODS[3], _DET),
    _scores("4.12", "Segmentation on the pretrained encoder, biases trained", METHODS[4], _SEG),
    _scores("4.13", "Detection on the pretrained encoder, biases trained", METHODS[4], _DET),
    _scores("4.14", "Segmentation by the dual network", METHODS[5], _SEG),
    _scores("4.15", "Detection by the dual network", METHODS[5], _DET),
    TableSpec(
        number="4.16",
        title="Latency in FP32",
        heads=("backbone", "timed on"),
        columns=tuple(_timing(graph, "latency", graph) for graph in _GRAPHS[1:]),
        rows=_latency_rows("fp32"),
        compare="device",
        note=_P50,
    ),
    TableSpec(
        number="4.17",
        title="Latency in INT8 without scales",
        heads=("backbone", "timed on"),
        columns=tuple(_timing(graph, "latency", graph) for graph in _GRAPHS[1:]),
        rows=_latency_rows("int8-unscaled"),
        compare="device",
        note=_P50,
    ),
    TableSpec(
        number="5.1",
        title="Parameters, heads of 3 classes as in the published table",
        heads=("backbone",),
        columns=(
            *_COUNTED.values(),
            _saved((_COUNTED["det"], _COUNTED["seg"], _COUNTED["dual"])),
        ),
        rows=_backbone_rows(METHODS[0]),
        compare="architecture",
        note="Counted on the networks of this package; background is one of the 3 classes.",
    ),
    TableSpec(
        number="5.1-ours",
        title="Parameters as this study trained them",
        heads=("backbone",),
        columns=(
            *_TRAINED.values(),
            _saved((_TRAINED["det"], _TRAINED["seg"], _TRAINED["dual"])),
        ),
        rows=_backbone_rows(METHODS[0]),
        compare="architecture",
    ),
    TableSpec(
        number="A.1",
        title="All methods",
        heads=("backbone", "method"),
        columns=(
            _score("mIoU"),
            _score("pixel_acc"),
            _score("mAP"),
            _score("mAP50"),
            *(_score(f"AP_{step}") for step in IOU_STEPS),
        ),
        rows=_method_rows,
        note=(
            "A swap row holds two networks: mIoU is the segmentation head on the detector's "
            "encoder, mAP the detection head on the segmenter's."
        ),
    ),
    TableSpec(
        number="A.2",
        title="Timings",
        heads=("backbone", "precision", "timed on"),
        columns=tuple(
            _timing(graph, what) for graph in _GRAPHS for what in ("throughput", "latency")
        ),
        rows=_timing_rows,
        compare="device",
        note=_P50,
    ),
)
