"""Tables of a written study against changes worked out by hand."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from sharedenc.report.changes import Method, Scores
from sharedenc.report.collect import RunData, StudyRows, VersionData, study_rows
from sharedenc.report.summary import summarise
from sharedenc.report.tables import SPECS, Facts, Table, build_tables
from sharedenc.report.text import csv_text, heads, markdown
from tests.report.study import bench, benches, count, grid, run, versions


def rows_of(
    runs: list[RunData],
    registered: list[VersionData] | None = None,
    timed: list[RunData] | None = None,
) -> StudyRows:
    return study_rows("written", runs, registered or [], timed or [])


def facts_of(*args: Any) -> Facts:
    rows = rows_of(*args)
    return Facts(rows, Scores(rows), count)


def table(number: str, facts: Facts) -> Table:
    return build_tables(facts, [spec for spec in SPECS if spec.number == number])[0]


def replace(runs: list[RunData], *new: RunData) -> list[RunData]:
    names = {r.name for r in new}
    return [r for r in runs if r.name not in names] + list(new)


# Factors of tests/report/study.py: 0.8, 0.9, 0.75, 0.95 and 1.1 of the baseline.
@pytest.mark.parametrize(
    ("number", "change"),
    [
        ("4.6", -20.0),
        ("4.7", -20.0),
        ("4.8", -10.0),
        ("4.9", -10.0),
        ("4.10", -25.0),
        ("4.11", -25.0),
        ("4.12", -5.0),
        ("4.13", -5.0),
        ("4.14", 10.0),
        ("4.15", 10.0),
    ],
)
def test_changes_are_against_our_own_baseline(number: str, change: float) -> None:
    filled = table(number, facts_of(grid()))
    assert len(filled.rows) == 4
    for row in filled.rows:
        assert row.entries[1].ours.value == pytest.approx(change)
        assert row.entries[3].ours.value == pytest.approx(change)


def test_published_numbers_stand_beside_and_never_change_ours() -> None:
    filled = table("4.6", facts_of(grid()))
    first = filled.rows[0]
    assert filled.published_head == "published"
    assert [entry.published for entry in first.entries] == [0.4358, -14.6, 0.8721, -2.13]
    assert [entry.ours.value for entry in first.entries] == pytest.approx([0.4, -20, 0.64, -20])


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "synthetic"},
        {"data": "coco_mini"},
        {"data": "coco2017", "classes": ("cat", "dog")},
    ],
)
def test_on_other_data_or_classes_the_published_numbers_are_marked(changes: Any) -> None:
    facts = facts_of(grid(**changes))
    assert table("4.4", facts).published_head == "reference (other data)"
    assert table("5.1", facts).published_head == "published"


def test_a_swap_row_of_the_overview_joins_both_directions() -> None:
    runs = replace(
        grid(),
        run("resnet18", "swap", "frozen", "seg", factor=0.5),
        run("resnet18", "swap", "frozen", "det", factor=0.25),
    )
    filled = table("A.1", facts_of(runs))
    row = next(r for r in filled.rows if r.labels == ("resnet18", "swap-frozen"))
    assert row.entries[0].ours.value == pytest.approx(0.25)  # mIoU .5 x .5: seg on det's encoder
    assert row.entries[2].ours.value == pytest.approx(0.05)  # mAP .2 x .25: det on seg's encoder
    assert len(filled.rows) == 24
    assert len(filled.spec.columns) == 13


def test_missing_cells_say_why_and_changes_need_a_baseline() -> None:
    runs = replace(
        grid(),
        run("resnet18", "baseline", "none", "seg", state="failed", reason="loss is NaN"),
        run("resnet18", "swap", "frozen", "det", state="skipped", reason="no parent"),
    )
    facts = facts_of(runs)
    text = markdown(table("4.4", facts), facts.rows)
    assert "| resnet18 | failed |" in text
    assert "resnet18, mIoU, pixel_acc, parameters: failed: loss is NaN" in text
    assert table("4.7", facts).rows[0].entries[0].ours.why == "skipped: no parent"
    alone = table("4.6", facts).rows[0].entries
    assert alone[0].ours.value == pytest.approx(0.4)
    assert alone[1].ours.why == "no baseline: failed: loss is NaN"


def test_a_part_of_the_grid_leaves_the_published_rows_in_place() -> None:
    facts = facts_of([run("resnet18", "dual"), run("densenet121", "baseline", "none", "seg")])
    filled = table("4.14", facts)
    assert [row.labels[0] for row in filled.rows] == [
        "resnet18",
        "mobilenet_v3_large",
        "efficientnet_v2_s",
        "densenet121",
    ]
    assert filled.rows[1].entries[0].ours.why == "not in this study"
    assert filled.rows[1].entries[0].published == 0.5613
    assert filled.rows[0].entries[1].ours.why == "no baseline: not in this study"


def test_another_backbone_gets_a_row_without_published_numbers() -> None:
    runs = [run("mine", "baseline", "none", "seg"), run("mine", "dual")]
    row = table("4.14", facts_of(runs)).rows[-1]
    assert row.labels == ("mine",)
    assert row.entries[1].ours.value == pytest.approx(10.0)
    assert all(entry.published is None for entry in row.entries)


def test_seeds_give_a_mean_and_a_range() -> None:
    runs = [
        *grid(),
        run("resnet18", "dual", seed=1, factor=1.2),
        run("resnet18", "dual", seed=2, factor=1.3),
    ]
    facts = facts_of(runs)
    change = table("4.14", facts).rows[0].entries[1].ours
    assert (change.value, change.low, change.high) == pytest.approx((20.0, 10.0, 30.0))
    assert change.runs == 3
    assert "+20.00 % (+10.00 to +30.00, 3 runs)" in markdown(table("4.14", facts), facts.rows)


def test_search_trials_other_data_and_other_recipes_fill_no_table() -> None:
    runs = [
        *grid(),
        run("resnet18", "dual", stage="lr-search", factor=9.0, lr=1e-3, end_ms=9000),
        run("resnet18", "dual", digest="cd" * 32, factor=9.0, end_ms=10),
        run("resnet18", "dual", recipe={"recipe.epochs": "9"}, factor=9.0, end_ms=900),
        run("resnet18", "dual", factor=9.0, end_ms=999),
    ]
    rows = rows_of(runs)
    assert len(rows.final) == 44
    assert len(rows.search) == 1
    assert sorted(why.split()[0] for _, why in rows.left_out) == ["a", "another", "trained"]
    scores = Scores(rows)
    assert scores.score("resnet18", Method("dual"), "mIoU").value == pytest.approx(0.55)


def test_an_undefined_ap_is_missing_not_minus_one() -> None:
    broken = run("resnet18", "baseline", "none", "det")
    bad = RunData(**{**broken.__dict__, "metrics": {**broken.metrics, "test/mAP": -1.0}})
    row = table("4.5", facts_of(replace(grid(), bad))).rows[0]
    assert row.entries[0].ours.value is None
    assert row.entries[1].ours.value == pytest.approx(0.4)


def test_parameters_are_counted_with_three_classes_and_savings_are_ours() -> None:
    row = table("5.1", facts_of(grid())).rows[0]
    assert [entry.ours.value for entry in row.entries] == pytest.approx(
        [10.000003, 12.000003, 11.000003, 13.000003, 100 * (13.000003 / 23.000006 - 1)]
    )
    assert [entry.published for entry in row.entries] == [11.18, 11.76, 11.31, 11.89, None]
    ours = table("5.1-ours", facts_of(grid())).rows[0]
    assert [e.ours.value for e in ours.entries[:4]] == pytest.approx([10.0, 12.0, 11.0, 12.5])


def test_timings_are_joined_by_architecture_and_say_what_is_wrong_with_them() -> None:
    timed = [
        *benches(),
        bench("densenet121 det", 1.0, verdict="suspect", reasons="throttled", end_ms=2000),
        bench("unrelated", 0.1),
        bench("resnet18 dual", 7.0, load="single"),
        bench("resnet18 dual", 1.0, load="single", verdict="wrong", reasons="outputs differ"),
        bench("resnet18 seg", 1.0, load="single", verdict="suspect", reasons="clocks moved"),
    ]
    facts = facts_of(grid(), versions(), timed)
    filled = table("A.2", facts)
    assert filled.published_head == "reference (other device or load)"
    stream = "desk, 2 threads, onnxruntime, stream"
    rows = {row.labels: row for row in filled.rows}
    first = rows["resnet18", "fp32", stream].entries
    assert [e.ours.value for e in first] == pytest.approx([250, 4, 200, 5, 200, 5, 500 / 3, 6])
    assert first[1].published == 4.42
    # The valid timing wins over the newer suspect one.
    assert rows["densenet121", "fp32", stream].entries[5].ours.value == 5.0
    assert rows["resnet18", "int8-unscaled", stream].entries[1].ours.why == "not timed yet"
    assert rows["resnet18", "int8-unscaled", stream].entries[1].published == 1.394
    single = rows["resnet18", "fp32", stream.replace("stream", "single")].entries
    assert single[7].ours.value == 7.0
    assert single[7].published == 6.684
    assert ("resnet18", "int8-unscaled", stream.replace("stream", "single")) not in rows
    assert single[3].ours.mark == "suspect: clocks moved"
    text = markdown(filled, facts.rows)
    assert "1.000 [suspect]" in text
    assert "suspect: clocks moved" in text


def test_without_exports_every_timing_says_so() -> None:
    for row in table("A.2", facts_of(grid())).rows:
        assert {entry.ours.why for entry in row.entries} == {"not exported"}


def test_published_timings_are_comparable_on_the_published_board_only() -> None:
    timed = [bench("resnet18 dual", 6.0, device="agx-orin-64gb", backend="tensorrt")]
    assert table("A.2", facts_of(grid(), versions(), timed)).published_head == "published"


def test_the_summary_says_what_dual_changes() -> None:
    summary = summarise(facts_of(grid(), versions(), benches()))
    assert summary.cells == {"done": 44}
    dual = summary.dual[0]
    assert dual.mean.value == pytest.approx(10.0)
    assert dual.parameters.value == pytest.approx(100 * (12.5 / 23 - 1))
    assert dual.latency.value == pytest.approx(-40.0)
    assert summary.best[0].mIoU_method == "dual"
    by_name = {d.name: d for d in summary.deployments if d.backbone == "resnet18"}
    assert by_name["two baselines"].latency_ms == 10.0
    assert by_name["share-frozen, two heads"].latency_ms == 6.0
    assert by_name["share-bias pair"].passes == 2


def test_csv_holds_full_precision_reasons_and_the_stamp() -> None:
    runs = replace(grid(data="synthetic"), run("resnet18", "dual", state="failed", reason="a\nb"))
    facts = facts_of(runs)
    lines = list(csv.DictReader(io.StringIO(csv_text(table("4.14", facts), facts.rows))))
    assert len(lines) == 4
    assert lines[0]["missing or doubtful"].startswith("mIoU: failed: a b")
    assert lines[1]["mIoU change [percent] ours"].startswith("10.0")
    assert lines[1]["mIoU [fraction] reference (other data)"] == "0.5613"
    assert lines[1]["data digest"] == "ab" * 32
    assert lines[1]["synthetic"] == "never a result"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.number)
def test_every_table_is_written_whole(spec: Any) -> None:
    facts = facts_of(grid(data="synthetic"), versions(), benches())
    filled = build_tables(facts, [spec])[0]
    text = markdown(filled, facts.rows)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(filled.rows)
    assert {line.count(" | ") for line in lines[2:]} == {len(heads(filled)) - 1}
    assert "ab" * 32 in text
    assert "never a result" in text


def test_the_tables_asked_for_are_all_there() -> None:
    wanted = {*(f"4.{i}" for i in range(4, 16)), "A.1", "5.1", "A.2"}
    assert wanted <= {spec.number for spec in SPECS}
    assert len({spec.number for spec in SPECS}) == len(SPECS)
