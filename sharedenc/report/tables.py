"""The report's tables as data: one `TableSpec` each, and how they are filled from a study.

To add a table, add an entry to `SPECS`. A column says where our number comes from and which
published column stands beside it; nothing here looks at a published number to compute ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress

from jetson_agent.protocol import slug
from sharedenc.errors import SharedencError
from sharedenc.report.changes import METHODS, Figure, Method, against_sum
from sharedenc.report.collect import StudyRows
from sharedenc.report.difference import difference
from sharedenc.report.published import PUBLISHED_DATA, Published
from sharedenc.report.published import published as numbers_of_reference
from sharedenc.report.table_notes import (
    PRINTED,
    RECOMPUTED,
    about_published,
    about_seeds,
    reasons,
)
from sharedenc.report.table_spec import (
    COMPARABLE,
    Column,
    Compare,
    Entry,
    Facts,
    RowKey,
    Table,
    TableRow,
    TableSpec,
)
from sharedenc.report.timing_tables import (
    ACCURACY_TABLE,
    GRAPHS,
    PUBLISHED_LOAD,
    chosen_family,
    latency_table,
    sharing_table,
    timing_table,
)

# The reference study computed Table 5.1 with heads of 3 classes, background counted.
CLASSES_OF_5_1 = 3
IOU_STEPS = tuple(f"{0.5 + 0.05 * i:.2f}" for i in range(1, 10))
SYNTHETIC_WARNING = (
    "Synthetic data: drawn shapes. These figures show that the machinery works; "
    "they are never a result."
)


def is_synthetic(rows: StudyRows) -> bool:
    """Whether the study's data set was drawn by this package."""
    return rows.data.startswith("synthetic")


def is_published_data(rows: StudyRows, numbers: Published) -> bool:
    """Whether data set and class list are those of the published numbers."""
    from sharedenc.data.classes import VOC20

    assert numbers.class_list == VOC20.name
    return rows.data == PUBLISHED_DATA and rows.classes == VOC20.names


def build_tables(
    facts: Facts, specs: Sequence[TableSpec] | None = None, *, published: bool = False
) -> list[Table]:
    """Fill every table of ``specs`` (all of `SPECS` when left out).

    Args:
        published: ``facts`` are the published numbers: each table then has what they give when
            computed again, beside what is printed. Tables that come out empty are left out.
    """
    chosen = all_specs(facts) if specs is None else specs
    tables = [_build(spec, facts, numbers_of_reference(), published) for spec in chosen]
    if not published:
        return tables
    return [_filled_part(table) for table in tables if any(_filled_columns(table))]


def _filled_columns(table: Table) -> list[bool]:
    """Per column whether it has a number of ours."""
    return [
        any(row.entries[at].ours.value is not None for row in table.rows)
        for at in range(len(table.spec.columns))
    ]


def _filled_part(table: Table) -> Table:
    """A table without the columns that nothing was printed for."""
    filled = _filled_columns(table)
    columns = tuple(compress(table.spec.columns, filled))
    rows = tuple(replace(row, entries=tuple(compress(row.entries, filled))) for row in table.rows)
    return replace(table, spec=replace(table.spec, columns=columns), rows=rows)


def all_specs(facts: Facts) -> list[TableSpec]:
    """`SPECS`, and the tables of what else was timed: other precisions, other families."""
    found = list(SPECS)
    numbers = {"fp32": "4.16", "int8-unscaled": "4.17"}
    for at, family in enumerate(facts.families):
        end = f"-{slug(family)}" if at else ""
        for precision in facts.precisions(family):
            if at or precision not in numbers:
                number = numbers.get(precision, f"4.17-{precision}")
                found.append(latency_table(f"{number}{end}", precision, family))
        if at:
            found.append(timing_table(f"A.2{end}", family))
            found.append(sharing_table(f"S.1{end}", family))
    return found


def _build(spec: TableSpec, facts: Facts, numbers: Published, printed: bool) -> Table:
    reference = numbers.tables.get(spec.reference or spec.number)
    head = published_head(spec.compare, facts.rows, numbers, chosen_family(facts, spec.family))
    head = PRINTED if printed else head
    rows: list[TableRow] = []
    missing: list[str] = []
    notes = [spec.note] if spec.note else []
    for key in spec.rows(facts):
        entries = []
        for column in spec.columns:
            ours, best = column.ours(facts, key), spec.best and _is_best(facts, key, column.metric)
            if not head or reference is None or column.published is None:
                entries.append(Entry(ours, None, best))
                continue
            beside = reference.value(key.published, column.published)
            decimals = reference.decimals[column.published]
            apart = difference(ours, beside, decimals) if head in COMPARABLE else None
            entries.append(Entry(ours, beside, best, apart, decimals))
        rows.append(TableRow(key.labels, tuple(entries)))
        missing.extend(reasons(key, spec.columns, entries))
    seeds = _common_seeds(spec, rows)
    notes.extend([] if printed else about_seeds(rows, seeds, spec.best))
    notes.extend(about_published(spec, rows, head))
    notes.extend(missing)
    return Table(spec, head, tuple(rows), tuple(notes), seeds, RECOMPUTED if printed else "ours")


def _is_best(facts: Facts, key: RowKey, metric: str) -> bool:
    leader = facts.scores.leader(key.backbone, metric) if metric else None
    return leader is not None and leader.method == key.method and leader.clear


def _common_seeds(spec: TableSpec, rows: Sequence[TableRow]) -> int:
    """The number of seeds of every score and change, 0 where they differ."""
    counts = {
        entry.ours.runs
        for row in rows
        for column, entry in zip(spec.columns, row.entries, strict=True)
        if entry.ours.value is not None and (column.metric or entry.ours.compared)
    }
    return counts.pop() if len(counts) == 1 else 0


def published_head(
    compare: Compare, rows: StudyRows, numbers: Published, family: str | None = None
) -> str:
    """Column head of the published numbers: comparable, or a reference on something else.

    Empty where they are left out: scores beside those of drawn shapes.
    """
    if compare == "architecture":
        return "published"
    if compare == "data" and is_synthetic(rows):
        return ""
    if compare == "data":
        return "published" if is_published_data(rows, numbers) else "reference (other data)"
    timed = [row for row in rows.timings if family in (None, row.family) and row.graph in GRAPHS]
    # Where both loads were timed, the published numbers stand beside theirs alone.
    beside = [row for row in timed if row.load == PUBLISHED_LOAD] or timed
    same = bool(beside) and all(
        row.backend == "tensorrt" and row.load == PUBLISHED_LOAD and "orin" in row.device.lower()
        for row in beside
    )
    return "published" if same else "reference (other device or load)"


def _backbone_rows(method: Method) -> Callable[[Facts], list[RowKey]]:
    def rows(facts: Facts) -> list[RowKey]:
        return [
            RowKey(labels=(name,), published=(name,), backbone=name, method=method)
            for name in facts.backbones
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
        for name in facts.backbones
        for method in facts.scores.methods
    ]


def _score(metric: str) -> Column:
    return Column(
        metric,
        "fraction",
        metric,
        lambda facts, key: facts.scores.score(key.backbone, key.method, metric),
        metric,
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
        return against_sum(det, seg, dual)

    return Column("dual against two networks", "percent", None, ours)


_SEG = (_score("mIoU"), _change("mIoU"), _score("pixel_acc"), _change("pixel_acc"))
_DET = (_score("mAP"), _change("mAP"), _score("mAP50"), _change("mAP50"))
# Table 5.1 has detection first.
_COUNTED = {graph: _counted(graph) for graph in ("encoder", "det", "seg", "dual")}
_TRAINED = {graph: _trained(graph) for graph in _COUNTED}


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
    latency_table("4.16", "fp32"),
    latency_table("4.17", "int8-unscaled"),
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
        title="Parameters with the heads that were trained",
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
        best=True,
        note=(
            "A swap row holds two networks: mIoU is the segmentation head on the detector's "
            "encoder, mAP the detection head on the segmenter's."
        ),
    ),
    timing_table("A.2"),
    sharing_table("S.1"),
    ACCURACY_TABLE,
)
