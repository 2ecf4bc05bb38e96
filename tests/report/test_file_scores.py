"""Scores of exported files that are no numbers, and timings with two caveats."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sharedenc.report.changes import Scores
from sharedenc.report.collect import VersionData, study_rows
from sharedenc.report.deployments import Option, options
from sharedenc.report.recommend import Request, recommend
from sharedenc.report.table_spec import Facts
from sharedenc.report.tables import build_tables
from sharedenc.report.timing_tables import timed_figure
from tests.report.study import ACCURACY, bench, count, grid, versions

BACKBONES = ("resnet18", "mobilenet_v3_large")


def facts(scores: dict[str, dict[str, float]]) -> Facts:
    """Two dual networks timed in INT8; the files of the first one have these scores."""

    def scored(version: VersionData) -> VersionData:
        if version.model != "voc20-resnet18-dual":
            return version
        told = json.dumps({**ACCURACY, **scores})
        return replace(version, tags={**version.tags, "sharedenc.accuracy": told})

    benches = [
        bench(f"{name} dual trt", 6.0, backend="tensorrt", runtime="10.3", precision="int8")
        for name in BACKBONES
    ]
    rows = study_rows("written", grid(), [scored(v) for v in versions()], benches)
    return Facts(rows, Scores(rows), count)


def option(found: Facts, name: str) -> Option:
    return next(option for option in options(found) if option.deployment.name == name)


@pytest.mark.parametrize("value", [float("nan"), -1.0])
@pytest.mark.parametrize("kind", ["float", "int8-trt"])
def test_a_file_without_a_score_is_told_and_its_float_score_stands(kind: str, value: float) -> None:
    good = {"float": {"mIoU": 0.5, "mAP": 0.25}, "int8-trt": {"mIoU": 0.49, "mAP": 0.22}}
    found = facts({**good, kind: {**good[kind], "mAP": value}})
    dual = option(found, "resnet18/dual")
    assert dual.mAP.value == pytest.approx(0.22)
    assert dual.mAP.mark.startswith("INT8 accuracy not measured: the ")
    assert f"file scores {value:g}" in dual.mAP.mark
    assert dual.drop_mAP.value is None
    assert dual.drop_mIoU.value == pytest.approx(-2.0)
    answer = recommend(found, Request(stat="p50-stream")).to_dict()
    assert "NaN" not in json.dumps(answer)
    (table,) = (table for table in build_tables(found) if table.spec.number == "S.2")
    (row,) = (
        row
        for row in table.rows
        if row.labels[0] == "resnet18/dual" and row.labels[2] == "int8-trt"
    )
    precision = [entry.ours for entry in row.entries][3:]
    told = [figure.value for figure in precision]
    assert told == ([None] * 3 if kind == "float" else [0.25, None, None])
    assert {figure.why for figure in precision if figure.value is None} == {
        f"undefined: the {'float' if kind == 'float' else 'INT8'} file scores {value:g}"
    }


def test_a_suspect_timing_stays_suspect_when_it_is_stale() -> None:
    run = bench("resnet18 dual", 6.0, verdict="suspect", reasons="clocks moved", stale="10.7")
    rows = study_rows("written", grid(), versions(), [run])
    mark = timed_figure(rows.timings[0], "latency_ms/p50").mark
    assert mark.startswith("suspect: clocks moved; stale: ")
