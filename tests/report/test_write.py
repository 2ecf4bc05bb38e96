"""The written folder: through a real MLflow server, and the page as a browser would read it."""

from __future__ import annotations

import json
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from sharedenc.cli import main
from sharedenc.errors import SpecError
from sharedenc.report.collect import RunData, collect, study_rows
from sharedenc.report.tables import SPECS
from sharedenc.report.write import write_rows
from tests.report.study import bench, benches, count, grid, run, versions

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects what a page loads and refers to, and whether its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.tables = 0
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if named.get("id"):
            self.ids.add(str(named["id"]))
        for name in ("src", "href", "srcset", "data"):
            value = named.get(name)
            if value and value.startswith("#"):
                self.targets.add(value[1:])
            elif value:
                self.loaded.append(value)
        self.tables += tag == "table"
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def put(client: MlflowClient, experiment_id: str, data: RunData, parent: str = "") -> None:
    """Write a run as training and agent do."""
    tags = {**data.tags, **({"mlflow.parentRunId": parent} if parent else {})}
    created = client.create_run(experiment_id, run_name=data.name or None, tags=tags)
    now = int(time.time() * 1000)
    client.log_batch(
        created.info.run_id,
        metrics=[Metric(k, v, now, 0) for k, v in data.metrics.items()],
        params=[Param(k, v) for k, v in data.params.items()],
        tags=[RunTag("sharedenc.attempt", "1")],
    )
    client.set_terminated(created.info.run_id)


@pytest.fixture(scope="module")
def study(mlflow_uri: str) -> str:
    """A study on a real server: one backbone whole, one cell failed, one search, two timings."""
    client = MlflowClient(mlflow_uri, mlflow_uri)
    experiment = client.create_experiment("it's written")
    parent = client.create_run(experiment, tags={"sharedenc.kind": "study"}).info.run_id
    runs = [r for r in grid(data="synthetic") if r.tags["sharedenc.backbone"] == "resnet18"]
    runs[-1] = run(
        "resnet18", "dual", data="synthetic", state="failed", reason="<b>out of memory", kind="oom"
    )
    runs.append(run("resnet18", "dual", data="synthetic", stage="lr-search", lr=1e-3))
    for data in runs:
        put(client, experiment, data, parent)
    client.create_registered_model("voc20-resnet18-seg")
    client.create_model_version(
        "voc20-resnet18-seg",
        source=f"runs:/{parent}/export/seg",
        run_id=parent,
        tags={
            "sharedenc.study": "it's written",
            "sharedenc.backbone": "resnet18",
            "sharedenc.graph": "seg",
            "sharedenc.architecture": "resnet18 seg",
            "export.state": "ready",
        },
    )
    board = client.create_experiment("bench/written-board")
    put(client, board, bench("resnet18 seg", 5.0, device="written-board"))
    put(client, board, bench("never exported", 1.0, device="written-board"))
    return "it's written"


def test_a_study_is_read_back_from_a_server(study: str, mlflow_uri: str) -> None:
    rows = collect(mlflow_uri, study)
    assert len(rows.final) == 11
    assert len(rows.search) == 1
    assert rows.data == "synthetic"
    assert rows.num_classes == 21
    assert rows.parent_run_id
    assert [(t.graph, t.metrics["latency_ms/p50"]) for t in rows.timings] == [("seg", 5.0)]
    assert rows.registered == {("resnet18", "seg")}
    failed = [row for row in rows.final if row.state == "failed"]
    assert [(row.cell, row.failure_kind) for row in failed] == [("resnet18/dual", "oom")]


def test_an_unknown_study_is_told_with_the_nearest_name(study: str, mlflow_uri: str) -> None:
    with pytest.raises(SpecError, match=r"no study 'its written'.*Did you mean .it's written."):
        collect(mlflow_uri, "its written")


def test_the_command_writes_everything_and_says_where(
    study: str, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    done = CliRunner().invoke(main, ["report", study, "--out", str(tmp_path / "r"), "--json"])
    assert done.exit_code == 0, done.output
    written = json.loads(done.stdout)
    assert set(written["tables"]) == {spec.number for spec in SPECS}
    for files in written["tables"].values():
        assert all(Path(path).stat().st_size > 0 for path in files.values())
    assert written["summary"]["cells"] == {"done": 10, "failed": 1}
    page = Path(written["index"]).read_text()
    assert "failed: <b>out of memory" in Path(written["tables"]["4.14"]["md"]).read_text()
    # Counted on the real networks: 11.76 million as published.
    assert ">11.76<" in page
    assert "&lt;b&gt;out of memory" in page


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    runs = grid(data="synthetic")
    runs[-1] = run("densenet121", "dual", data="synthetic", state="skipped", reason="no parent")
    rows = study_rows("written", runs, versions(), benches())
    paths = write_rows(rows, tmp_path, count)
    page = Page(paths.index.read_text())
    assert page.open == []
    assert page.targets <= page.ids
    assert {f"table-{spec.number}" for spec in SPECS} - page.ids == {"table-A.2"}
    assert len(page.loaded) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert page.tables == len(SPECS) + 3
    text = " ".join(page.text)
    assert "never a result" in text
    assert "no parent" in text
    assert "ab" * 32 in text
    assert text.count("ab" * 6) >= len(SPECS)
    assert "url(" not in paths.index.read_text()
    for path in paths.figures:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_writing_again_replaces_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    for factor in (1.0, 2.0):
        rows = study_rows("written", [run("resnet18", "dual", factor=factor)], [], [])
        paths = write_rows(rows, tmp_path, count)
    assert "1.0000" in paths.tables["4.14"]["md"].read_text()
    assert not [path for path in tmp_path.rglob(".*")]
    assert not (tmp_path / "figures" / "cost.png").exists()


def test_a_study_without_cells_is_an_error_with_what_to_do() -> None:
    with pytest.raises(SpecError, match="run it first"):
        study_rows("empty", [], [], [])
