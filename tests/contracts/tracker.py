"""What every Tracker does; inherited by the tests of each implementation."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from sharedenc.errors import TrackingError
from sharedenc.tracking import Tracker


class TrackerContract:
    """A subclass gives the fixture ``tracker``. Studies have names of their own in each test."""

    @pytest.fixture
    def study(self) -> str:
        return f"study-{uuid.uuid4().hex[:8]}"

    def test_a_study_is_one_parent_run_found_again_by_tag(
        self, tracker: Tracker, study: str
    ) -> None:
        first = tracker.study(study, {"invocation": "one"})
        assert tracker.study(study, {"invocation": "two", "host": "h"}) == first
        (record,) = tracker.runs(study)
        assert (record.run_id, record.name) == (first, study)
        assert record.tags["sharedenc.kind"] == "study"
        assert record.tags["sharedenc.study"] == study
        assert (record.tags["invocation"], record.tags["host"]) == ("two", "h")

    def test_an_unknown_study_has_no_runs(self, tracker: Tracker, study: str) -> None:
        assert tracker.runs(study) == []

    def test_all_studies_are_named(self, tracker: Tracker, study: str) -> None:
        assert study not in tracker.studies()
        tracker.study(study, {})
        names = tracker.studies()
        assert study in names
        assert "Default" not in names

    def test_a_child_hangs_under_its_parent(self, tracker: Tracker, study: str) -> None:
        parent = tracker.study(study, {})
        child = tracker.child(study, parent, "a/b", {"sharedenc.state": "waiting", "number": 3})
        record = tracker.runs(study)[1]
        assert (record.run_id, record.name, record.status) == (child.run_id, "a/b", "SCHEDULED")
        assert record.tags["mlflow.parentRunId"] == parent
        assert record.tags["sharedenc.kind"] == "trial"
        assert record.tags["number"] == "3"
        assert record.end_ms is None

    def test_a_run_is_taken_up_again_and_ends_in_a_named_state(
        self, tracker: Tracker, study: str
    ) -> None:
        parent = tracker.study(study, {})
        expected = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        for state in expected:
            waiting = tracker.child(study, parent, state, {"sharedenc.state": "waiting"})
            run = tracker.resume(waiting.run_id)
            assert run.run_id == waiting.run_id
            assert tracker.runs(study)[-1].status == "RUNNING"
            run.end(state, "because" if state == "failed" else None)
        records = tracker.runs(study)[1:]
        assert {r.tags["sharedenc.state"]: r.status for r in records} == expected
        assert all(r.end_ms is not None and r.end_ms >= r.start_ms for r in records)
        assert [r.tags.get("sharedenc.reason") for r in records] == [None, None, "because"]

    def test_metrics_keep_their_steps(self, tracker: Tracker, study: str) -> None:
        run = tracker.child(study, tracker.study(study, {}), "m", {})
        for step in (1, 2):
            run.metrics({"val/loss": 1.0 / step, "AP_class/it's a, b": step}, step)
        assert tracker.history(run.run_id, "val/loss") == [(1, 1.0), (2, 0.5)]
        assert tracker.history(run.run_id, "never") == []
        assert tracker.runs(study)[1].metrics == {"val/loss": 0.5, "AP_class/it_s a_ b": 2.0}

    def test_many_values_arrive_whole(self, tracker: Tracker, study: str) -> None:
        run = tracker.child(study, tracker.study(study, {}), "many", {})
        run.metrics({f"m{i}": i for i in range(1100)}, 1)
        run.params({f"p{i}": i for i in range(130)})
        run.tags({f"t{i}": "x" * 9000 for i in range(3)})
        record = tracker.runs(study)[1]
        assert (len(record.metrics), len(record.params)) == (1100, 130)
        assert set(record.tags["t1"]) == {"x"}

    def test_params_never_change(self, tracker: Tracker, study: str) -> None:
        run = tracker.child(study, tracker.study(study, {}), "p", {})
        run.params({"lr": 0.1, "seed": 0})
        run.params({"lr": 0.1})
        with pytest.raises(TrackingError, match="lr"):
            run.params({"lr": 0.2})
        assert tracker.runs(study)[1].params == {"lr": "0.1", "seed": "0"}

    def test_artifacts_come_back(self, tracker: Tracker, study: str, tmp_path: Path) -> None:
        run = tracker.child(study, tracker.study(study, {}), "a", {})
        for name in ("one", "two"):
            (tmp_path / name).write_text(name)
            run.artifact(tmp_path / name, "some/folder")
        (tmp_path / "top").write_bytes(b"\0\1")
        run.artifact(tmp_path / "top")
        assert tracker.download(run.run_id, "top", tmp_path / "to").read_bytes() == b"\0\1"
        file = tracker.download(run.run_id, "some/folder/one", tmp_path / "to")
        assert file.read_text() == "one"
        folder = tracker.download(run.run_id, "some/folder", tmp_path / "all")
        assert sorted(path.name for path in folder.iterdir()) == ["one", "two"]
        with pytest.raises(TrackingError, match="nothing"):
            tracker.download(run.run_id, "nothing", tmp_path / "to")
        with pytest.raises(TrackingError, match="is not a file"):
            run.artifact(tmp_path / "missing")

    def test_there_is_no_such_run(self, tracker: Tracker) -> None:
        with pytest.raises(TrackingError, match="0123456789"):
            tracker.resume("0123456789" * 3 + "ab")

    def test_no_credential_is_written(self, tracker: Tracker, study: str) -> None:
        run = tracker.child(study, tracker.study(study, {}), "c", {"a": "http://me:pw@host/x"})
        run.tags({"b": "no answer from https://me:p-w@host:80, twice"})
        run.params({"uri": "http://token@host"})
        record = tracker.runs(study)[1]
        assert record.tags["a"] == "http://***@host/x"
        assert record.tags["b"] == "no answer from https://***@host:80, twice"
        assert record.params["uri"] == "http://***@host"
