"""The published numbers as a study: what the source prints comes out as a study's own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sharedenc.report.cells import cells, heads
from sharedenc.report.changes import METHODS, Method
from sharedenc.report.latex import latex
from sharedenc.report.published import published
from sharedenc.report.table_spec import Facts, Table
from sharedenc.report.tables import build_tables, is_published_data
from sharedenc.report.text import markdown
from sharedenc.report.thesis import PUBLISHED, published_facts, published_rows
from tests.report.study import count

SETUP = "AGX Orin as Orin Nano 8GB, tensorrt 10, stream"


@pytest.fixture
def facts() -> Facts:
    return published_facts(count)


@pytest.fixture
def source(shared_data: Path) -> Any:
    path = shared_data.parent / "reference" / "thesis_tables.json"
    return json.loads(path.read_text())["tables"]


def test_it_is_a_whole_study_of_the_published_data(facts: Facts) -> None:
    rows = facts.rows
    assert rows.study == PUBLISHED
    assert len(rows.final) == len({row.cell for row in rows.final}) == 44
    assert {(row.state, row.seed) for row in rows.final} == {("done", 0)}
    assert is_published_data(rows, published())
    assert {row.cell for row in rows.final} >= {
        "resnet18/baseline/seg",
        "resnet18/swap-bias/det",
        "densenet121/dual",
    }
    assert facts.printed


def test_scores_are_those_of_the_overview(facts: Facts) -> None:
    # A.1, ResNet18 with swapped encoders: one row, two networks.
    swap = Method("swap", "frozen")
    assert facts.scores.score("resnet18", swap, "mIoU").value == 0.4358
    assert facts.scores.score("resnet18", swap, "AP_0.95").value == 0.0234
    assert facts.scores.score("resnet18", swap, "AP_0.50").value == 0.3314
    rows = {row.cell: row.metrics for row in facts.rows.final}
    assert "test/mAP" not in rows["resnet18/swap-frozen/seg"]
    assert "test/mIoU" not in rows["resnet18/swap-frozen/det"]


def test_changes_are_those_of_the_score_tables(facts: Facts) -> None:
    # Table 4.15, EfficientNetV2-S, and 4.13, MobileNetV3-Large.
    dual = facts.scores.change("efficientnet_v2_s", METHODS[-1], "mAP")
    assert dual.value == pytest.approx(9.39, abs=0.005)
    assert dual.apart is None
    bias = facts.scores.change("mobilenet_v3_large", Method("share", "bias"), "mAP")
    assert bias.value == pytest.approx(-19.37, abs=0.005)


def test_parameters_are_those_of_21_classes_and_dual_has_one_encoder(facts: Facts) -> None:
    parameters = facts.scores.parameters
    assert parameters("resnet18", METHODS[0], "seg").value == 11.31
    assert parameters("resnet18", METHODS[0], "det").value == 11.97
    assert parameters("resnet18", METHODS[0], "det", "encoder").value == 11.18
    # 11.97 + 11.31 - 11.18; counted exactly it is 12.104750.
    assert parameters("resnet18", METHODS[-1], "").value == pytest.approx(12.10)


def test_every_latency_of_the_source_is_a_timing_and_nothing_else(source: Any) -> None:
    rows = published_rows().timings
    printed = [v for row in source["A.2"]["rows"] for v in row[3::2] if v is not None]
    assert sorted(row.metrics["latency_ms/p50"] for row in rows) == sorted(printed)
    assert {row.setup for row in rows} == {SETUP}
    assert {row.precision for row in rows} == {"fp32", "int8-unscaled"}
    first = rows[0]
    assert (first.backbone, first.graph, first.precision) == ("resnet18", "encoder", "fp32")
    assert first.metrics == {"latency_ms/p50": 4.42, "throughput_qps": 237.343}


def test_where_nothing_is_printed_there_is_no_timing(facts: Facts) -> None:
    assert facts.timing("efficientnet_v2_s", "encoder", SETUP, "int8-unscaled") is None
    found = facts.timing("efficientnet_v2_s", "dual", SETUP, "int8-unscaled")
    assert found is not None
    assert found.metrics["latency_ms/p50"] == 9.008


@pytest.fixture
def tables(facts: Facts) -> dict[str, Table]:
    return {table.spec.number: table for table in build_tables(facts, published=True)}


def test_every_published_table_is_filled_and_computed_again(tables: dict[str, Table]) -> None:
    assert {*(f"4.{i}" for i in range(4, 18)), "5.1", "A.1", "A.2"} <= tables.keys()
    assert "S.2" not in tables
    assert [e.ours.value for e in tables["4.17"].rows[3].entries] == [10.221, 10.362, 11.454]
    for number, table in tables.items():
        parts = {head.part for head in heads(table)}
        assert parts <= {"", "recomputed", "printed", "difference"}
        if number == "A.2":
            continue
        for row in table.rows:
            beside = [
                e for c, e in zip(table.spec.columns, row.entries, strict=True) if c.published
            ]
            assert all(e.ours.value is not None and e.published is not None for e in beside)


def test_a_wrong_digit_stands_out_as_a_difference(tables: dict[str, Table]) -> None:
    row = tables["4.10"].rows[1]
    assert row.labels == ("mobilenet_v3_large",)
    assert [cell.text for cell in cells(tables["4.10"], row)][1:7] == [
        *("0.4956", "0.4596", "+0.0360"),
        *("-10.62 %", "-10.62 %", "0.00 pp"),
    ]


def test_printed_numbers_have_the_decimals_that_they_were_printed_with(
    tables: dict[str, Table],
) -> None:
    texts = [cell.text for cell in cells(tables["4.17"], tables["4.17"].rows[0])]
    assert texts[2:5] == ["2.186", "2.19", "-0.004"]
    texts = [cell.text for cell in cells(tables["A.2"], tables["A.2"].rows[0])]
    assert texts[3:6] == ["237.3", "237.343", "0.0"]


def test_what_was_not_printed_says_so(tables: dict[str, Table]) -> None:
    row = next(
        r for r in tables["A.2"].rows if r.labels[:2] == ("efficientnet_v2_s", "int8-unscaled")
    )
    assert row.labels[2] == SETUP
    assert {entry.ours.why for entry in row.entries[:2]} == {"not printed"}
    assert row.entries[7].ours.value == 9.008
    assert len(tables["A.2"].rows) == 8


def test_one_shared_network_against_two_is_worked_out(tables: dict[str, Table]) -> None:
    # FP32: 1 - 6.684 / (5.429 + 5.564) and, of EfficientNetV2-S in INT8, 1 - 9.008 / 15.912.
    saved = {row.labels[:2]: row.entries[2].ours.value for row in tables["S.1"].rows}
    assert [column.name for column in tables["S.1"].spec.columns][2:] == ["change"]
    assert saved["resnet18", "fp32"] == pytest.approx(-39.2, abs=0.05)
    assert saved["efficientnet_v2_s", "int8-unscaled"] == pytest.approx(-43.4, abs=0.05)


def test_the_stamp_says_that_these_are_the_published_numbers(
    facts: Facts, tables: dict[str, Table]
) -> None:
    text = markdown(tables["4.6"], facts.rows)
    assert "The published numbers of C. Schuster, master thesis" in text
    assert "digest" not in text
    assert "seed" not in text
    assert r"\begin{tabular}" in latex(tables["A.1"], facts.rows)
