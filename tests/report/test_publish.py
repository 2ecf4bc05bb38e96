"""A report on its parent run in MLflow: files, metrics and description, on a real server."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from sharedenc.errors import TrackingError
from sharedenc.mlflow_server import free_port
from sharedenc.report.collect import StudyRows, collect, study_rows
from sharedenc.report.contents import Contents
from sharedenc.report.description import BEGIN, END, cell_metrics, describe
from sharedenc.report.publish import publish
from sharedenc.report.summary import summarise
from sharedenc.report.table_spec import Facts
from sharedenc.tracking import MAX_TAG, MlflowTracker
from tests.browser import chromium
from tests.report.study import bench, count, grid, run, versions

LINK = "#/experiments/1/runs/r/artifacts/report/index.html"


def contents_of(rows: StudyRows, **more: Any) -> Contents:
    facts = Facts.of(rows, count)
    return Contents(facts=facts, tables=(), summary=summarise(facts), **more)


def rows_of(runs: list[Any], study: str = "written") -> StudyRows:
    return study_rows(study, runs, versions(), [bench("resnet18 dual", 5.0)])


# The description and the metrics, as text and numbers.


def test_the_description_says_what_was_swept_and_links_the_report() -> None:
    runs = [*grid(), run("resnet18", "dual", seed=1, factor=1.3)]
    runs[0] = run("resnet18", "baseline", task="det", state="failed", reason="no memory")
    text = describe(contents_of(rows_of(runs)), LINK, {"sharedenc.settings": '{"kind": "k"}'}, "")
    assert text is not None
    # MLflow shows the first lines only until somebody asks for more.
    assert text.splitlines()[2] == f"[**Open the report**]({LINK})"
    assert "- **written**, kind k" in text
    assert "- 44 cells: 43 done, 1 failed" in text
    assert "- seeds: 0, 1" in text
    assert "- data: coco2017, digest abababababab, 20 classes" in text
    assert "timed on: desk, 2 threads, onnxruntime" in text
    # Baseline mIoU 0.5; dual 0.55 and 0.65 over two seeds, mAP 0.22 and 0.26.
    (row,) = [line for line in text.splitlines() if line.startswith("| resnet18 |")]
    entries = [cell.strip() for cell in row.strip("|").split("|")]
    assert entries[1] == "0.500 / –"  # noqa: RUF001
    assert entries[-1] == "0.600 / 0.240"


def test_somebodys_own_description_is_kept_and_ours_replaced() -> None:
    contents = contents_of(rows_of(grid()))
    first = describe(contents, LINK, {}, "My *own* words.")
    assert first is not None
    assert first.startswith("My *own* words.\n\n" + BEGIN)
    edited = first + "\nand more below \\1"
    again = describe(contents, "#/other", {}, edited)
    assert again == edited.replace(LINK, "#/other")
    assert again.count(BEGIN) == again.count(END) == 1


def test_a_description_is_never_longer_than_a_server_takes() -> None:
    contents = contents_of(rows_of(grid()))
    whole = describe(contents, LINK, {}, "")
    assert whole is not None
    own = "x" * (MAX_TAG - len(whole))
    short = describe(contents, LINK, {}, own)
    assert short is not None
    assert len(short) <= MAX_TAG
    assert LINK in short
    assert "| backbone |" not in short
    assert describe(contents, LINK, {}, "x" * MAX_TAG) is None


def test_names_with_markup_stay_names_in_the_description() -> None:
    odd = run("res|net <b>18</b>", "dual", data="my_*data*|")
    text = describe(contents_of(rows_of([odd], study="a|<i>b</i>")), LINK, {}, "")
    assert text is not None
    assert "<b>" not in text.replace("\\<b>", "")
    (row,) = [line for line in text.splitlines() if line.startswith("| res")]
    assert row.replace("\\|", "").count("|") == 3


def test_metrics_of_the_parent_are_means_over_finished_seeds() -> None:
    runs = [
        run("resnet18", "dual", seed=0, factor=1.0),
        run("resnet18", "dual", seed=1, factor=1.2),
        run("resnet18", "baseline", task="seg", state="failed"),
        run("densenet121", "baseline", task="seg"),
    ]
    found = cell_metrics(rows_of(runs))
    assert found == pytest.approx(
        {
            "cell/densenet121/baseline/seg/mIoU": 0.5,
            "cell/densenet121/baseline/seg/pixel_acc": 0.8,
            "cell/resnet18/dual/mAP": 0.22,
            "cell/resnet18/dual/mAP50": 0.44,
            "cell/resnet18/dual/mIoU": 0.55,
            "cell/resnet18/dual/pixel_acc": 0.88,
        }
    )


# On a real server.


def fill(uri: str, study: str, runs: list[Any]) -> str:
    """Write runs as trials of a study; the parent's id."""
    tracker = MlflowTracker(uri)
    parent = tracker.study(study, {"sharedenc.settings": '{"kind": "full-grid"}'})
    for template in runs:
        tags = {**template.tags, "sharedenc.study": study}
        written = tracker.child(study, parent, template.name, tags)
        written.params(template.params)
        written.metrics(template.metrics, step=2)
        written.end(template.tags["sharedenc.state"])
    tracker.handle(parent).end("done")
    return parent


def folder_of(tmp_path: Path) -> Path:
    """A report's folder, with what is not ours beside it."""
    folder = tmp_path / "out"
    for name, text in {
        "index.html": "<!doctype html><title>t</title><h1>The page of the report</h1>",
        "report.md": "# tables",
        "tables/table_4.4.csv": "a,b",
        "tables/mine.csv": "my own",
        "figures/figure_4.1.svg": "<svg/>",
        "diary.txt": "my own",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


TWO = [run("resnet18", "dual"), run("resnet18", "baseline", task="seg")]


def test_a_report_is_put_on_the_parent_run(mlflow_uri: str, tmp_path: Path) -> None:
    study = "quo\"ted 'name' <b>"
    parent = fill(mlflow_uri, study, TWO)
    client = MlflowClient(mlflow_uri)
    client.set_tag(parent, "mlflow.note.content", "My own words.")
    folder = folder_of(tmp_path)
    contents = contents_of(collect(mlflow_uri, study))
    publish(mlflow_uri, contents, folder)

    files = {
        "report/index.html",
        "report/report.md",
        "report/tables/table_4.4.csv",
        "report/figures/figure_4.1.svg",
    }
    tracker = MlflowTracker(mlflow_uri)
    assert set(tracker.files(parent)) == files
    page = tracker.download(parent, "report/index.html", tmp_path / "back")
    assert page.read_text() == (folder / "index.html").read_text()
    found = client.get_run(parent)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == cell_metrics(contents.facts.rows)
    note = found.data.tags["mlflow.note.content"]
    assert note.startswith("My own words.")
    assert f"#/experiments/{found.info.experiment_id}/runs/{parent}/artifacts/report/" in note

    # Again: nothing but the files is written.
    (folder / "index.html").write_text("newer")
    (folder / "tables" / "table_4.4.csv").unlink()
    (folder / "tables" / "table_4.5.csv").write_text("c,d")
    publish(mlflow_uri, contents, folder)
    again = client.get_run(parent)
    assert (again.data.tags, again.data.metrics) == (found.data.tags, found.data.metrics)
    assert len(client.get_metric_history(parent, "cell/resnet18/dual/mIoU")) == 1
    assert set(tracker.files(parent)) == files - {"report/tables/table_4.4.csv"} | {
        "report/tables/table_4.5.csv"
    }
    page = tracker.download(parent, "report/index.html", tmp_path / "back2")
    assert page.read_text() == "newer"


def test_changed_scores_are_written_on_and_the_last_value_is_current(
    mlflow_uri: str, tmp_path: Path
) -> None:
    parent = fill(mlflow_uri, "scores-change", TWO)
    rows = collect(mlflow_uri, "scores-change")
    folder = folder_of(tmp_path)
    client = MlflowClient(mlflow_uri)
    name = "cell/resnet18/dual/mIoU"
    for value in (0.5, 0.25, 0.75):
        changed = tuple(
            replace(row, metrics={**row.metrics, "test/mIoU": value}) for row in rows.final
        )
        publish(mlflow_uri, contents_of(replace(rows, final=changed)), folder)
    points = [(p.step, p.value) for p in client.get_metric_history(parent, name)]
    assert sorted(points) == [(1, 0.5), (2, 0.25), (3, 0.75)]
    assert client.get_run(parent).data.metrics[name] == 0.75
    # A cell that is no more keeps no number.
    only = tuple(row for row in rows.final if row.strategy != "dual")
    for _ in range(2):
        publish(mlflow_uri, contents_of(replace(rows, final=only)), folder)
    assert math.isnan(client.get_run(parent).data.metrics[name])
    assert len(client.get_metric_history(parent, name)) == 4


@pytest.mark.parametrize("known", [True, False])
def test_a_deleted_parent_is_said_with_what_to_do(
    mlflow_uri: str, tmp_path: Path, known: bool
) -> None:
    study = f"parent-deleted-{known}"
    parent = fill(mlflow_uri, study, TWO)
    before = collect(mlflow_uri, study)
    MlflowClient(mlflow_uri).delete_run(parent)
    after = collect(mlflow_uri, study)
    assert after.parent_run_id == ""
    assert len(after.final) == 2
    with pytest.raises(TrackingError, match=rf"was deleted in MLflow.*--run-id {parent}"):
        publish(mlflow_uri, contents_of(before if known else after), folder_of(tmp_path))


def test_published_numbers_alone_belong_to_no_run(tmp_path: Path) -> None:
    """Nobody is asked: a server that is away would be named, as the next test shows."""
    contents = contents_of(rows_of(grid()), published=True)
    publish("http://127.0.0.1:9", contents, folder_of(tmp_path))


def test_a_server_that_is_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        publish("http://127.0.0.1:9", contents_of(rows_of(grid())), folder_of(tmp_path))


# A server with users, of whom one may only read.


@pytest.fixture(scope="module")
def server_with_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("users")
    settings = root / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{root / 'auth.db'}\n"
        "admin_username = admin\nadmin_password = admin-password-1234\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--app-name", "basic-auth"]
    command += ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(root / "artifacts")]
    env = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of this test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert server.poll() is None, (root / "log").read_text()[-2000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_who_may_only_read_is_told_so(
    server_with_users: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "admin-password-1234")
    answer = requests.post(
        f"{server_with_users}/api/2.0/mlflow/users/create",
        json={"username": "reader", "password": "reader-password-1234"},
        auth=("admin", "admin-password-1234"),
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    parent = fill(server_with_users, "guarded", TWO)
    contents = contents_of(collect(server_with_users, "guarded"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "reader-password-1234")
    with pytest.raises(TrackingError, match="does not let you write to study 'guarded'"):
        publish(server_with_users, contents, folder_of(tmp_path))
    assert MlflowTracker(server_with_users).files(parent) == {}


# In MLflow's own UI.


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path / "profile", 1800, 1800) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_description_opens_the_report_in_mlflows_ui(
    browser: webdriver.Chrome, mlflow_uri: str, tmp_path: Path
) -> None:
    study = 'in the "ui"'
    parent = fill(mlflow_uri, study, TWO)
    publish(mlflow_uri, contents_of(collect(mlflow_uri, study)), folder_of(tmp_path))
    experiment = MlflowClient(mlflow_uri).get_run(parent).info.experiment_id
    wait = WebDriverWait(browser, 180.0)

    browser.get(f"{mlflow_uri}/#/experiments/{experiment}/runs/{parent}")
    wait.until(lambda b: b.find_elements(By.LINK_TEXT, "Open the report"))
    shown = browser.find_element(By.TAG_NAME, "body").text
    assert study in shown
    assert "kind full-grid" in shown
    assert "sharedenc report" not in shown  # the marks around our part
    wait.until(lambda b: "cell/resnet18/dual/mIoU" in b.find_element(By.TAG_NAME, "body").text)

    browser.find_element(By.LINK_TEXT, "Open the report").click()
    wait.until(lambda b: len(b.window_handles) == 2)
    browser.switch_to.window(browser.window_handles[-1])
    wait.until(lambda b: b.find_elements(By.TAG_NAME, "iframe"))
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    wait.until(lambda b: "The page of the report" in b.find_element(By.TAG_NAME, "body").text)
