"""The published numbers as a study, so that whatever reads a study reads them too."""

from __future__ import annotations

from collections.abc import Iterator

from sharedenc.report.changes import METHODS, Method
from sharedenc.report.collect import StudyRows, TimingRow, TrialRow
from sharedenc.report.published import PUBLISHED as PUBLISHED
from sharedenc.report.published import PUBLISHED_DATA, Published, published
from sharedenc.report.table_spec import Count, Facts
from sharedenc.report.timing_tables import GRAPHS, PUBLISHED_LOAD, PUBLISHED_PRECISIONS

_SEG_METRICS = ("mIoU", "pixel_acc")
_BASELINE_TABLES = {"seg": "4.4", "det": "4.5"}


def published_facts(count: Count) -> Facts:
    """The published numbers as facts; ``count`` gives a graph's parameters."""
    rows = published_rows()
    return Facts.of(rows, count)


def published_rows() -> StudyRows:
    """The published numbers as a study of the name `PUBLISHED`.

    One trial per cell with the scores of Table A.1 and the parameters of 4.4, 4.5 and 5.1, and one
    timing per latency of A.2. It has no digest, no runs and no registered versions.
    """
    from sharedenc.data.classes import VOC20

    numbers = published()
    assert numbers.class_list == VOC20.name
    return StudyRows(
        study=PUBLISHED,
        parent_run_id="",
        data=PUBLISHED_DATA,
        data_digest="",
        classes=VOC20.names,
        final=tuple(sorted(_trials(numbers, VOC20.names), key=lambda row: row.cell)),
        search=(),
        left_out=(),
        timings=tuple(_timings(numbers)),
        registered=frozenset(),
    )


def _trials(numbers: Published, classes: tuple[str, ...]) -> Iterator[TrialRow]:
    """The 44 cells; a swap row of A.1 holds two networks, one per task."""
    methods = {method.name: method for method in METHODS}
    for (backbone, name), row in numbers.tables["A.1"].cells.items():
        method = methods[name]
        scores = {metric: value for metric, value in row.items() if value is not None}
        if "mAP50" in scores:
            scores["AP_0.50"] = scores["mAP50"]
        for task in ("",) if method.strategy == "dual" else ("det", "seg"):
            metrics = {
                f"test/{metric}": value
                for metric, value in scores.items()
                if task in ("", "seg" if metric in _SEG_METRICS else "det")
            }
            parameters = _parameters(numbers, backbone, task)
            yield _trial(backbone, method, task, {**metrics, **parameters}, classes)


def _parameters(numbers: Published, backbone: str, task: str) -> dict[str, float]:
    """Parameters by part; a dual network is both single ones with one encoder."""
    encoder = numbers.value("5.1", (backbone,), "encoder")
    single = {
        name: numbers.value(table, (backbone,), "parameters")
        for name, table in _BASELINE_TABLES.items()
    }
    total = single.get(task)
    if not task and None not in (encoder, *single.values()):
        total = sum(value for value in single.values() if value is not None) - (encoder or 0.0)
    found = {"params/total": total, "params/encoder": encoder}
    return {name: round(value * 1e6) for name, value in found.items() if value is not None}


def _trial(
    backbone: str,
    method: Method,
    task: str,
    metrics: dict[str, float],
    classes: tuple[str, ...],
) -> TrialRow:
    return TrialRow(
        run_id="",
        cell="/".join(part for part in (backbone, method.name, task) if part),
        backbone=backbone,
        strategy=method.strategy,
        freeze=method.freeze,
        task=task,
        stage=method.strategy,
        key="",
        state="done",
        reason="",
        failure_kind="",
        seed=0,
        lr=None,
        recipe={},
        data=PUBLISHED_DATA,
        data_digest="",
        classes=classes,
        metrics=metrics,
        changed_ms=0,
    )


def _timings(numbers: Published) -> Iterator[TimingRow]:
    theirs = {name: ours for ours, name in PUBLISHED_PRECISIONS.items()}
    for (backbone, precision), row in numbers.tables["A.2"].cells.items():
        for graph in GRAPHS:
            latency, throughput = row[f"{graph}_latency"], row[f"{graph}_throughput"]
            metrics = {"latency_ms/p50": latency, "throughput_qps": throughput}
            if latency is None:
                continue
            yield TimingRow(
                architecture=f"{backbone}/{graph}",
                backbone=backbone,
                graph=graph,
                device=numbers.board,
                mode="",
                backend="tensorrt",
                load=PUBLISHED_LOAD,
                precision=theirs[precision],
                verdict="valid",
                reason="",
                metrics={name: value for name, value in metrics.items() if value is not None},
                changed_ms=0,
                runtime=numbers.runtime,
            )
