"""The written folder: through a real MLflow server, and the page as a browser would read it."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from sharedenc.cli import main
from sharedenc.cli.report import _readings
from sharedenc.errors import SharedencError, SpecError, TrackingError
from sharedenc.report.collect import RunData, StudyRows, collect, study_rows
from sharedenc.report.tables import SPECS
from sharedenc.report.write import assemble, write_contents, write_published
from tests.report.study import bench, benches, count, grid, run, versions

VOID = {"meta", "img", "br", "link", "hr", "input", "wbr"}


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
        assert tag not in ("link", "iframe")

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
    # One that an agent is writing: it has its tags already, and is newer.
    begun = bench("resnet18 seg", 5.0, device="written-board").tags
    client.create_run(board, tags=dict(begun))
    return "it's written"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For reports whose figures a test does not look at."""
    monkeypatch.setattr("sharedenc.report.write.pictures", lambda *_: [])


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
    assert "failed: \\<b\\>out of memory" in Path(written["tables"]["4.14"]["md"]).read_text()
    # Counted on the real networks: 11.76 million as published.
    assert ">11.76<" in page
    assert "&lt;b&gt;out of memory" in page


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    runs = grid(data="synthetic")
    runs[-1] = run("densenet121", "dual", data="synthetic", state="skipped", reason="no parent")
    rows = study_rows("written", runs, versions(), benches())
    paths = write_contents(assemble(rows, count), tmp_path)
    page = Page(paths.index.read_text())
    assert page.open == []
    assert page.targets <= page.ids
    assert {f"table-{spec.number}" for spec in SPECS} <= page.ids
    assert all(source.startswith("data:image/") for source in page.loaded)
    text = " ".join(page.text)
    assert "never a result" in text
    assert "no parent" in text
    assert "ab" * 32 in text
    assert {"4.1", "5.1", "5.2", "5.3", "5.4", "5.5", "front"} <= set(paths.figures)
    for files in paths.figures.values():
        assert files["png"].read_bytes().startswith(b"\x89PNG")
        assert files["svg"].read_text().startswith("<svg")
        assert files["csv"].read_text().count("\n") > 1


def test_the_published_numbers_alone_fill_every_table_and_figure(tmp_path: Path) -> None:
    paths = write_published(tmp_path)
    numbers = {f"4.{number}" for number in range(4, 18)} | {"5.1", "A.1", "A.2"}
    assert numbers <= set(paths.tables)
    assert {"4.1", "5.1", "5.2", "5.3", "5.4", "5.5"} <= set(paths.figures)
    # What is printed wrongly in Table 4.10 stands beside what A.1 gives, and among the doubts.
    lines = paths.tables["4.10"]["csv"].read_text().splitlines()
    row = next(line for line in lines if line.startswith("mobilenet_v3_large,"))
    assert {"0.4596", "0.4956"} <= set(row.split(","))
    text = " ".join(Page(paths.index.read_text()).text)
    assert "0.4596, but A.1 has 0.4956" in " ".join(text.split())
    assert "0.4596, but A.1 has 0.4956" in paths.overview.read_text()
    assert any("0.4596, but A.1 has 0.4956" in note for note in paths.notes)


@pytest.mark.usefixtures("undrawn")
def test_every_deployment_is_listed_with_what_it_costs(tmp_path: Path) -> None:
    rows = study_rows("written", grid(), versions(), benches())
    paths = write_contents(assemble(rows, count), tmp_path)
    with paths.deployments.open() as file:
        found = {line["deployment"]: line for line in csv.DictReader(file)}
    assert len(found) == 32
    # Two networks of 5 ms each, and one of 6 ms.
    assert found["resnet18/baseline"]["latency (ms)"] == "10.0"
    assert found["resnet18/share-frozen"]["latency (ms)"] == "6.0"
    assert found["resnet18/dual"]["on the front"] == "yes"
    assert found["resnet18/dual"]["models"] == "voc20-resnet18-dual/1"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file")
    with pytest.raises(SharedencError, match=r"cannot be written to .*report.*--out DIR"):
        write_published(tmp_path / "report")


@pytest.mark.usefixtures("undrawn")
def test_the_page_shows_intervals_and_what_cannot_be_told_apart(tmp_path: Path) -> None:
    runs = [r for r in grid() if r.name.endswith("/seg")]
    for seed, factor in enumerate((0.9, 1.0, 1.1)):
        # The baseline scatters as the dual network does, but not seed by seed.
        runs.append(run("resnet18", "baseline", "none", "seg", seed=seed, end_ms=2000))
        runs.append(run("resnet18", "dual", seed=seed, factor=factor))
        runs.append(run("resnet18", "share", "bias", "seg", seed=seed, factor=0.7, end_ms=2000))
    paths = write_contents(assemble(study_rows("written", runs, [], []), count), tmp_path)
    page = paths.index.read_text()
    assert Page(page).open == []
    # Dual: differences -10, 0, 10 percent, half width 4.303 * 10 / sqrt(3) = 24.84.
    assert ">≈ +0.00 % [-24.84, +24.84]</td>" in page
    assert "<b>-30.00 % [-30.00, -30.00] (3 seeds)</b>" in page
    assert "not told apart from" in page
    tex = paths.tables["4.14"]["tex"].read_text()
    row = next(line for line in tex.splitlines() if line.startswith("resnet18 &"))
    assert r"0.5000 $\pm$ 0.0500 &" in row
    assert r"$\approx$ +0.00 \% {[}$-$24.84, +24.84{]} &" in row
    assert r"\begin{tabular}{lrrrrrr}" in tex
    assert row.count(" & ") == 6
    assert r"mobilenet\_v3\_large" in tex


@pytest.mark.usefixtures("undrawn")
def test_writing_again_replaces_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    for factor in (1.0, 2.0):
        rows = study_rows("written", [run("resnet18", "dual", factor=factor)], [], [])
        paths = write_contents(assemble(rows, count), tmp_path)
    assert "1.0000" in paths.tables["4.14"]["md"].read_text()
    assert not [path for path in tmp_path.rglob(".*")]


def test_a_study_without_cells_is_an_error_with_what_to_do() -> None:
    with pytest.raises(SpecError, match="none was swept yet"):
        study_rows("empty", [], [], [])


def test_a_watch_waits_for_a_server_that_is_away_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = study_rows("written", [run("resnet18", "dual", state="running")], [], [])
    ended = study_rows("written", [run("resnet18", "dual")], [], [])
    away = TrackingError("no answer")
    reads: Iterator[StudyRows | TrackingError] = iter([running, away, away, running, away, ended])

    def read() -> StudyRows:
        found = next(reads)
        if isinstance(found, TrackingError):
            raise found
        return found

    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    assert list(_readings(read, 7)) == [(running, False), (ended, True)]
    assert waits == [7] * 5
    # Away twice: each time it is said once, however often it was tried.
    assert capsys.readouterr().err == "no answer; looking again every 7 s\n" * 2
