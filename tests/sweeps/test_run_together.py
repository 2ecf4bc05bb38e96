"""Frozen trials really trained together: the same rows as one by one, in less time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from sharedenc.spec import Recipe
from sharedenc.tracking import MlflowTracker, RunRecord
from sweeps.events import read_events
from sweeps.fusion import Fuse
from sweeps.inputs import Places
from sweeps.launch import LocalLauncher
from sweeps.ledger import Ledger, status
from sweeps.progress import PlainLines, status_text
from sweeps.result import StudyResult
from sweeps.run import RunOptions, run_study
from sweeps.study import Study

DET, SEG = "resnet18/share-frozen/det", "resnet18/share-frozen/seg"
SEARCHED = [f"{SEG} lr=1e-3", f"{SEG} lr=1e-4"]
EPOCH_METRICS = ("train/loss", "val/loss", "lr", "score")


@dataclass
class Both:
    """The same cells and rates, together and one by one."""

    places: Places
    data: Path

    def run(self, name: str, fuse: Fuse, **options: Any) -> StudyResult:
        study = Study(
            kind="full-grid",
            name=name,
            data=str(self.data),
            recipe=Recipe(
                epochs=2, batch_size=4, image_px=64, precision="float32", calibration_images=4
            ),
            only=("resnet18/share-frozen/*",),
            search_cell=SEG,
            search_lrs=(1e-3, 1e-4),
            search_rungs=(),
            weights="none",
        )
        given = RunOptions(device="cpu", preflight=False, fuse=fuse, **options)
        return run_study(study, self.places, LocalLauncher(), PlainLines(StringIO()), given)

    def records(self, study: str) -> dict[str, RunRecord]:
        runs = MlflowTracker(self.places.tracking_uri).runs(study)
        return {run.name: run for run in runs if run.tags["sharedenc.kind"] == "trial"}

    def told(self, record: RunRecord) -> dict[str, Any]:
        """All that was measured in a run, and nothing that was timed."""
        tracker = MlflowTracker(self.places.tracking_uri)
        tested = {name: v for name, v in record.metrics.items() if name.startswith("test/")}
        history = {name: tracker.history(record.run_id, name) for name in EPOCH_METRICS}
        return {"key": record.tags["sharedenc.key"], "test": tested, "history": history}


@pytest.fixture(scope="module")
def both(mlflow_uri: str, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("together")
    places = Places(tracking_uri=mlflow_uri, runs_dir=folder / "runs", cache_dir=folder / "cache")
    both = Both(places, tiny_dataset)
    for name, fuse in (("together", "auto"), ("apart", "off")):
        result = both.run(name, fuse, reuse="none")  # type: ignore[arg-type]
        assert result.exit_code == 0
    return both


def test_the_rows_are_those_of_trials_that_train_alone(both: Both) -> None:
    together, apart = both.records("together"), both.records("apart")
    assert sorted(together) == sorted(apart) == sorted([DET, SEG, *SEARCHED])
    for name, record in together.items():
        assert both.told(record) == both.told(apart[name]), name
        assert record.status == "FINISHED"
    assert together[DET].tags["sharedenc.key"] != together[SEG].tags["sharedenc.key"]
    assert "test/mAP" in together[DET].metrics


def test_who_trained_together_is_told_everywhere(both: Both) -> None:
    records = both.records("together")
    group = {records[name].run_id for name in (DET, *SEARCHED)}
    for name in (DET, *SEARCHED):
        assert set(json.loads(records[name].tags["sharedenc.together"])) == group
    # The cell's own trial waits for its search, and then is the winner, which is only tested.
    assert not records[SEG].tags.get("sharedenc.together")
    assert not any(run.tags.get("sharedenc.together") for run in both.records("apart").values())
    tracker = MlflowTracker(both.places.tracking_uri)
    (cell,) = (row for row in status(tracker, "together")["cells"] if row["name"] == DET)
    assert sorted(cell["together"]) == sorted(SEARCHED)
    events = read_events(both.places.study_dir("together") / "events.jsonl")
    started = [set(e["together"]) for e in events if e["event"] == "start" and e.get("together")]
    assert started == [{DET, *SEARCHED}] * 3
    members = [e["members"] for e in events if e["event"] == "epoch"]
    assert members[:6] == [3] * 6
    assert "trains with" not in status_text(status(tracker, "together"))


def test_what_is_measured_of_a_group_says_what_a_trial_takes_alone(both: Both) -> None:
    record = both.records("together")[DET]
    tags = record.tags
    ledger = Ledger(
        tracker=MlflowTracker(both.places.tracking_uri),
        study="together",
        data=tags["sharedenc.data"],
        digest=tags["sharedenc.data_digest"],
        classes=None,  # type: ignore[arg-type]
    )
    # Other tests may have trained this cell on this server too.
    took = {both.records(study)[DET].metrics["seconds"] for study in ("together", "apart")}
    rows = [m for m in ledger.measured() if m.cell.name == DET and m.seconds in took]
    peaks = [m.peak_memory_bytes for m in rows]
    assert sorted(peak > 0 for peak in peaks) == [False, True]
    fused = next(m for m in rows if not m.peak_memory_bytes)
    assert fused.seconds_per_epoch > record.metrics["epoch_s"]


def test_the_same_command_again_trains_nothing(both: Both) -> None:
    again = both.run("together", "auto")
    assert {row.reused for row in again.rows} == {"study"}
    assert {row.state for row in again.rows} == {"done"}


def test_a_member_that_is_asked_for_again_trains_alone(both: Both) -> None:
    before = both.told(both.records("apart")[DET])
    again = both.run("apart", "auto", rerun=(DET,))
    assert [row.node.id for row in again.rows if not row.reused] == [DET]
    assert both.told(both.records("apart")[DET]) == before
