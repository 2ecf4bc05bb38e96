"""A study in MLflow's own UI, in a real browser: 44 runs under their parent, and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from sharedenc.spec import BACKBONES
from sharedenc.tracking import MlflowTracker
from sweeps.grid import full_grid
from tests.browser import chromium

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAIT_S = 180.0

# The button before a parent run's name in the table of runs.
OPENER = "[role='gridcell'][col-id='attributes.`Run Name`'] button"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile"), 1800, 2600) as running:
        yield running


def text_of(browser: webdriver.Chrome) -> str:
    return str(browser.find_element(By.TAG_NAME, "body").text)


def test_the_ui_lists_a_studys_44_runs_under_their_parent_and_compares_them(
    browser: webdriver.Chrome, mlflow_uri: str
) -> None:
    tracker = MlflowTracker(mlflow_uri)
    parent = tracker.study("browser-grid", {})
    cells = [cell.name for cell in full_grid(list(BACKBONES)[:4])]
    assert len(cells) == 44
    for number, cell in enumerate(cells):
        run = tracker.child("browser-grid", parent, cell, {"sharedenc.cell": cell})
        run.metrics({"test/mIoU": 0.4 + number / 1000}, step=1)
        run.end("done")
    runs = [run.run_id for run in tracker.runs("browser-grid") if run.run_id != parent]
    experiment = MlflowClient(mlflow_uri).get_experiment_by_name("browser-grid").experiment_id

    browser.get(f"{mlflow_uri}/#/experiments/{experiment}/runs")
    wait = WebDriverWait(browser, WAIT_S)
    wait.until(lambda b: "45 matching runs" in text_of(b))
    # A closed parent shows no children; its row has the button that opens it.
    assert cells[0] not in text_of(browser)
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, OPENER))
    browser.find_element(By.CSS_SELECTOR, OPENER).click()
    wait.until(lambda b: all(cell in text_of(b) for cell in cells))

    chosen = quote(json.dumps(runs)), quote(json.dumps([experiment]))
    browser.get("about:blank")
    browser.get(f"{mlflow_uri}/#/compare-runs?runs={chosen[0]}&experiments={chosen[1]}")
    wait.until(lambda b: "Comparing 44 Runs" in text_of(b))
    wait.until(lambda b: "test/mIoU" in text_of(b))
    assert "resnet18/baseline/seg" in text_of(browser)
