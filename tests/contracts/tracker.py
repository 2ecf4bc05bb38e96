"""What every Tracker does; inherited by the tests of each implementation."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from sharedenc.errors import TrackingError
from sharedenc.tracking import REUSED_FROM, Point, Tracker


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
            run.end(state, "because" if state == "failed" else None, wait_s=1.0)
            assert run.deliver(1.0)
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

    def test_what_is_said_twice_leaves_one_row(self, tracker: Tracker, study: str) -> None:
        run = tracker.child(study, tracker.study(study, {}), "twice", {})
        assert run.logged_steps() == set()
        for step, value in ((1, 0.5), (1, 0.5), (2, float("nan")), (2, float("nan")), (4, 0.25)):
            run.metrics({"score": value, "val/loss": value}, step, at_ms=1_700_000_000_000 + step)
        assert [step for step, _ in tracker.history(run.run_id, "score")] == [1, 2, 4]
        assert run.logged_steps() == {1, 2, 4}
        assert run.logged_steps("val/loss") == {1, 2, 4}
        assert run.logged_steps("never") == set()

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

    def test_artifacts_are_listed_and_deleted(
        self, tracker: Tracker, study: str, tmp_path: Path
    ) -> None:
        run = tracker.child(study, tracker.study(study, {}), "a", {})
        assert tracker.files(run.run_id) == {}
        for number, folder in enumerate(("", "one", "one/two")):
            (tmp_path / "file.bin").write_bytes(b"x" * (number + 1))
            run.artifact(tmp_path / "file.bin", folder)
        everything = {"file.bin": 1, "one/file.bin": 2, "one/two/file.bin": 3}
        assert tracker.files(run.run_id) == everything
        assert tracker.files(run.run_id, {".", "one"}) == {"file.bin": 1, "one/file.bin": 2}
        tracker.delete_files(run.run_id, ["one/file.bin"])
        assert tracker.files(run.run_id) == {"file.bin": 1, "one/two/file.bin": 3}
        with pytest.raises(TrackingError, match=r"one/file\.bin"):
            tracker.download(run.run_id, "one/file.bin", tmp_path / "to")

    def test_artifacts_of_a_run_that_was_taken_over_are_where_they_were(
        self, tracker: Tracker, study: str, tmp_path: Path
    ) -> None:
        parent = tracker.study(study, {})
        (tmp_path / "best").write_text("trained")
        first = tracker.child(study, parent, "first", {})
        first.artifact(tmp_path / "best", "checkpoint")
        second, third = (
            tracker.child(study, parent, name, {REUSED_FROM: source})
            for name, source in (("second", first.run_id), ("third", first.run_id))
        )
        for run in (second, third):
            path = tracker.download(run.run_id, "checkpoint/best", tmp_path / run.run_id)
            assert path.read_text() == "trained"
            assert tracker.files(run.run_id) == {}
        with pytest.raises(TrackingError, match="nothing"):
            tracker.download(second.run_id, "nothing", tmp_path / "to")

    def test_runs_are_found_by_tag_in_all_studies(self, tracker: Tracker, study: str) -> None:
        other = f"{study}-other"
        made: dict[str, list[str]] = {}
        for name in (study, other):
            parent = tracker.study(name, {})
            made[name] = [
                tracker.child(name, parent, f"run {n}", {"key": f"{study}-{n}", "state": s}).run_id
                for n, s in ((1, "done"), (1, "failed"), (2, "done"))
            ]
        one, two = f"{study}-1", f"{study}-2"
        found = tracker.find("key", [one, two, "it's"])
        assert {r.run_id for r in found[one]} == {*made[study][:2], *made[other][:2]}
        assert [r.run_id for r in found[two]] == [made[other][2], made[study][2]]
        assert found["it's"] == []
        done = tracker.find("key", [one], tags={"state": "done"}, but=other)
        assert [r.run_id for r in done[one]] == [made[study][0]]
        assert len(tracker.find("key", [one], limit=1)[one]) == 1

    def test_one_run_is_read_tagged_and_untagged(self, tracker: Tracker, study: str) -> None:
        run = tracker.child(study, tracker.study(study, {}), "one", {"keep": "k"})
        tracker.tag(run.run_id, {"mine": 1, "other": "http://me:pw@host/"})
        record = tracker.record(run.run_id)
        assert (record.tags["mine"], record.tags["other"]) == ("1", "http://***@host/")
        tracker.untag(run.run_id, ["mine", "never there"])
        tags = tracker.record(run.run_id).tags
        assert "mine" not in tags
        assert tags["keep"] == "k"
        with pytest.raises(TrackingError, match="0123456789"):
            tracker.record("0123456789" * 3 + "ab")

    def test_a_history_is_copied_with_its_times(self, tracker: Tracker, study: str) -> None:
        parent = tracker.study(study, {})
        first, second = (tracker.child(study, parent, name, {}) for name in ("first", "second"))
        for step in range(1, 4):
            first.metrics({"score": step / 10, "lr": 0.1}, step, at_ms=1_700_000_000_000 + step)
        first.metrics({"score": 0.25}, 3, at_ms=1_700_000_000_009)
        points = [p for name in ("score", "lr") for p in tracker.points(first.run_id, name)]
        for _ in range(2):  # what is sent twice is there once
            second.points(points)
        assert tracker.points(second.run_id, "score") == [
            Point("score", 0.1, 1, 1_700_000_000_001),
            Point("score", 0.2, 2, 1_700_000_000_002),
            Point("score", 0.3, 3, 1_700_000_000_003),
            Point("score", 0.25, 3, 1_700_000_000_009),
        ]
        record = tracker.record(second.run_id)
        assert (record.metrics, record.steps) == (
            {"score": 0.25, "lr": 0.1},
            {"score": 3, "lr": 3},
        )

    def test_there_is_no_such_run(self, tracker: Tracker) -> None:
        with pytest.raises(TrackingError, match="0123456789"):
            tracker.resume("0123456789" * 3 + "ab")

    def test_no_secret_of_the_environment_is_written(
        self, tracker: Tracker, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/planted+secret/EXAMPLE")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "seven-7")
        run = tracker.child(study, tracker.study(study, {}), "s", {})
        run.tags({"traceback": "KeyError: 'wJalr/planted+secret/EXAMPLE' (seven-7, not seven-77)"})
        (tmp_path / "study.yaml").write_text("data: s3://b/x?secret_key=abc&region=eu\n")
        run.artifact(tmp_path / "study.yaml")
        assert tracker.record(run.run_id).tags["traceback"] == "KeyError: '***' (***, not seven-77)"
        stored = tracker.download(run.run_id, "study.yaml", tmp_path / "to").read_text()
        assert stored == "data: s3://b/x?secret_key=***&region=eu\n"

    def test_no_credential_is_written(self, tracker: Tracker, study: str) -> None:
        run = tracker.child(study, tracker.study(study, {}), "c", {"a": "http://me:pw@host/x"})
        run.tags({"b": "no answer from https://me:p-w@host:80, twice"})
        run.params({"uri": "http://token@host"})
        record = tracker.runs(study)[1]
        assert record.tags["a"] == "http://***@host/x"
        assert record.tags["b"] == "no answer from https://***@host:80, twice"
        assert record.params["uri"] == "http://***@host"
