"""The report from code: tables and figures as DataFrames, light to import, documented columns."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sharedenc import report
from sharedenc.errors import SpecError
from sharedenc.report.collect import RunData, study_rows
from sharedenc.report.evidence import Curve
from sharedenc.report.frames import Study
from sharedenc.report.table_spec import Facts
from sharedenc.report.thesis import published_facts
from tests.report.study import bench, benches, count, grid, run, versions

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "figure_5_4.py"


def study_of(
    runs: list[RunData], timings: list[RunData] | None = None, curves: tuple[Curve, ...] = ()
) -> Study:
    rows = study_rows("written", runs, versions(), timings or [])
    facts = Facts.of(rows, count)
    return Study(facts=facts, reference=published_facts(count), curves=curves)


@pytest.fixture(scope="module")
def whole() -> Study:
    """All 44 cells with one seed, timed once."""
    return study_of(grid(), benches())


@pytest.fixture(scope="module")
def seeded() -> Study:
    """Three seeds of every cell, all with one score: intervals of no width."""
    return study_of([row for seed in range(3) for row in grid(seed=seed)])


@pytest.fixture(scope="module")
def thesis() -> Study:
    facts = published_facts(count)
    return Study(facts=facts, reference=facts)


def row(frame: pd.DataFrame, **labels: str) -> pd.Series:
    for name, value in labels.items():
        frame = frame[frame[name] == value]
    [found] = [frame.iloc[at] for at in range(len(frame))]
    return found


def test_importing_the_report_imports_nothing_heavy() -> None:
    check = (
        "import sys; from sharedenc import report; report.load; "
        "assert not {'pandas', 'torch', 'mlflow', 'matplotlib', 'jinja2', 'numpy'} "
        "& set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_table_has_ours_the_published_number_and_the_difference(whole: Study) -> None:
    frame = whole.table("4.6")
    found = row(frame, backbone="resnet18")
    # The study's baseline has 0.5 and swap-frozen 0.8 of it; the source prints 0.4358.
    assert found["mIoU"] == pytest.approx(0.4)
    assert found["mIoU published"] == 0.4358
    assert found["mIoU difference"] == pytest.approx(0.4 - 0.4358)
    assert found["mIoU change"] == pytest.approx(-20)
    assert list(frame.columns[:4]) == ["backbone", "mIoU", "mIoU published", "mIoU difference"]
    assert frame.columns[-1] == "note"
    assert not {"mIoU sd", "mIoU low", "mIoU seeds"} & set(frame.columns)


def test_a_table_says_what_it_was_measured_on(whole: Study) -> None:
    attrs = whole.table("4.6").attrs
    assert attrs["title"] == "Segmentation on the detector's frozen encoder"
    assert (attrs["study"], attrs["data"]) == ("written", "coco2017")
    assert attrs["data_digest"] == "ab" * 32
    assert attrs["published"] == "published"
    assert attrs["units"]["mIoU change"] == "percent"
    assert attrs["synthetic"] is False
    assert study_of(grid(data="synthetic-64")).table("4.6").attrs["synthetic"] is True


def test_on_other_data_nothing_is_subtracted() -> None:
    frame = study_of(grid(data="mine")).table("4.6")
    assert frame.attrs["published"] != "published"
    assert "mIoU difference" not in frame.columns


def test_several_seeds_have_deviation_interval_and_number() -> None:
    scores = {"baseline": (0.50, 0.52, 0.48), "swap": (0.40, 0.43, 0.37)}
    study = study_of(
        [
            run("resnet18", strategy, freeze, "seg", seed=seed, factor=2 * scores[strategy][seed])
            for strategy, freeze in (("baseline", "none"), ("swap", "frozen"))
            for seed in range(3)
        ]
    )
    found = row(study.table("4.6"), backbone="resnet18")
    assert found["mIoU sd"] == pytest.approx(0.03)
    assert found["mIoU seeds"] == 3
    # Differences -0.10, -0.09, -0.11 over 0.5; t(2) = 4.30265.
    half = 100 * 4.30265 * 0.01 / 3**0.5 / 0.5
    assert found["mIoU change"] == pytest.approx(-20)
    assert found["mIoU change low"] == pytest.approx(-20 - half, abs=1e-3)
    assert found["mIoU change high"] == pytest.approx(-20 + half, abs=1e-3)


def test_a_missing_number_is_nan_and_the_note_says_why() -> None:
    runs = [
        run("resnet18", "baseline", task="seg"),
        run("resnet18", "dual", state="failed", reason="loss is NaN"),
    ]
    found = row(study_of(runs).table("4.14"), backbone="resnet18")
    assert pd.isna(found["mIoU"])
    assert "mIoU: failed: loss is NaN" in found["note"]


def test_every_table_and_figure_can_be_had(whole: Study, seeded: Study, thesis: Study) -> None:
    for study in (whole, seeded, thesis):
        for name in study.tables:
            assert len(study.table(name).columns) > 2, name
        for name in study.figures:
            frame = study.figure(name)
            assert len(frame) > 0, name
            assert frame.columns[-1] == "note"
    numbers = {f"4.{number}" for number in range(4, 18)} | {"5.1", "A.1", "A.2"}
    assert numbers <= set(whole.tables)
    assert {"4.1", "5.1", "5.2", "5.3", "5.4", "5.5"} <= set(whole.figures)


def test_numbers_are_floats_even_where_all_are_missing() -> None:
    runs = [run("resnet18", "dual", state="failed", reason="x")]
    frame = study_of(runs).table("4.14")
    assert str(frame["mIoU"].dtype) == "float64"


def test_the_figure_of_recovery_is_the_one_worked_by_hand(whole: Study, thesis: Study) -> None:
    found = row(whole.figure("5.4"), backbone="resnet18", strategy="share")
    # 0.95 of the baseline with biases, 0.75 without: 20 points of it.
    assert found["mIoU recovered (pp)"] == pytest.approx(20)
    theirs = row(thesis.figure("5.4"), backbone="resnet18", strategy="share")
    scores = {
        name: row(thesis.table("A.1"), backbone="resnet18", method=name)["mIoU"]
        for name in ("share-bias", "share-frozen", "baseline")
    }
    points = 100 * (scores["share-bias"] - scores["share-frozen"]) / scores["baseline"]
    assert theirs["mIoU recovered (pp)"] == pytest.approx(points)
    assert found["mIoU recovered (pp) difference"] == pytest.approx(20 - points)


def test_curves_are_a_figure_where_they_were_read(whole: Study) -> None:
    assert "curves" not in whole.figures
    curves = (Curve(cell="resnet18/dual", seed=0, metric="val/mIoU", points=((1, 0.1), (2, 0.3))),)
    assert "curves" in study_of(grid(), curves=curves).figures


def test_trials_has_every_trial_and_why_the_tables_leave_it_out() -> None:
    runs = [
        run("resnet18", "dual", seed=seed, recipe={"recipe.alpha": alpha})
        for alpha in ("6.0", "1.0")
        for seed in range(2)
    ]
    runs.append(run("resnet18", "dual", stage="lr-search", lr=1e-3))
    frame = study_of(runs).trials()
    assert len(frame) == 5
    assert frame["in_tables"].sum() == 2
    left_out = frame[~frame["in_tables"]]["left_out"]
    assert sorted(set(left_out)) == [
        "a trial of a learning-rate search",
        "another recipe than the tables'",
    ]
    first = frame.iloc[0]
    assert (first["task"], first["seed"], first["lr"]) == ("both", 0, 2e-4)
    assert first["test/mIoU"] == pytest.approx(0.55)
    assert set(frame["recipe.alpha"].dropna()) == {"6.0", "1.0"}


def test_timings_has_every_timing(whole: Study) -> None:
    frame = whole.timings()
    assert len(frame) == 16
    found = row(frame, backbone="resnet18", graph="dual")
    assert (found["latency_ms/p50"], found["load"]) == (6.0, "stream")
    suspect = study_of(grid(), [bench("resnet18 dual", 6.0, verdict="suspect", reasons="hot")])
    assert suspect.timings().iloc[0]["reason"] == "hot"


def test_a_study_that_was_never_timed_has_no_timings_and_its_deployments() -> None:
    study = study_of(grid())
    assert len(study.timings()) == 0
    assert "latency" not in study.timings().columns
    found = row(study.deployments(), deployment="resnet18/dual")
    assert found["passes"] == 1
    assert found["mIoU"] == pytest.approx(0.55)
    assert pd.isna(found["latency (ms)"])
    assert "latency (ms): not timed yet" in found["note"]


def test_deployments_count_passes_and_latency(whole: Study) -> None:
    frame = whole.deployments()
    pair = row(frame, deployment="resnet18/baseline")
    dual = row(frame, deployment="resnet18/dual")
    assert (pair["passes"], dual["passes"]) == (2, 1)
    # Segmentation and detection take 5 ms each, the dual network 6 ms.
    assert (pair["latency (ms)"], dual["latency (ms)"]) == (10.0, 6.0)
    assert bool(dual["on_front"]) is True
    assert dual["models"] == "voc20-resnet18-dual/1"


def test_findings_have_a_verdict_each(thesis: Study) -> None:
    frame = thesis.findings()
    assert len(frame) >= 4
    assert set(frame["verdict"]) <= {"agrees", "differs", "cannot tell"}
    # The published numbers compared with themselves.
    assert list(frame["ours"]) == list(frame["published"])


def test_an_unknown_name_is_told_with_the_nearest(whole: Study) -> None:
    with pytest.raises(SpecError, match=r"no table '4\.66'; there are 4\.4, .*mean '4\.6'\?"):
        whole.table("4.66")
    with pytest.raises(SpecError, match=r"no figure 'frnt'.*Did you mean 'front'\?"):
        whole.figure("frnt")


def test_without_a_server_the_error_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SpecError, match=r"'mine'.*none is named: give uri=.*MLFLOW_TRACKING_URI"):
        report.load("mine")


def test_a_study_is_read_from_a_server(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri, mlflow_uri)
    experiment = client.create_experiment("from-code")
    parent = client.create_run(experiment, tags={"sharedenc.kind": "study"}).info.run_id
    data = run("resnet18", "dual")
    child = client.create_run(
        experiment, tags={**data.tags, "mlflow.parentRunId": parent}
    ).info.run_id
    for epoch, value in ((1, 0.1), (2, 0.3)):
        client.log_metric(child, "val/mIoU", value, step=epoch)
    for name, value in data.metrics.items():
        client.log_metric(child, name, value)
    for name, text in data.params.items():
        client.log_param(child, name, text)
    client.set_terminated(child)
    found = report.load("from-code", mlflow_uri, curves=True)
    assert row(found.table("4.14"), backbone="resnet18")["mIoU"] == pytest.approx(0.55)
    assert "curves" in found.figures
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    assert len(report.load("from-code").trials()) == 1
    with pytest.raises(SpecError, match="from-cod"):
        report.load("from-cod")


def test_the_published_numbers_need_no_server_and_no_drawing_and_the_example_draws_them(
    tmp_path: Path,
) -> None:
    body = ast.parse(EXAMPLE.read_text("utf-8")).body
    # All but the text at the top.
    assert len(body[1:]) == 10
    # In one process: counting the networks needs torch, which takes seconds to import.
    check = (
        "import os, runpy, sys; os.environ.pop('MLFLOW_TRACKING_URI', None); "
        "from sharedenc import report; study = report.load('published'); "
        "value = study.table('4.6').set_index('backbone').loc['resnet18', 'mIoU']; "
        "assert value == 0.4358, value; assert not {'mlflow', 'matplotlib'} & set(sys.modules); "
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", check], cwd=tmp_path, check=True)
    from PIL import Image

    with Image.open(tmp_path / "figure_5_4.png") as picture:
        assert picture.width == 2100
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 2
    manual = (ROOT / "docs" / "report.md").read_text("utf-8")
    assert EXAMPLE.read_text("utf-8").partition("\n\n")[2].strip() in manual
