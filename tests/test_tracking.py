"""Both trackers keep the contract; the MLflow one also outlives its server's absence."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedenc import tracking
from sharedenc.errors import TrackingError
from sharedenc.mlflow_server import free_port
from sharedenc.tracking import MemoryTracker, MlflowRun, MlflowTracker, check_server
from tests.contracts.tracker import TrackerContract


class TestMemoryTracker(TrackerContract):
    @pytest.fixture
    def tracker(self) -> Iterator[MemoryTracker]:
        tracker = MemoryTracker()
        yield tracker
        tracker.close()


class TestMlflowTracker(TrackerContract):
    @pytest.fixture
    def tracker(self, mlflow_uri: str) -> MlflowTracker:
        return MlflowTracker(mlflow_uri)

    def test_two_that_start_at_once_share_one_parent(self, mlflow_uri: str, study: str) -> None:
        trackers = [MlflowTracker(mlflow_uri) for _ in range(4)]
        found: list[str] = []
        gate = threading.Barrier(len(trackers))

        def start(tracker: MlflowTracker) -> None:
            gate.wait()
            found.append(tracker.study(study, {}))

        threads = [threading.Thread(target=start, args=(tracker,)) for tracker in trackers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert len(set(found)) == 1
        assert len(trackers[0].runs(study)) == 1

    def test_a_study_whose_maker_died_gets_its_parent(
        self, tracker: MlflowTracker, study: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tracking, "PARENT_WAIT_S", 0.5)
        tracker._client.create_experiment(study)
        assert tracker.study(study, {}) == tracker.runs(study)[0].run_id

    def test_all_pages_are_read(
        self, tracker: MlflowTracker, study: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tracking, "PAGE", 2)
        parent = tracker.study(study, {})
        runs = [tracker.child(study, parent, str(i), {}).run_id for i in range(4)]
        assert [record.run_id for record in tracker.runs(study)] == [parent, *runs]

    def test_a_deleted_study_is_told(self, tracker: MlflowTracker, study: str) -> None:
        tracker.study(study, {})
        experiment = tracker._client.get_experiment_by_name(study)
        tracker._client.delete_experiment(experiment.experiment_id)
        with pytest.raises(TrackingError, match="was deleted on the server"):
            tracker.study(study, {})

    def test_a_run_outlives_its_server_and_tells_later(
        self,
        tracker: MlflowTracker,
        study: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from mlflow import MlflowClient

        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr(tracking, "END_WAIT_S", 0.0)
        known = tracker.child(study, tracker.study(study, {}), "away", {})
        known.metrics({"loss": 3.0}, 1)
        (tmp_path / "file").write_text("kept")

        away = MlflowClient(tracking_uri=f"http://127.0.0.1:{free_port()}")
        lost = MlflowRun(away, known.run_id)
        lost.keep_in(tmp_path / "work")
        lost.params({"lr": 1})
        lost.metrics({"loss": 2.0}, 2)
        lost.metrics({"loss": 1.0}, 3)
        lost.artifact(tmp_path / "file", "sub")
        lost.end("done")
        spool = tmp_path / "work" / tracking.SPOOL
        kinds = [json.loads(line)["kind"] for line in spool.read_text().splitlines()]
        assert kinds == ["params", "metrics", "metrics", "artifact", "tags", "end"]

        again = tracker.resume(known.run_id)
        again.keep_in(tmp_path / "work")
        assert not spool.exists()
        assert tracker.history(known.run_id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
        record = tracker.runs(study)[1]
        assert (record.status, record.params) == ("FINISHED", {"lr": "1"})
        assert tracker.download(known.run_id, "sub/file", tmp_path).read_text() == "kept"

    def test_a_spooled_message_that_is_refused_does_not_block_the_rest(
        self, tracker: MlflowTracker, study: str, tmp_path: Path
    ) -> None:
        run = tracker.child(study, tracker.study(study, {}), "x", {})
        run.params({"lr": 1})
        rows = [
            {"kind": "params", "values": {"lr": "2"}},
            {"kind": "artifact", "values": {"path": str(tmp_path / "gone"), "folder": ""}},
            {"kind": "metrics", "values": {"loss": 0.5}},
        ]
        common = {"run_id": run.run_id, "step": 4, "ms": int(time.time() * 1000)}
        lines = [json.dumps(common | row) + "\n" for row in rows]
        (tmp_path / tracking.SPOOL).write_text("".join(lines))
        run.keep_in(tmp_path)
        assert tracker.history(run.run_id, "loss") == [(4, 0.5)]
        assert tracker.runs(study)[1].params == {"lr": "1"}


def test_a_dead_server_is_told_soon_and_with_what_to_do() -> None:
    uri = f"http://me:secret@127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(TrackingError, match="unset MLFLOW_TRACKING_URI") as error:
        MlflowTracker(uri, wait_s=1.5)
    assert time.monotonic() - started < 60
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("uri", ["sqlite:///x.db", "./mlruns", "databricks"])
def test_only_a_server_will_do(uri: str) -> None:
    with pytest.raises(TrackingError, match="http://"):
        check_server(uri)
