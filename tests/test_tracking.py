"""Both trackers keep the contract; the MLflow one also outlives its server's absence."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sharedenc.errors import TrackingError
from sharedenc.mlflow_server import free_port, serve
from sharedenc.tracking import (
    SPOOL,
    MemoryTracker,
    MlflowRun,
    MlflowTracker,
    Patience,
    check_server,
)
from sharedenc.tracking import run as run_module
from sharedenc.tracking import server as server_module
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
        monkeypatch.setattr(server_module, "PARENT_WAIT_S", 0.5)
        tracker._client.create_experiment(study)
        assert tracker.study(study, {}) == tracker.runs(study)[0].run_id

    def test_all_pages_are_read(
        self, tracker: MlflowTracker, study: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server_module, "PAGE", 2)
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
        monkeypatch.setattr(run_module, "END_WAIT_S", 0.0)
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
        spool = tmp_path / "work" / SPOOL
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
        (tmp_path / SPOOL).write_text("".join(lines))
        run.keep_in(tmp_path)
        assert tracker.history(run.run_id, "loss") == [(4, 0.5)]
        assert tracker.runs(study)[1].params == {"lr": "1"}


class OtherVersion(BaseHTTPRequestHandler):
    """Answers as a server of a version that cannot be installed beside this one."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"2.22.4" if self.path == "/mlflow/version" else b"OK")

    def log_message(self, *values: object) -> None:
        """Nothing on standard error."""


def test_a_server_of_an_older_major_version_is_refused() -> None:
    with HTTPServer(("127.0.0.1", 0), OtherVersion) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(TrackingError, match=r"is version 2\.22\.4.*3\.0 or newer"):
                check_server(f"{address}/mlflow")
            check_server(address)  # does not say its version
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_a_patient_tracker_waits_for_a_server_that_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    told: list[str] = []
    with serve(tmp_path) as server:
        patience = Patience(120.0, tell=told.append, meanwhile=server.revive)
        tracker = MlflowTracker(server.uri, patience=patience)
        parent = tracker.study("s", {})
        assert server.pid is not None
        os.killpg(server.pid, signal.SIGKILL)
        os.waitpid(server.pid, 0)
        run = tracker.child("s", parent, "made while it was away", {})
        assert len(told) == 1
        assert "away" in told[0]
        assert [r.run_id for r in tracker.runs("s")] == [parent, run.run_id]


@pytest.mark.slow
def test_a_server_that_is_away_at_the_end_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serve(tmp_path / "server") as server:
        tracker = MlflowTracker(server.uri)
        run = tracker.child("s", tracker.study("s", {}), "trial", {})
        run.keep_in(tmp_path / "work")
        run.metrics({"score": 0.5}, 1)
        (tmp_path / "best").write_text("trained")
        assert server.pid is not None
        os.killpg(server.pid, signal.SIGKILL)
        os.waitpid(server.pid, 0)
        run.metrics({"score": 0.75}, 2)
        run.artifact(tmp_path / "best", "checkpoint")
        driver = threading.Timer(3.0, server.revive)
        driver.start()
        run.end("done")
        driver.join()
        assert not (tmp_path / "work" / SPOOL).exists()
        record = tracker.record(run.run_id)
        assert (record.status, record.tags["sharedenc.state"]) == ("FINISHED", "done")
        assert tracker.history(run.run_id, "score") == [(1, 0.5), (2, 0.75)]
        assert tracker.files(run.run_id) == {"checkpoint/best": 7}


def test_patience_has_an_end_and_then_a_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = MlflowClient(tracking_uri=f"http://127.0.0.1:{free_port()}")
    run = MlflowRun(away, "0" * 32, patience=Patience(0.0, tell=lambda text: None))
    with pytest.raises(TrackingError, match="does not answer"):
        run.tags({"a": "b"})


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
