"""A small study, really trained, through both launchers and a real MLflow server."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from sharedenc.errors import TrackingError, WeightsError
from sharedenc.mlflow_server import free_port
from sharedenc.models.encoders import build_encoder
from sharedenc.spec import Recipe
from sharedenc.tracking import MlflowRun, MlflowTracker, RunRecord
from sweeps.launch import Launcher, LocalLauncher, RayLauncher
from sweeps.ledger import find_study, status
from sweeps.progress import PlainLines
from sweeps.run import Places, StudyResult, _Sweep, attach, find_weights, open_data, run_study
from sweeps.studies import Study

SWAP = "resnet18/swap-frozen/seg"
CELLS = ["resnet18/baseline/det", SWAP, "resnet18/share-frozen/seg"]


@dataclass
class Small:
    """The study and where it runs; `result` is that of its first invocation, through Ray."""

    study: Study
    places: Places
    result: StudyResult
    folder: Path

    def run(self, launcher: Launcher, **changes: Any) -> StudyResult:
        return run_study(
            replace(self.study, **changes),
            self.places,
            launcher,
            PlainLines(StringIO()),
            device="cpu",
            command="sharedenc sweep",
        )

    def records(self, study: str) -> list[RunRecord]:
        return MlflowTracker(self.places.tracking_uri).runs(study)


@pytest.fixture(scope="module")
def small(mlflow_uri: str, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("sweep")
    study = Study(
        kind="full-grid",
        name="small",
        data=str(tiny_dataset),
        recipe=Recipe(
            epochs=1, batch_size=4, image_px=64, precision="float32", calibration_images=4
        ),
        only=(SWAP, "resnet18/share-frozen/seg"),
        weights="none",
    )
    places = Places(tracking_uri=mlflow_uri, runs_dir=folder / "runs", cache_dir=folder / "cache")
    small = Small(study, places, None, folder)  # type: ignore[arg-type]
    small.result = small.run(RayLauncher(storage=folder / "ray", cpus=2))
    return small


def test_all_cells_end_done(small: Small) -> None:
    answer = small.result.to_dict()
    assert answer["exit_code"] == 0
    assert [(row["cell"], row["state"]) for row in answer["cells"]] == [(c, "done") for c in CELLS]
    assert {"study", "cells", "exit_code"} <= set(answer)
    for row in answer["cells"]:
        assert {"reason", "key", "run_id", "attempts", "score"} <= set(row)
        assert 0 <= row["score"] <= 1


def test_the_server_has_one_parent_and_a_row_for_each_trial(small: Small) -> None:
    parent, *children = sorted(
        small.records("small"), key=lambda run: run.tags["sharedenc.kind"] != "study"
    )
    assert parent.tags["sharedenc.kind"] == "study"
    assert parent.run_id == small.result.parent_id
    assert json.loads(parent.tags["sharedenc.settings"])["recipe"]["image_px"] == 64
    assert any(name.startswith("sharedenc.invocation.") for name in parent.tags)
    assert sorted(run.name for run in children) == sorted(CELLS)
    for run in children:
        assert run.tags["mlflow.parentRunId"] == parent.run_id
        assert run.tags["sharedenc.state"] == "done"
        assert run.tags["sharedenc.stage"] == run.tags["sharedenc.strategy"]
        assert run.status == "FINISHED"
        assert "val/loss" in run.metrics
        assert run.params["recipe.batch_size"] == "4"
    by_name = {run.name: run for run in children}
    assert "test/mAP" in by_name["resnet18/baseline/det"].metrics
    assert "test/mIoU" in by_name[SWAP].metrics
    assert len({run.tags["sharedenc.key"] for run in children}) == 3


def test_the_merged_settings_are_an_artifact_that_can_be_run(small: Small) -> None:
    from sweeps.studies import read_study_file, study_from

    tracker = MlflowTracker(small.places.tracking_uri)
    file = tracker.download(small.result.parent_id, "study.yaml", small.folder / "down")
    assert study_from(read_study_file(file)) == small.study


def test_in_process_gives_the_same_rows(small: Small) -> None:
    local = small.run(LocalLauncher(), name="small-local").to_dict()
    ours = small.result.to_dict()
    for here, there in zip(local["cells"], ours["cells"], strict=True):
        same = {"cell", "state", "reason", "key", "attempts", "lr", "seed"}
        assert {k: here[k] for k in same} == {k: there[k] for k in same}
        assert here["score"] == pytest.approx(there["score"], abs=2e-3)
    losses = [
        {run.name: run.metrics.get("val/loss") for run in small.records(name)}
        for name in ("small", "small-local")
    ]
    for each in losses:
        each.pop(small.result.study, None)
        each.pop("small-local", None)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_same_study_again_trains_nothing(small: Small) -> None:
    class Nothing(LocalLauncher):
        def run(self, state: Any, payload: Any, beat: Any) -> None:
            assert state.finished

    again = small.run(Nothing())
    first = {row.node.id: row for row in small.result.rows}
    for row in again.rows:
        assert (row.state, row.run_id) == ("done", first[row.node.id].run_id)
        assert row.reason == "reused: done in an earlier invocation"
        assert row.score == pytest.approx(first[row.node.id].score)
    assert again.parent_id == small.result.parent_id
    assert len(small.records("small")) == 1 + len(CELLS)


def test_status_and_pages_are_read_from_the_server(small: Small) -> None:
    uri = small.places.tracking_uri
    answer = status(MlflowTracker(uri), "small")
    assert {row["cell"]: row["state"] for row in answer["cells"]} == dict.fromkeys(CELLS, "done")
    assert answer["exit_code"] == 0
    page = find_study(uri, "small")
    assert page is not None
    assert all(row["run_id"] in page.compare_path for row in answer["cells"])
    assert find_study(uri, "nope") is None


def test_weights_of_another_network_are_refused_before_any_trial(tmp_path: Path) -> None:
    state = build_encoder("resnet18").state_dict()
    file = tmp_path / "own.pth"
    study = Study(kind="full-grid", backbones=("resnet18",), weights=str(file))
    torch.save(state, file)
    assert find_weights(study)["resnet18"][0] == str(file)
    state["body.conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(state, file)
    both = r"own\.pth.*'resnet18'.*conv1.*\(64, 3, 3, 3\).*\(64, 3, 7, 7\)"
    with pytest.raises(WeightsError, match=both):
        find_weights(study)


@pytest.mark.parametrize("backbone", ["mobilenet_v3_large", "efficientnet_v2_s", "densenet121"])
def test_weights_that_fit_are_taken(backbone: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = build_encoder(backbone).state_dict()
    file = tmp_path / "own.pth"
    torch.save({name: torch.zeros(t.shape, dtype=t.dtype) for name, t in state.items()}, file)
    study = Study(kind="full-grid", backbones=(backbone,), weights=str(file))
    assert find_weights(study)[backbone][0] == str(file)


def test_a_server_that_is_gone_at_the_end_hides_no_result(tmp_path: Path) -> None:
    class Gone:
        def summary(self, *args: object) -> None:
            raise TrackingError("nobody answers")

    told = StringIO()
    places = Places(tracking_uri="http://nowhere", runs_dir=tmp_path)
    study = Study(kind="full-grid")
    data: Any = None
    sweep = _Sweep(study, "s", places, PlainLines(told), data, {}, 0, None, lambda: None)
    sweep.ledger = Gone()  # type: ignore[assignment]
    sweep._record_end(StudyResult(study="s", parent_id="p", pack=tmp_path, rows=[]))
    assert "the study's end is not recorded: nobody answers" in told.getvalue()


def test_the_studys_rules_reach_its_data(tiny_dataset: Path, tmp_path: Path) -> None:
    places = Places(tracking_uri="http://nowhere", runs_dir=tmp_path, cache_dir=tmp_path / "cache")
    study = Study(kind="full-grid", data=str(tiny_dataset))
    plain = open_data(study, places, progress=False)
    ruled = open_data(replace(study, rules={"crowd_seg": "class"}), places, progress=False)
    assert (plain.rules.crowd_seg, ruled.rules.crowd_seg) == ("ignore", "class")
    assert plain.digest != ruled.digest


def test_a_server_lost_while_uploading_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lost = MlflowRun(MlflowClient(tracking_uri=f"http://127.0.0.1:{free_port()}"), "r" * 32)

    class Tracker:
        def __init__(self, uri: str) -> None: ...

        def resume(self, run_id: str) -> MlflowRun:
            return lost

    monkeypatch.setattr("sweeps.run.MlflowTracker", Tracker)
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "index.html").write_text("a report")
    places = Places(tracking_uri="http://nowhere", runs_dir=tmp_path)
    result = StudyResult(study="s", parent_id="p", pack=tmp_path, rows=[])
    with pytest.raises(TrackingError, match=r"server went away.*index\.html") as told:
        attach(places, result, folder, "report")
    assert "\n" not in str(told.value)
    own = [record.getMessage() for record in caplog.records if record.name == "sharedenc.tracking"]
    assert own == [f"run {'r' * 32}: MLflow is away, going on without it (Connection refused)"]
