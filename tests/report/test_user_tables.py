"""A user's own tables: what a file may say, what comes of it, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from sharedenc.cli import main
from sharedenc.errors import SharedencError, SpecError
from sharedenc.report.collect import RunData, study_rows
from sharedenc.report.table_spec import Facts
from sharedenc.report.user_tables import Filled, build, load, write
from tests.report.study import bench, benches, count, grid, run, versions

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "table.yaml"
PLAIN = "title: A table\nrows: backbone\ncolumns: method\nmetric: test/mIoU\n"
# Scores of three seeds. Dual minus baseline: 0.10, 0.11, 0.09; share minus baseline: 0.02, -0.02,
# 0.03.
BASELINE = (0.50, 0.52, 0.48)
DUAL = (0.60, 0.63, 0.57)
SHARE = (0.52, 0.50, 0.51)


def facts_of(
    runs: Sequence[RunData], timings: Sequence[RunData] = (), study: str = "written"
) -> Facts:
    rows = study_rows(study, runs, versions(), timings)
    return Facts.of(rows, count)


def seeds() -> list[RunData]:
    """One backbone with three seeds of three methods, segmentation."""
    found = []
    for seed in range(3):
        found.append(run("resnet18", "baseline", task="seg", seed=seed, factor=2 * BASELINE[seed]))
        found.append(run("resnet18", "dual", seed=seed, factor=2 * DUAL[seed]))
        found.append(run("resnet18", "share", "frozen", "seg", seed=seed, factor=2 * SHARE[seed]))
    return found


def filled(tmp_path: Path, text: str, facts: Facts) -> Filled:
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    [spec] = load(path)
    return build(spec, facts)


def texts(table: Filled, folder: Path) -> dict[str, str]:
    return {kind: path.read_text("utf-8") for kind, path in write(table, folder).items()}


def body(markdown: str) -> list[list[str]]:
    """Cells of a Markdown table, head first."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if "---" not in line
    ]


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_mean_and_deviation_are_those_worked_by_hand(tmp_path: Path) -> None:
    found = texts(filled(tmp_path, PLAIN + "where: {task: seg}\n", facts_of(seeds())), tmp_path)
    assert body(found["md"]) == [
        ["backbone", "baseline", "share-frozen", "dual"],
        ["resnet18", "0.500 ± 0.020", "0.510 ± 0.010", "0.600 ± 0.030"],
    ]
    [row] = records(found["csv"])
    assert float(row["dual mean"]) == pytest.approx(0.6)
    assert float(row["dual sd"]) == pytest.approx(0.03)
    assert row["dual n"] == "3"
    assert r"0.600 $\pm$ 0.030 \\" in found["tex"]
    assert "A number is of 3 seeds, of trials that differ in nothing else." in found["md"]


def test_a_change_is_paired_by_seed_and_has_the_interval_worked_by_hand(tmp_path: Path) -> None:
    table = filled(tmp_path, PLAIN + "baseline: baseline\n", facts_of(seeds()))
    found = texts(table, tmp_path)
    assert body(found["md"])[1] == [
        "resnet18",
        "0.500 ± 0.020",
        "0.510 ± 0.010 (≈ +2.00 %)",
        "0.600 ± 0.030 (+20.00 %)",
    ]
    [row] = records(found["csv"])
    # t(2 degrees) = 4.30265; 0.01 / sqrt(3) is the error of the mean; all over 0.5.
    half = 100 * 4.30265 * 0.01 / 3**0.5 / 0.5
    assert float(row["dual change %"]) == pytest.approx(20)
    assert float(row["dual change % 95% low"]) == pytest.approx(20 - half, abs=1e-3)
    assert float(row["dual change % 95% high"]) == pytest.approx(20 + half, abs=1e-3)
    assert (row["dual apart"], row["share-frozen apart"]) == ("yes", "no")
    assert row["baseline change %"] == ""


def test_a_change_may_be_absolute(tmp_path: Path) -> None:
    text = PLAIN + "baseline: baseline\nchange: absolute\nscale: 100\ndecimals: 1\n"
    found = texts(filled(tmp_path, text, facts_of(seeds())), tmp_path)
    assert body(found["md"])[1][3] == "60.0 ± 3.0 (+10.0)"
    assert "test/mIoU is multiplied by 100." in found["md"]


def test_a_change_pairs_only_the_seeds_that_both_have(tmp_path: Path) -> None:
    runs = [row for row in seeds() if not (row.name.endswith("dual") and row.params["seed"] == "2")]
    table = filled(tmp_path, PLAIN + "baseline: baseline\n", facts_of(runs))
    change = table.lines[0].cells[2].change
    assert change is not None
    # Seeds 0 and 1: 0.105 over the baseline's 0.51 on these.
    assert change.value == pytest.approx(100 * 0.105 / 0.51)
    assert change.runs == 2
    assert "0.615 ± 0.021 (n = 2) (+20.59 %)" in texts(table, tmp_path)["md"].replace("≈ ", "")


def test_without_a_shared_seed_the_means_are_compared_and_it_is_said(tmp_path: Path) -> None:
    runs = [
        run("resnet18", "baseline", task="seg", seed=0),
        run("resnet18", "dual", seed=1),
    ]
    table = filled(tmp_path, PLAIN + "baseline: baseline\n", facts_of(runs))
    change = table.lines[0].cells[1].change
    assert change is not None
    assert change.value == pytest.approx(10)
    assert change.low is None
    assert "resnet18 / dual: change: unpaired" in "\n".join(table.notes)


def test_only_what_is_told_apart_from_every_other_is_bold(tmp_path: Path) -> None:
    found = texts(filled(tmp_path, PLAIN + "best: max\n", facts_of(seeds())), tmp_path)
    assert body(found["md"])[1][1:] == [
        "0.500 ± 0.020",
        "0.510 ± 0.010",
        "**0.600 ± 0.030**",
    ]
    assert r"\textbf{0.600 $\pm$ 0.030}" in found["tex"]
    [row] = records(found["csv"])
    assert (row["dual bold"], row["baseline bold"]) == ("yes", "no")
    # The lowest is the baseline by 0.01, which is less than the noise.
    lowest = filled(tmp_path, PLAIN + "best: min\n", facts_of(seeds()))
    assert not any(cell.bold for line in lowest.lines for cell in line.cells)
    assert any("none is bold" in note for note in lowest.notes)
    anyway = filled(tmp_path, PLAIN + "best: any min\n", facts_of(seeds()))
    assert [cell.bold for cell in anyway.lines[0].cells] == [True, False, False]
    assert any("whether or not it is more than the noise" in note for note in anyway.notes)


def test_what_leads_by_a_seed_of_its_own_alone_is_not_bold(tmp_path: Path) -> None:
    runs = [
        *(run("resnet18", "baseline", task="seg", seed=s, factor=1.0 + s / 100) for s in range(3)),
        *(run("resnet18", "dual", seed=s, factor=0.9 + s / 100) for s in range(3)),
        run("resnet18", "dual", seed=3, factor=1.9),
    ]
    table = filled(tmp_path, PLAIN + "best: max\n", facts_of(runs))
    baseline, dual = table.lines[0].cells
    assert (dual.figure.value or 0) > (baseline.figure.value or 0)
    assert not baseline.bold
    assert not dual.bold


def test_one_seed_makes_nothing_bold_unless_any_is_asked_for(tmp_path: Path) -> None:
    facts = facts_of(grid())
    plain = filled(tmp_path, PLAIN + "best: max\n", facts)
    assert not any(cell.bold for line in plain.lines for cell in line.cells)
    assert any("one seed" in note for note in plain.notes)
    anyway = filled(tmp_path, PLAIN + "best: any\n", facts)
    assert [cell.bold for cell in anyway.lines[0].cells] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("show", "expected"),
    [
        ("mean", "0.600"),
        ("median", "0.600"),
        ("min..max", "0.570..0.630"),
        ("n", "3"),
    ],
)
def test_what_is_shown_of_the_seeds(tmp_path: Path, show: str, expected: str) -> None:
    table = filled(tmp_path, PLAIN + f"show: {show}\n", facts_of(seeds()))
    assert body(texts(table, tmp_path)["md"])[1][3] == expected


def test_methods_may_stand_below_each_other_with_the_baseline_as_a_row(tmp_path: Path) -> None:
    text = (
        "title: T\nrows: [backbone, method]\nbaseline: baseline\nbest: max\n"
        "columns: [{metric: test/mIoU, name: mIoU}, {metric: test/mAP, name: mAP}]\n"
    )
    table = filled(tmp_path, text, facts_of(grid()))
    found = body(texts(table, tmp_path)["md"])
    assert found[0] == ["backbone", "method", "mIoU", "mAP"]
    assert [row[1] for row in found[1:7]] == [
        *("baseline", "swap-frozen", "swap-bias", "share-frozen", "share-bias", "dual"),
    ]
    assert found[6] == ["resnet18", "dual", "0.550 (+10.00 %)", "0.220 (+10.00 %)"]
    assert len(found) == 1 + 4 * 6


def test_the_best_may_be_sought_along_another_axis(tmp_path: Path) -> None:
    runs = seeds() + [
        run("densenet121", "dual", seed=seed, factor=2 * DUAL[seed] - 0.2) for seed in range(3)
    ]
    table = filled(tmp_path, PLAIN + "best: max\ncompare: backbone\n", facts_of(runs))
    bold = {line.labels[0]: [cell.bold for cell in line.cells] for line in table.lines}
    # The same difference with every seed is told apart; a column of one number has no best.
    assert bold == {"resnet18": [False, False, True], "densenet121": [False, False, False]}


def test_a_missing_number_says_why(tmp_path: Path) -> None:
    runs = [
        run("resnet18", "baseline", task="seg"),
        run("resnet18", "dual", state="failed", reason="loss is NaN"),
        run("densenet121", "baseline", task="seg"),
    ]
    table = filled(tmp_path, PLAIN + "missing: n/a\nbaseline: dual\n", facts_of(runs))
    found = texts(table, tmp_path)
    assert body(found["md"])[1] == ["resnet18", "0.500 (n/a)", "n/a"]
    assert "resnet18 / dual: failed: loss is NaN" in found["md"]
    assert "densenet121 / dual: not in this study" in found["md"]
    assert "resnet18 / baseline: change: no dual: failed: loss is NaN" in found["md"]
    row = records(found["csv"])[0]
    assert row["dual mean"] == ""
    assert "dual: failed: loss is NaN" in row["missing or doubtful"]


def test_a_failed_seed_is_told_beside_the_mean_of_the_others(tmp_path: Path) -> None:
    runs = [
        *seeds()[:-3],
        run("resnet18", "dual", seed=2, state="failed", reason="out of memory"),
        run("resnet18", "baseline", task="seg", seed=2, factor=2 * BASELINE[2]),
    ]
    table = filled(tmp_path, PLAIN, facts_of(runs))
    assert any(
        "without 1 of 3 seeds: seed 2 (failed: out of memory)" in note for note in table.notes
    )


def test_undefined_and_broken_scores_are_no_numbers(tmp_path: Path) -> None:
    runs = [
        run("resnet18", "baseline", task="seg", factor=-2.0),
        run("resnet18", "dual", factor=float("nan")),
    ]
    table = filled(tmp_path, PLAIN, facts_of(runs))
    assert [cell.figure.value for cell in table.lines[0].cells] == [None, None]
    assert "undefined: nothing in this data" in table.lines[0].cells[0].figure.why
    assert "not a number" in table.lines[0].cells[1].figure.why


def sweep_over_alpha() -> list[RunData]:
    """Two values of alpha for the dual network: 0.55 and 0.5 mIoU; the report's tables keep one."""
    return [
        run("resnet18", "dual", seed=seed, factor=factor, recipe={"recipe.alpha": alpha})
        for alpha, factor in (("6.0", 1.1), ("1.0", 1.0))
        for seed in range(2)
    ]


def test_a_swept_setting_may_be_an_axis(tmp_path: Path) -> None:
    facts = facts_of(sweep_over_alpha())
    assert len(facts.rows.left_out) == 2
    text = "title: T\nrows: recipe.alpha\ncolumns: backbone\nmetric: test/mIoU\n"
    table = filled(tmp_path, text, facts)
    assert body(texts(table, tmp_path)["md"])[1:] == [
        ["1", "0.500 ± 0.000"],
        ["6", "0.550 ± 0.000"],
    ]
    one = filled(tmp_path, text + "where: {recipe.alpha: 6}\n", facts)
    assert [line.labels for line in one.lines] == [("6",)]


def test_different_recipes_are_never_averaged(tmp_path: Path) -> None:
    facts = facts_of(sweep_over_alpha())
    with pytest.raises(SpecError) as caught:
        filled(tmp_path, PLAIN, facts)
    told = str(caught.value)
    assert "mine.yaml:1: resnet18 / dual: 4 trials differ in more than the seed" in told
    assert "recipe.alpha (1, 6)" in told
    assert "where: {recipe.alpha: 1}" in told
    kept = filled(tmp_path, PLAIN + "trials: tables\n", facts)
    assert kept.lines[0].cells[0].figure.runs == 2


def test_different_learning_rates_are_never_averaged(tmp_path: Path) -> None:
    runs = [run("resnet18", "dual", seed=seed, lr=lr) for seed in (0, 1) for lr in (1e-4, 2e-4)]
    with pytest.raises(SpecError, match=r"lr \(0.0001, 0.0002\)"):
        filled(tmp_path, PLAIN, facts_of(runs))
    table = filled(tmp_path, PLAIN + "where: {lr: 2e-4}\n", facts_of(runs))
    assert table.lines[0].cells[0].figure.runs == 2


def test_different_cells_are_never_averaged(tmp_path: Path) -> None:
    text = "title: T\nrows: backbone\ncolumns: strategy\nmetric: params/total\n"
    with pytest.raises(SpecError, match=r"task \(det, seg\)"):
        filled(tmp_path, text, facts_of(grid()))
    with pytest.raises(SpecError, match=r"method \(swap-frozen, swap-bias\)"):
        filled(tmp_path, text + "where: {task: det}\n", facts_of(grid()))
    table = filled(tmp_path, text + "where: {task: det, freeze: [none, bias]}\n", facts_of(grid()))
    assert [head.value for head in table.heads] == ["baseline", "swap", "share", "dual"]


def test_a_recipe_that_differs_between_numbers_is_noted(tmp_path: Path) -> None:
    runs = [
        run("resnet18", "baseline", task="seg", recipe={"recipe.epochs": "24"}),
        run("resnet18", "dual", recipe={"recipe.epochs": "100"}),
    ]
    table = filled(tmp_path, PLAIN, facts_of(runs))
    assert "Not all numbers are of one recipe.epochs: 24, 100." in table.notes


def test_of_two_runs_with_one_seed_the_newest_counts_and_it_is_said(tmp_path: Path) -> None:
    runs = [run("resnet18", "dual", factor=f, end_ms=ms) for f, ms in ((1.0, 2000), (0.8, 1000))]
    table = filled(tmp_path, PLAIN, facts_of(runs))
    assert table.lines[0].cells[0].figure.value == pytest.approx(0.5)
    assert any(note.startswith("Left out, as another trial") for note in table.notes)


def test_other_data_is_left_out_and_it_is_said(tmp_path: Path) -> None:
    runs = [
        run("resnet18", "dual", factor=1.0, end_ms=2000),
        run("resnet18", "dual", factor=0.8, end_ms=1000, digest="cd" * 32),
    ]
    table = filled(tmp_path, PLAIN, facts_of(runs))
    assert table.lines[0].cells[0].figure.value == pytest.approx(0.5)
    assert "Left out, as trained on other data: 1 trials." in table.notes


def test_values_stand_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    text = PLAIN + "where: {backbone: [densenet121, resnet18], method: [dual, baseline]}\n"
    table = filled(tmp_path, text, facts_of(grid()))
    assert [line.labels[0] for line in table.lines] == ["densenet121", "resnet18"]
    assert [head.value for head in table.heads] == ["dual", "baseline"]


def test_what_was_asked_for_by_name_has_its_place_though_it_is_missing(tmp_path: Path) -> None:
    text = PLAIN + "where: {backbone: [resnet18, densenet121]}\n"
    table = filled(tmp_path, text, facts_of(seeds()))
    assert table.lines[1].labels == ("densenet121",)
    assert {cell.figure.why for cell in table.lines[1].cells} == {"not in this study"}


def test_timings_have_axes_of_their_own(tmp_path: Path) -> None:
    text = "title: T\nrows: backbone\ncolumns: graph\nmetric: latency_ms/p50\ndecimals: 1\n"
    table = filled(tmp_path, text + "baseline: encoder\n", facts_of(grid(), benches()))
    assert body(texts(table, tmp_path)["md"])[:2] == [
        ["backbone", "encoder", "seg", "det", "dual"],
        ["resnet18", "4.0", "5.0 (+25.00 %)", "5.0 (+25.00 %)", "6.0 (+50.00 %)"],
    ]
    assert not any("seed" in note for note in table.notes)


def test_a_timing_belongs_to_the_cells_that_run_its_network(tmp_path: Path) -> None:
    text = (
        "title: T\nrows: method\nwhere: {task: seg, backbone: resnet18}\n"
        "columns: [test/mIoU, latency_ms/p50]\n"
    )
    table = filled(tmp_path, text, facts_of(grid(), benches()))
    latencies = {line.labels[0]: line.cells[1].figure.value for line in table.lines}
    assert latencies["baseline"] == latencies["swap-bias"] == 5.0
    assert latencies["dual"] == 6.0


def test_a_doubtful_timing_is_marked_and_two_setups_are_not_averaged(tmp_path: Path) -> None:
    timings = [
        bench("resnet18 dual", 6.0, verdict="suspect", reasons="hot: 90 C"),
        bench("resnet18 dual", 7.0, load="single"),
    ]
    text = "title: T\nrows: backbone\ncolumns: graph\nmetric: latency_ms/p50\n"
    with pytest.raises(
        SpecError, match=r"2 timings differ.*load \((single, stream|stream, single)\)"
    ):
        filled(tmp_path, text, facts_of(grid(), timings))
    table = filled(tmp_path, text + "where: {load: stream}\n", facts_of(grid(), timings))
    found = texts(table, tmp_path)
    assert body(found["md"])[1][1] == "6.000 [suspect]"
    assert "suspect: hot: 90 C" in found["md"]


def test_names_with_quotes_and_markup_change_nothing_but_themselves(tmp_path: Path) -> None:
    evil = 'a|b <img src=x> "q" & 50% $x_1$ *c*'
    runs = [
        run("resnet18", "baseline", task="seg"),
        run("resnet18", "dual", state="failed", reason=f"bad\n{evil}"),
    ]
    text = PLAIN + "labels:\n  resnet18: '" + evil + "'\n  dual: '[x] \\\\ | y'\n"
    table = filled(tmp_path, text, facts_of(runs, study=evil))
    found = texts(table, tmp_path)
    rows = [line for line in found["md"].splitlines() if line.startswith("|")]
    assert all(line.replace("\\\\", "").replace("\\|", "").count("|") == 4 for line in rows)
    assert "<img" not in found["md"].replace("\\<img", "")
    [row] = records(found["csv"])
    assert row["backbone"] == evil
    assert row["study"] == evil
    assert r"50\% \$x\_1\$" in found["tex"]
    assert not any(line.startswith("bad") for line in found["tex"].splitlines())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_tables_compile(tmp_path: Path) -> None:
    text = (
        PLAIN + "best: max\nbaseline: baseline\n"
        "labels: {resnet18: '[1] a|b <i>\"q\"</i> & 50% $x_1$ #~^\\{}', dual: '*d*'}\n"
    )
    paths = [
        write(filled(tmp_path, text, facts_of(seeds())), tmp_path)["tex"],
        *(write(build(s, facts_of(grid(), benches())), tmp_path)["tex"] for s in load(EXAMPLE)),
    ]
    inputs = "\n\n".join(rf"\input{{{path.name}}}" for path in paths)
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        f"{inputs}\n\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Missing character" not in (tmp_path / "all.log").read_text(errors="replace")


def test_the_example_of_the_manual_fills_from_a_whole_study() -> None:
    facts = facts_of(grid(), benches())
    first, second = (build(spec, facts) for spec in load(EXAMPLE))
    assert [head.value for head in first.heads][0::5] == ["baseline", "dual"]
    assert first.lines[0].cells[5].figure.value == pytest.approx(0.55)
    assert [cell.figure.value for cell in second.lines[0].cells] == [
        pytest.approx(55),
        pytest.approx(22),
        pytest.approx(12.5),
        pytest.approx(6),
    ]
    assert not any(
        cell.figure.why for table in (first, second) for line in table.lines for cell in line.cells
    )
    manual = (EXAMPLE.parents[1] / "report.md").read_text("utf-8")
    assert EXAMPLE.read_text("utf-8").strip() in manual


TABLES = "tables:\n  - {title: A, name: a, rows: backbone, columns: method, metric: test/mIoU}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["mine.yaml:1", "a table is a mapping"]),
        ("- 1\n", ["mine.yaml:1", "a table is a mapping"]),
        ("a: [\n", ["mine.yaml is not YAML", "line 2"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["is not YAML", "python/object"]),
        ("&a [*a]\n", ["mine.yaml:1", "a table is a mapping"]),
        ("title: A\ntitle: B\n", ["mine.yaml:2", "'title' is there twice, first in line 1"]),
        ("rows: backbone\n", ["mine.yaml:1", "a table needs 'title'"]),
        (PLAIN + "metrik: x\n", ["mine.yaml:5", "'metrik' is no setting", "'metric'"]),
        (PLAIN.replace("rows: backbone", "rows: backbon"), ["mine.yaml:2", "'backbone'", "cell"]),
        (
            PLAIN.replace("rows: backbone", "rows: method"),
            ["mine.yaml:2", "'method' is on two axes"],
        ),
        (PLAIN.replace("metric: test/mIoU\n", ""), ["mine.yaml:1", "needs 'metric'"]),
        (PLAIN + "show: average\n", ["mine.yaml:5", "show='average'", "mean ± sd", "median"]),
        (PLAIN + "best: maximum\n", ["mine.yaml:5", "best='maximum'", "any max"]),
        (PLAIN + "change: ratio\nbaseline: dual\n", ["mine.yaml:5", "change='ratio'", "percent"]),
        (PLAIN + "change: percent\n", ["mine.yaml:5", "name one: baseline"]),
        (PLAIN + "trials: some\n", ["mine.yaml:5", "trials='some'", "all, tables"]),
        (PLAIN + "decimals: 2.5\n", ["mine.yaml:5", "decimals=2.5", "0 to 12"]),
        (PLAIN + "decimals: true\n", ["mine.yaml:5", "decimals=True"]),
        (PLAIN + "scale: 0\n", ["mine.yaml:5", "scale=0", "above 0"]),
        (PLAIN + "scale: .nan\n", ["mine.yaml:5", "scale=nan"]),
        (PLAIN + "name: ../up\n", ["mine.yaml:5", "name='../up'", "letters"]),
        (PLAIN + "where: seg\n", ["mine.yaml:5", "where='seg'", "task: seg"]),
        (PLAIN + "where:\n  tsk: seg\n", ["mine.yaml:6", "'tsk' is no axis", "'task'"]),
        (PLAIN + "where:\n  task:\n", ["mine.yaml:6", "task: None"]),
        (PLAIN + "labels: x\n", ["mine.yaml:5", "labels='x'"]),
        (PLAIN + "compare: seed\n", ["mine.yaml:5", "compare='seed'", "backbone, method"]),
        (PLAIN + "show: n\nbest: max\n", ["mine.yaml:5", "show: n counts seeds"]),
        (PLAIN.replace("columns: method", "columns: [{metric: test/mIoU}]"), ["mine.yaml:4"]),
        (
            "title: A\nrows: cell\ncolumns:\n  - {name: x}\n",
            ["mine.yaml:4", "a column is a metric"],
        ),
        (
            "title: A\nrows: cell\ncolumns:\n  - a\n  - a\n",
            ["mine.yaml:5", "two columns are named"],
        ),
        (
            "title: A\nrows: cell\ncolumns:\n  - {metric: a, digits: 1}\n",
            ["mine.yaml:4", "'digits' is no setting here", "decimals"],
        ),
        ("tables: {}\n", ["mine.yaml:1", "must be a list of tables"]),
        ("tables: [1]\n", ["mine.yaml:1", "this is 1"]),
        (TABLES + "title: x\n", ["mine.yaml:3", "'title' is no setting here"]),
        (TABLES + TABLES.partition("\n")[2], ["mine.yaml:3", "two tables are named 'a'"]),
    ],
)
def test_a_file_that_is_wrong_says_where_and_what_is_allowed(
    tmp_path: Path, text: str, told: list[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(SpecError) as caught:
        load(path)
    for part in told:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PLAIN.replace("mIoU", "mIuO"), ["test/mIuO", "test/pixel_acc", "'test/mIoU'"]),
        (PLAIN + "where: {backbone: resnet81}\n", ["'resnet81'", "'resnet18'", "densenet121"]),
        (PLAIN.replace("method", "recipe.alpa"), ["'recipe.alpa'", "recipe.epochs"]),
        (PLAIN.replace("method", "graph"), ["'graph' is no axis of test/mIoU", "strategy"]),
        (
            PLAIN.replace("method", "seed").replace("test/mIoU", "latency_ms/p50"),
            ["'seed' is no axis of latency_ms/p50", "precision"],
        ),
        (PLAIN + "where: {precision: fp32}\n", ["'precision' sorts nothing out"]),
        (PLAIN + "baseline: basline\n", ["baseline='basline'", "'baseline'", "share-bias"]),
        (
            PLAIN + "where: {task: det, freeze: bias}\n",
            ["nothing in study 'written'", "task=det and freeze=bias"],
        ),
        (
            "title: T\nrows: strategy\ncolumns: method\nmetric: test/mIoU\n"
            "where: {freeze: none}\nbaseline: dual\n",
            ["'dual' is a value of strategy and method", "compare"],
        ),
    ],
)
def test_what_a_study_does_not_have_is_refused_with_what_it_has(
    tmp_path: Path, text: str, told: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        filled(tmp_path, text, facts_of(grid(), benches()))
    assert "mine.yaml:1" in str(caught.value)
    for part in told:
        assert part in str(caught.value)


def test_the_command_writes_and_prints_the_tables_of_a_study_on_a_server(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(mlflow_uri, mlflow_uri)
    experiment = client.create_experiment("own-tables")
    client.create_run(experiment, tags={"sharedenc.kind": "study"})
    for data in seeds():
        created = client.create_run(experiment, tags=dict(data.tags)).info.run_id
        client.log_batch(
            created,
            metrics=[Metric(name, value, 1, 0) for name, value in data.metrics.items()],
            params=[Param(name, value) for name, value in data.params.items()],
        )
        client.set_terminated(created)
    path = tmp_path / "mine.yaml"
    path.write_text(PLAIN + "best: max\n", "utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    arguments = ["report", "own-tables", "--table", str(path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "| resnet18 | 0.500 ± 0.020 | 0.510 ± 0.010 | **0.600 ± 0.030** |" in done.stdout
    names = sorted(path.name for path in (tmp_path / "out").rglob("mine.*"))
    assert names == ["mine.csv", "mine.md", "mine.tex"]
    told = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert sorted(json.loads(told.stdout)["tables"]["mine"]) == ["csv", "md", "tex"]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml cannot be read"):
        load(tmp_path / "nowhere.yaml")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table = filled(tmp_path, PLAIN, facts_of(grid()))
    with pytest.raises(SharedencError, match="table mine cannot be written"):
        write(table, tmp_path / "file")


def test_tables_are_named_by_their_file_where_they_have_no_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PLAIN)
    assert [spec.name for spec in load(path)] == ["mine"]
    one = "  - {title: A, rows: backbone, columns: method, metric: test/mIoU}\n"
    path.write_text("tables:\n" + one + one)
    assert [spec.name for spec in load(path)] == ["mine-1", "mine-2"]
