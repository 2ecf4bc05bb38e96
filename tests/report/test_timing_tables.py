"""Timings of any device and precision, and what of them may stand in one table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jetson_agent.protocol import comparison_architecture
from sharedenc.report.collect import RunData, study_rows
from sharedenc.report.summary import summarise
from sharedenc.report.table_spec import Facts, Table
from sharedenc.report.tables import all_specs, build_tables
from sharedenc.report.text import markdown
from tests.report.study import bench, benches, count, grid, versions

BOARD = {"device": "agx-orin-64gb", "backend": "tensorrt", "runtime": "10.3.0.30+l4t36.4.4"}


def facts_of(*timed: RunData) -> Facts:
    rows = study_rows("written", grid(), versions(), timed)
    return Facts.of(rows, count)


def tables_of(facts: Facts) -> dict[str, Table]:
    return {table.spec.number: table for table in build_tables(facts)}


def test_figures_of_different_tools_never_share_a_column() -> None:
    facts = facts_of(
        *benches(),
        bench("resnet18 dual", 3.0, **BOARD),
        bench("resnet18 dual", 2.5, **{**BOARD, "runtime": "11.4.0"}),
    )
    assert facts.families == ["tensorrt 11", "tensorrt 10", "onnxruntime"]
    found = tables_of(facts)
    places = {
        "A.2": {"tensorrt 11"},
        "A.2-tensorrt-10": {"tensorrt 10"},
        "A.2-onnxruntime": {"onnxruntime"},
        "4.16": {"tensorrt 11"},
        "4.16-tensorrt-10": {"tensorrt 10"},
        "4.16-onnxruntime": {"onnxruntime"},
        "S.1": {"tensorrt 11"},
        "S.1-tensorrt-10": {"tensorrt 10"},
        "S.1-onnxruntime": {"onnxruntime"},
    }
    for number, families in places.items():
        timed = {
            row.labels[-1].split(", ")[-2]
            for row in found[number].rows
            if any(entry.ours.value is not None for entry in row.entries)
        }
        assert timed == families, number
    assert found["A.2"].published_head == "published"
    assert found["A.2-onnxruntime"].published_head == "reference (other device or load)"


def test_published_figures_stand_beside_the_load_that_they_were_measured_with() -> None:
    both = [
        bench("resnet18 dual", 3.0, **BOARD),
        bench("resnet18 dual", 2.0, load="single", **BOARD),
    ]
    table = tables_of(facts_of(*both))["4.16"]
    assert table.published_head == "published"
    beside = {
        row.labels[1].rpartition(", ")[2]: row.entries[2].published
        for row in table.rows
        if row.labels[0] == "resnet18"
    }
    assert beside["single"] is None
    assert beside["stream"] is not None
    alone = tables_of(facts_of(both[1]))["4.16"]
    assert alone.published_head == "reference (other device or load)"
    assert alone.rows[0].entries[2].published == beside["stream"]


def test_the_page_begins_with_the_board_where_as_much_was_timed_elsewhere() -> None:
    graphs = [f"resnet18 {graph}" for graph in ("seg", "det", "dual")]
    loads = ("stream", "single")
    elsewhere = [bench(name, 9.0, load=load, device="z") for name in graphs for load in loads]
    board = [bench(name, 3.0, load=load, **BOARD) for name in graphs for load in loads]
    for timed in ([*elsewhere, *board], [*board, *elsewhere]):
        summary = summarise(facts_of(*timed))
        assert summary.timed == "agx-orin-64gb, 2 threads, tensorrt 10, stream, fp32"
        assert {d.latency.value for d in summary.deployments} == {3.0, 6.0}
        assert {d.deployment.backbone for d in summary.deployments} == {"resnet18"}
    # What most was timed on goes before.
    assert (
        summarise(facts_of(*elsewhere, *board[:2])).timed
        == "z, 2 threads, onnxruntime, stream, fp32"
    )


def test_a_stale_figure_is_marked_on_the_first_page() -> None:
    newer = "10.3.0.30+l4t36.4.4"
    old = {**BOARD, "runtime": "10.3.0.26+l4t36.4.3"}
    names = [f"resnet18 {graph}" for graph in ("seg", "det", "dual")]
    summary = summarise(facts_of(*(bench(name, 3.0, stale=newer, **old) for name in names)))
    (dual,) = [row for row in summary.dual if row.backbone == "resnet18"]
    assert dual.latency.value == pytest.approx(-50)
    assert dual.latency.mark.startswith("stale: timed with 10.3.0.26+l4t36.4.3")
    assert summary.deployments
    assert all(found.latency.mark.startswith("stale") for found in summary.deployments)


def test_every_precision_that_was_timed_has_a_latency_table() -> None:
    facts = facts_of(
        bench("resnet18 dual", 3.0, **BOARD),
        bench("resnet18 dual trt", 1.5, precision="int8", **BOARD),
        bench("resnet18 dual", 1.25, precision="int8-unscaled", **BOARD),
    )
    found = tables_of(facts)
    values = {
        number: [row.entries[2].ours.value for row in found[number].rows if row.labels[1]]
        for number in ("4.16", "4.17", "4.17-int8")
    }
    assert [values[number][0] for number in ("4.16", "4.17", "4.17-int8")] == [3.0, 1.25, 1.5]
    # The published INT8 had made-up scales: it stands beside such, and beside nothing else.
    assert found["4.17"].rows[0].entries[2].published is not None
    assert [row.entries[2].published for row in found["4.17-int8"].rows] == [None]
    assert found["4.17-int8"].spec.title == "Latency in INT8, tensorrt 10"


def test_numbers_are_unique_and_the_published_ones_are_always_there() -> None:
    facts = facts_of(*benches(), bench("resnet18 dual", 3.0, precision="fp16", **BOARD))
    numbers = [spec.number for spec in all_specs(facts)]
    assert len(numbers) == len(set(numbers))
    assert {"4.16", "4.17", "A.2", "S.1", "S.2"} <= set(numbers)


def test_a_stale_figure_counts_only_where_there_is_no_newer_one() -> None:
    old = {**BOARD, "runtime": "10.3.0.26+l4t36.4.3"}
    facts = facts_of(
        bench("resnet18 dual", 9.0, stale="10.3.0.30+l4t36.4.4", end_ms=5000, **old),
        bench("resnet18 dual", 3.0, **BOARD),
        bench("resnet18 seg", 8.0, stale="10.3.0.30+l4t36.4.4", **old),
    )
    row = tables_of(facts)["4.16"].rows[0]
    assert row.entries[2].ours.value == 3.0
    seg = row.entries[0].ours
    assert seg.value == 8.0
    assert seg.mark == (
        "stale: timed with 10.3.0.26+l4t36.4.3, and the device has 10.3.0.30+l4t36.4.4 now"
    )
    assert "8.000 [stale]" in markdown(tables_of(facts)["4.16"], facts.rows)


def test_one_shared_network_stands_against_two_by_themselves_and_in_one_run() -> None:
    files = [f"resnet18 {graph} trt" for graph in ("seg", "det", "dual")]
    facts = facts_of(
        bench("resnet18 seg trt", 4.0, precision="int8", **BOARD),
        bench("resnet18 det trt", 6.0, precision="int8", **BOARD),
        bench("resnet18 dual trt", 7.0, precision="int8", **BOARD),
        bench(
            comparison_architecture(files),
            7.1,
            precision="int8",
            **BOARD,
            **{
                "pair_ms/p50": 10.4,
                "dual_ms/p50": 7.1,
                "ratio/p50": 0.68,
                "ratio/min": 0.66,
                "ratio/max": 0.71,
            },
        ),
        bench("densenet121 seg", 4.0, **BOARD),
    )
    rows = {row.labels[:2]: row for row in tables_of(facts)["S.1"].rows}
    values = [entry.ours.value for entry in rows["resnet18", "int8"].entries]
    assert values == pytest.approx([10.0, 7.0, -30.0, 10.4, 7.1, -32.0, -34.0, -29.0])
    alone = rows["densenet121", "fp32"].entries
    assert [entry.ours.value for entry in alone] == [None] * 8
    assert alone[0].ours.why == "not timed yet"
    # A comparison is no graph: the other tables do not show it.
    assert len({row.labels for row in tables_of(facts)["A.2"].rows}) == len(
        tables_of(facts)["A.2"].rows
    )


def test_what_int8_costs_is_told_per_head_and_file() -> None:
    found = tables_of(facts_of())["S.2"].rows
    rows = {row.labels[:3]: row for row in found}
    assert {row.labels[3] for row in found} == {"8 test photos", "nothing yet"}
    trt = [entry.ours.value for entry in rows["resnet18/dual", "dual", "int8-trt"].entries]
    assert trt == pytest.approx([0.5, 0.49, 0.01, 0.25, 0.22, 0.03])
    cpu = rows["resnet18/dual", "dual", "int8-cpu"].entries
    assert cpu[2].ours.value == pytest.approx(0.005)
    assert cpu[4].ours.why == "no INT8 file"
    seg = rows["resnet18/baseline/seg", "seg", "int8-trt"].entries
    assert [entry.ours.why for entry in seg] == ["not scored"] * 3 + ["no such head"] * 3
    assert not any(labels[1] == "encoder" for labels in rows)


def test_a_newer_version_without_int8_files_hides_no_timing_of_older_ones() -> None:
    dual = next(v for v in versions() if v.model == "voc20-resnet18-dual")
    assembled = replace(
        dual,
        version=2,
        tags={
            **dual.tags,
            "sharedenc.cell": "resnet18/share-frozen",
            "sharedenc.architectures": json.dumps({"model.onnx": "resnet18 dual"}),
        },
    )
    timed = bench("resnet18 dual trt", 3.0, precision="int8", **BOARD)
    rows = study_rows("written", grid(), [*versions(), assembled], [timed])
    assert [row.graph for row in rows.timings] == ["dual"]
    cells = {row.cell for row in rows.exports if (row.backbone, row.graph) == ("resnet18", "dual")}
    assert cells == {"resnet18/dual", "resnet18/share-frozen"}
    # Of another architecture nothing stays.
    other = replace(
        assembled,
        version=3,
        tags={
            **assembled.tags,
            "sharedenc.architecture": "another",
            "sharedenc.architectures": json.dumps({"model.onnx": "another"}),
        },
    )
    rows = study_rows("written", grid(), [*versions(), other], [timed])
    assert rows.timings == ()
