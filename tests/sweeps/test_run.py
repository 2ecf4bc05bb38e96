"""A small study, really trained, through both launchers and a real MLflow server."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sharedenc.data.classes import VOC20
from sharedenc.errors import SpecError, TrackingError, WeightsError
from sharedenc.models.encoders import build_encoder
from sharedenc.spec import Recipe
from sharedenc.tracking import MemoryTracker, MlflowTracker, RunRecord
from sweeps.inputs import Places, find_weights, open_data
from sweeps.interrupts import Interrupts
from sweeps.launch import Launcher, LocalLauncher, RayLauncher
from sweeps.ledger import Reuse, find_study, status
from sweeps.order import Machine
from sweeps.plan import plan_study
from sweeps.progress import PlainLines
from sweeps.result import StudyResult
from sweeps.run import RunOptions, _Sweep, run_study
from sweeps.study import Study

SWAP = "resnet18/swap-frozen/seg"
CELLS = ["resnet18/baseline/det", SWAP, "resnet18/share-frozen/seg"]


@dataclass
class Small:
    """The study and where it runs; `result` is that of its first invocation, through Ray."""

    study: Study
    places: Places
    result: StudyResult
    folder: Path

    def run(
        self,
        launcher: Launcher,
        reuse: Reuse = "strict",
        rerun: tuple[str, ...] = (),
        **changes: Any,
    ) -> StudyResult:
        return run_study(
            replace(self.study, **changes),
            self.places,
            launcher,
            PlainLines(StringIO()),
            RunOptions(
                device="cpu",
                command="sharedenc sweep",
                preflight=False,
                reuse=reuse,
                rerun=rerun,
            ),
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


def test_another_study_on_the_same_data_takes_over_what_is_there(small: Small) -> None:
    more = (*small.study.only, "resnet18/share-frozen/det")
    other = small.run(LocalLauncher(), name="small-other", only=more)
    first = {row.node.id: row for row in small.result.rows}
    reused = {row.node.id: row.reused for row in other.rows}
    assert reused == {**dict.fromkeys(CELLS, "other study small"), "resnet18/share-frozen/det": ""}
    assert other.exit_code == 0
    records = {run.name: run for run in small.records("small-other") if run.name != "small-other"}
    for cell in CELLS:
        assert records[cell].tags["sharedenc.key"] == first[cell].trial.key  # type: ignore[union-attr]
        assert records[cell].tags["sharedenc.reused_from"] == first[cell].run_id
        assert other.rows[0].attempts == 0
    new = records["resnet18/share-frozen/det"]
    assert new.tags["sharedenc.attempt"] == "1"
    assert other.why_not["resnet18/share-frozen/det"]


def test_a_plan_says_what_is_reused_and_what_the_rest_costs(small: Small) -> None:
    before = small.records("small-planned")
    study = replace(
        small.study, name="small-planned", only=(*small.study.only, "resnet18/share-bias/det")
    )
    price = plan_study(
        study,
        small.places,
        RunOptions(device="cpu"),
        lambda: [Machine(cpus=2, memory=2**34)],
        probe=False,
        progress=False,
    )
    cells = {cell.cell: cell for cell in price.cells}
    assert {name for name, cell in cells.items() if not cell.reused} == {"resnet18/share-bias/det"}
    assert cells["resnet18/share-bias/det"].why_not == "no run of this cell yet"
    assert (price.trials, price.reused) == (4, 3)
    assert 0 < price.gpu_hours.low <= price.gpu_hours.expected <= price.gpu_hours.high < 1
    assert price.wall_hours > 0
    assert price.rests_on == "epochs measured in earlier runs"
    changed = replace(study, recipe=replace(study.recipe, epochs=2))
    other = plan_study(
        changed,
        small.places,
        RunOptions(device="cpu"),
        lambda: [Machine(cpus=2, memory=2**34)],
        probe=False,
        progress=False,
    )
    reasons = {cell.cell: cell.why_not for cell in other.cells}
    assert "recipe.epochs 1 -> 2" in reasons["resnet18/share-frozen/seg"]
    assert small.records("small-planned") == before


def test_in_process_gives_the_same_rows(small: Small) -> None:
    local = small.run(LocalLauncher(), "none", name="small-local").to_dict()
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
    # Ray is not even started.
    again = small.run(RayLauncher(storage=small.folder / "idle", address="ray://nowhere:1"))
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


def test_rerun_trains_again_and_nothing_else(small: Small) -> None:
    again = small.run(LocalLauncher(), "strict", rerun=("resnet18/share-*",), name="small")
    first = {row.node.id: row for row in small.result.rows}
    for row in again.rows:
        new = row.node.id == "resnet18/share-frozen/seg"
        assert (row.run_id != first[row.node.id].run_id) == new
        assert row.state == "done"
        assert bool(row.reused) != new
    assert again.why_not["resnet18/share-frozen/seg"] == "--rerun asks for it"
    small.result = again
    with pytest.raises(SpecError, match="'nope/\\*' matches none of the study's trials"):
        small.run(LocalLauncher(), "strict", rerun=("nope/*",), name="small")


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


def test_what_no_machine_can_hold_is_told_before_the_preflight(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tiny(LocalLauncher):
        def machines(self) -> list[Machine]:
            return [Machine(cpus=2, memory=2**20)]

    def never(*args: Any, **values: Any) -> Any:
        raise AssertionError("a preflight was started")

    monkeypatch.setattr(_Sweep, "_preflight", never)
    places, lines = small.places, PlainLines(StringIO())
    options = RunOptions(device="cpu", reuse="none")
    with pytest.raises(SpecError, match="the largest machine has 2 CPU cores"):
        run_study(replace(small.study, name="tiny"), places, Tiny(), lines, options)


def test_a_server_that_is_gone_at_the_end_hides_no_result(tmp_path: Path) -> None:
    class Gone:
        def summary(self, *args: object) -> None:
            raise TrackingError("nobody answers")

    told = StringIO()
    places = Places(tracking_uri="http://nowhere", runs_dir=tmp_path)
    study = Study(kind="full-grid")
    data: Any = None
    sweep = _Sweep(study, data, places, PlainLines(told), RunOptions(), Interrupts(), lambda: None)
    sweep.ledger = Gone()  # type: ignore[assignment]
    state: Any = None
    sweep._record_end(StudyResult(study="s", parent_id="p", pack=tmp_path, rows=[]), state)
    assert "the study's end is not recorded: nobody answers" in told.getvalue()


@pytest.mark.parametrize(("taken", "state"), [(False, "stopped"), (True, None)])
def test_what_is_stopped_before_its_first_trial_says_so_unless_another_sweep_has_the_study(
    taken: bool, state: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MemoryTracker(tmp_path / "store")

    def stopped(sweep: _Sweep, launcher: Launcher) -> None:
        assert sweep.lease is not None
        sweep.lease._lost = "another sweep has it" if taken else ""
        raise KeyboardInterrupt

    monkeypatch.setattr("sweeps.run.MlflowTracker", lambda uri, patience=None: tracker)
    monkeypatch.setattr(_Sweep, "_open", stopped)
    data = SimpleNamespace(name="d", digest="d" * 64, classes=VOC20)
    inputs: Any = SimpleNamespace(name="s", data=data)
    places = Places(tracking_uri="http://nowhere", runs_dir=tmp_path)
    study, lines = Study(kind="full-grid"), PlainLines(StringIO())
    sweep = _Sweep(study, inputs, places, lines, RunOptions(), Interrupts(), lambda: None)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(LocalLauncher(), 0.0)
    (parent,) = tracker.runs("s")
    assert parent.tags.get("sharedenc.state") == state


def test_the_studys_rules_reach_its_data(tiny_dataset: Path, tmp_path: Path) -> None:
    places = Places(tracking_uri="http://nowhere", runs_dir=tmp_path, cache_dir=tmp_path / "cache")
    study = Study(kind="full-grid", data=str(tiny_dataset))
    plain = open_data(study, places, progress=False)
    ruled = open_data(replace(study, rules={"crowd_seg": "class"}), places, progress=False)
    assert (plain.rules.crowd_seg, ruled.rules.crowd_seg) == ("ignore", "class")
    assert plain.digest != ruled.digest
