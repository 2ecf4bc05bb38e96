"""Tables of a written study against changes worked out by hand."""

from __future__ import annotations

import csv
import io
import math
import re
from typing import Any

import pytest

from sharedenc.report.cells import cells, heads
from sharedenc.report.changes import Method, Scores
from sharedenc.report.collect import RunData, StudyRows, VersionData, study_rows
from sharedenc.report.summary import summarise
from sharedenc.report.table_spec import Facts, Table
from sharedenc.report.tables import SPECS, build_tables
from sharedenc.report.text import csv_text, markdown
from tests.report.study import bench, benches, count, grid, run, versions


def rows_of(
    runs: list[RunData],
    registered: list[VersionData] | None = None,
    timed: list[RunData] | None = None,
) -> StudyRows:
    return study_rows("written", runs, registered or [], timed or [])


def facts_of(*args: Any) -> Facts:
    rows = rows_of(*args)
    return Facts.of(rows, count)


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
        {"data": "coco_mini"},
        {"data": "coco2017", "classes": ("cat", "dog")},
    ],
)
def test_on_other_data_or_classes_the_published_numbers_are_marked(changes: Any) -> None:
    facts = facts_of(grid(**changes))
    assert table("4.4", facts).published_head == "reference (other data)"
    assert table("5.1", facts).published_head == "published"


def test_beside_drawn_shapes_the_published_scores_are_left_out_and_the_layout_stays() -> None:
    facts = facts_of(grid(data="synthetic"), versions(), benches())
    filled = table("4.14", facts)
    assert [head.text for head in heads(filled)] == [
        "backbone",
        *("mIoU ours", "mIoU change ours", "pixel_acc ours", "pixel_acc change ours"),
    ]
    assert len(filled.rows) == 4
    assert all(entry.published is None for row in filled.rows for entry in row.entries)
    assert "0.5613" not in markdown(filled, facts.rows)
    assert any(note.startswith("The published scores are left out") for note in filled.notes)
    # What does not depend on the data stays beside ours.
    assert table("5.1", facts).rows[0].entries[0].published == 11.18
    assert table("4.16", facts).rows[0].entries[2].published == 6.68


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


def seeded(method: tuple[str, str], factors: list[float], task: str = "") -> list[RunData]:
    """A cell's trials with seeds 0, 1, 2, ... and a factor each."""
    strategy, freeze = method
    return [
        run("resnet18", strategy, freeze, task, seed=seed, factor=factor, end_ms=5000)
        for seed, factor in enumerate(factors)
    ]


BASELINE, DUAL, SHARE = ("baseline", "none"), ("dual", "none"), ("share", "bias")


def three_seeds(dual: list[float]) -> Facts:
    """Three seeds of one backbone whose baselines scatter by 10 %."""
    baseline = [1.0, 1.1, 0.9]
    runs = [r for r in grid() if not r.name.startswith("resnet18/")]
    for task in ("seg", "det"):
        runs += seeded(BASELINE, baseline, task)
    return facts_of([*runs, *seeded(DUAL, dual)])


def test_seeds_give_mean_deviation_and_the_interval_of_paired_differences() -> None:
    # Baseline mIoU .5, .55, .45; dual .53, .59, .47. Differences .03, .04, .02: mean .03, sd .01,
    # in percent of .5: 6, sd 2, half width 4.303 * 2 / sqrt(3) = 4.968.
    facts = three_seeds([1.06, 1.18, 0.94])
    score, change = (entry.ours for entry in table("4.14", facts).rows[0].entries[:2])
    assert (score.value, score.sd, score.runs) == pytest.approx((0.53, 0.06, 3))
    assert (change.value, change.low, change.high) == pytest.approx((6.0, 1.032, 10.968), abs=1e-3)
    assert change.runs == 3
    assert change.apart is True
    text = markdown(table("4.14", facts), facts.rows)
    assert "| 0.5300 ± 0.0600 (3 seeds) |" in text
    assert "| **+6.00 % [+1.03, +10.97] (3 seeds)** |" in text
    assert "95 % t interval" in text


def test_a_table_of_equal_seeds_says_their_number_once() -> None:
    facts = facts_of([r for seed in (0, 1) for r in grid(seed=seed)])
    text = markdown(table("4.14", facts), facts.rows)
    assert "Every score and change is a mean over 2 seeds." in text
    assert "| 0.5500 ± 0.0000 |" in text
    assert "seeds)" not in text


def test_what_cannot_be_told_apart_is_marked() -> None:
    # Differences .04, -.01, .03 of mIoU: mean .02, sd .0265, half width .0657.
    facts = three_seeds([1.08, 1.08, 0.96])
    change = table("4.14", facts).rows[0].entries[1].ours
    assert change.value == pytest.approx(4.0)
    assert change.apart is False
    assert "| ≈ +4.00 % [-9.14, +17.14] (3 seeds) |" in markdown(table("4.14", facts), facts.rows)
    (line,) = csv.DictReader(
        io.StringIO(csv_text(table("4.14", facts), facts.rows).split("\nmobilenet")[0])
    )
    assert line["mIoU change [percent] apart"] == "no"
    assert float(line["mIoU change [percent] 95% high"]) == pytest.approx(17.14, abs=0.01)
    assert float(line["mIoU [fraction] sd"]) == pytest.approx(0.5 * 0.069282, abs=1e-5)
    assert line["mIoU [fraction] seeds"] == "3"


def test_one_seed_has_no_interval_and_the_table_says_so() -> None:
    facts = facts_of(grid())
    filled = table("4.14", facts)
    assert filled.rows[0].entries[1].ours.apart is None
    text = markdown(filled, facts.rows)
    assert "| +10.00 % |" in text
    assert "A change from one seed has no interval" in text
    assert "±" not in text


def test_a_change_takes_only_seeds_that_the_baseline_has_too() -> None:
    more = [run("resnet18", "dual", seed=seed, factor=9.0) for seed in (1, 2)]
    entries = table("4.14", facts_of([*grid(), *more])).rows[0].entries
    assert entries[0].ours.runs == 3
    assert (entries[1].ours.value, entries[1].ours.runs) == (pytest.approx(10.0), 1)
    others = [r for r in grid() if r.name != "resnet18/dual"]
    unpaired = table("4.14", facts_of([*others, *more])).rows[0].entries[1].ours
    assert unpaired.value == pytest.approx(800.0)
    assert unpaired.apart is None
    assert "no seed in common" in unpaired.mark


def test_the_best_is_marked_only_where_it_is_told_apart_from_every_other() -> None:
    close = three_seeds([1.08, 1.08, 0.96])
    clear = three_seeds([1.5, 1.6, 1.4])
    for facts, best in ((close, 0), (clear, 2)):
        filled = table("A.1", facts)
        marked = [r.labels for r in filled.rows for e in r.entries[:1] if e.best]
        assert marked == [("resnet18", "dual")] * (best // 2)
        assert markdown(filled, facts.rows).count("| **0.7500 ± 0.0500 (3 seeds)** |") == best // 2
    notes = {best.backbone: best.mIoU_note for best in summarise(close).best}
    assert notes["resnet18"] == "not told apart from baseline"
    assert notes["densenet121"] == "one seed: not tested against the others"
    assert summarise(clear).best[0].mIoU_note == ""
    single = table("A.1", facts_of(grid()))
    assert not any(entry.best for row in single.rows for entry in row.entries)
    assert "One seed per cell: no method is marked as the best." in single.notes


def test_the_mean_over_both_tasks_is_paired_by_seed_too() -> None:
    dual = summarise(three_seeds([1.06, 1.18, 0.94])).dual[0]
    assert dual.mean.value == pytest.approx(6.0)
    assert (dual.mean.low, dual.mean.high) == pytest.approx((1.032, 10.968), abs=1e-3)


def test_seeds_with_another_rate_and_superseded_trials_fill_no_table() -> None:
    forced = run("resnet18", "dual", factor=7.0, end_ms=9999)
    old = RunData(**{**forced.__dict__, "tags": {**forced.tags, "sharedenc.superseded": "x"}})
    runs = [
        *grid(),
        old,
        run("resnet18", "dual", seed=1, factor=1.3),
        run("resnet18", "dual", seed=2, factor=9.0, lr=1e-3, end_ms=9000),
    ]
    rows = rows_of(runs)
    assert [why for _, why in rows.left_out] == ["another learning rate than the tables'"]
    score = Scores(rows).score("resnet18", Method("dual"), "mIoU")
    assert (score.value, score.runs) == (pytest.approx(0.5 * 1.2), 2)


def test_seeds_that_wait_for_their_rate_stay_in_the_study() -> None:
    late = run("resnet18", "dual", state="waiting", reason="needs its search")
    waiting = [
        RunData(**{**late.__dict__, "params": {"seed": str(seed)}, "run_id": f"late {seed}"})
        for seed in (1, 2)
    ]
    rows = rows_of([*grid(), *waiting])
    assert rows.left_out == ()
    assert [row.state for row in rows.final].count("waiting") == 2


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
    # Published were two queries in flight.
    assert single[7].published is None
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
    by_name = {d.deployment.name: d for d in summary.deployments}
    assert by_name["resnet18/baseline"].latency.value == 10.0
    assert by_name["resnet18/share-frozen"].latency.value == 6.0
    assert by_name["resnet18/share-bias"].latency.value == 10.0


def test_csv_holds_full_precision_reasons_and_the_stamp() -> None:
    failed = run("resnet18", "dual", state="failed", reason="a\nb", data="coco_mini")
    runs = replace(grid(data="coco_mini"), failed)
    facts = facts_of(runs)
    lines = list(csv.DictReader(io.StringIO(csv_text(table("4.14", facts), facts.rows))))
    assert len(lines) == 4
    assert lines[0]["missing or doubtful"].startswith("mIoU: failed: a b")
    assert lines[1]["mIoU change [percent] ours"].startswith("10.0")
    assert lines[1]["mIoU [fraction] reference (other data)"] == "0.5613"
    assert lines[1]["data digest"] == "ab" * 32
    assert lines[1]["synthetic"] == "no"
    drawn = facts_of(grid(data="synthetic"))
    line = next(csv.DictReader(io.StringIO(csv_text(table("4.14", drawn), drawn.rows))))
    assert line["synthetic"] == "never a result"


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


def test_the_difference_is_ours_minus_the_published_number_in_its_own_unit() -> None:
    filled = table("4.6", facts_of(grid()))
    # Ours: mIoU .4 and -20 %; published .4358 and -14.6 %.
    assert [cell.text for cell in cells(filled, filled.rows[0])[:7]] == [
        "resnet18",
        *("0.4000", "0.4358", "-0.0358"),
        *("-20.00 %", "-14.60 %", "-5.40 pp"),
    ]
    assert [head.part for head in heads(filled)[:4]] == ["", "ours", "published", "difference"]
    row = next(csv.DictReader(io.StringIO(csv_text(filled, facts_of(grid()).rows))))
    assert float(row["mIoU [fraction] difference"]) == pytest.approx(-0.0358)
    assert not any(cell.strong for r in filled.rows for cell in cells(filled, r))


def test_beside_a_mere_reference_there_is_no_difference() -> None:
    filled = table("4.6", facts_of(grid(data="coco_mini")))
    assert {head.part for head in heads(filled)} == {"", "ours", "reference (other data)"}
    assert filled.rows[0].entries[0].difference is None


def test_a_difference_inside_the_noise_between_seeds_is_never_bold() -> None:
    # mIoU of the dual network .53, .59, .47: mean .53, sd .06. One further run is expected within
    # 4.303 * .06 * sqrt(4 / 3) = .298 of it; .5621 is.
    filled = table("4.14", three_seeds([1.06, 1.18, 0.94]))
    beside = filled.rows[0].entries[0].difference
    assert beside is not None
    assert (beside.value, beside.high) == pytest.approx((-0.0321, -0.0321 + 0.2981), abs=1e-4)
    cell = cells(filled, filled.rows[0])[3]
    assert (cell.text, cell.same, cell.strong) == ("≈ -0.0321", True, False)
    # And .5 within 4.303 * .001 * sqrt(4 / 3) = .005.
    near = cells(*(lambda t: (t, t.rows[0]))(table("4.14", three_seeds([1.0, 1.002, 0.998]))))[3]
    assert (near.text, near.same, near.strong) == ("-0.0621", False, True)


def test_a_missing_number_has_no_difference_and_says_why() -> None:
    failed = run("resnet18", "swap", "frozen", "seg", state="failed", reason="loss is NaN")
    filled = table("4.6", facts_of(replace(grid(), failed)))
    ours, printed, beside = cells(filled, filled.rows[0])[1:4]
    assert (ours.text, ours.title, ours.missing) == ("failed", "failed: loss is NaN", True)
    assert (printed.text, beside.text) == ("0.4358", "")
    assert beside.title == "failed: loss is NaN"


def scored(value: float) -> RunData:
    """A baseline detector that scored this mAP."""
    found = run("resnet18", "baseline", "none", "det")
    return RunData(**{**found.__dict__, "metrics": {**found.metrics, "test/mAP": value}})


def test_a_score_that_is_not_a_number_is_missing_with_that_reason_in_every_form() -> None:
    facts = facts_of(replace(grid(), scored(math.nan)))
    filled = table("4.5", facts)
    ours, printed, beside = cells(filled, filled.rows[0])[1:4]
    assert (ours.text, ours.sort, ours.missing, ours.absent) == ("NaN", None, True, False)
    assert "not a number" in ours.title
    assert (printed.text, beside.text) == ("0.2403", "")
    assert "not a number" in beside.title
    text = markdown(filled, facts.rows)
    assert "| resnet18 | NaN | 0.2403 |  |" in text
    assert "- resnet18, mAP: NaN: " in text
    line = next(csv.DictReader(io.StringIO(csv_text(filled, facts.rows))))
    assert line["mAP [fraction] ours"] == line["mAP [fraction] difference"] == ""
    assert line["missing or doubtful"].startswith("mAP: NaN: ")
    change = table("4.7", facts).rows[0].entries[1].ours
    assert change.value is None
    assert change.why.startswith("no baseline: NaN")


def test_a_metric_that_was_never_logged_is_told_from_one_that_is_not_a_number() -> None:
    found = run("resnet18", "baseline", "none", "det")
    metrics = {name: value for name, value in found.metrics.items() if name != "test/mAP"}
    facts = facts_of(replace(grid(), RunData(**{**found.__dict__, "metrics": metrics})))
    assert table("4.5", facts).rows[0].entries[0].ours.why.startswith("missing: ")


def test_every_missing_number_of_half_a_study_says_why() -> None:
    runs = [
        run("resnet18", "baseline", "none", "seg"),
        run("resnet18", "swap", "frozen", "seg", state="running"),
        run("resnet18", "share", "bias", "det", state="waiting", reason="needs its search"),
        scored(math.inf),
    ]
    facts = facts_of(runs, versions(), [bench("resnet18 dual", math.nan)])
    for filled in build_tables(facts):
        for row in filled.rows:
            for head, cell in zip(heads(filled), cells(filled, row), strict=True):
                if cell.sort is None and head.kind in ("ours", "difference"):
                    assert cell.title, (filled.spec.number, row.labels, head.text)
                assert cell.text not in ("nan", "inf")
    timed = table("4.16", facts).rows[0].entries[2].ours
    assert timed.why == "NaN: the timing's latency_ms/p50 is not a number"


def test_names_with_markup_stand_in_a_markdown_table_as_they_are() -> None:
    odd = "it's <b>a|b</b> *c* _d_ [e](f) `g` \\ h_i & #1"
    facts = facts_of([*grid(), run(odd, "dual")])
    lines = markdown(table("4.14", facts), facts.rows).splitlines()
    (line,) = (line for line in lines if line.startswith("| it's"))
    shown = r"it's \<b\>a\|b\</b\> \*c\* \_d\_ [e]\(f) \`g\` \\ h_i \& \#1"
    assert line.startswith(f"| {shown} | 0.5500 |")
    assert len(re.findall(r"(?<!\\)\|", line)) == len(heads(table("4.14", facts))) + 1


def test_no_seed_noise_means_no_bold_anywhere_in_a_study_of_one_seed() -> None:
    facts = facts_of(grid(), versions(), benches())
    for filled in build_tables(facts):
        assert not any(cell.strong for row in filled.rows for cell in cells(filled, row))
        assert "**" not in markdown(filled, facts.rows)
