"""The private server: started, joined, stopped by its last user, and what can go wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from sharedenc import mlflow_server
from sharedenc.errors import TrackingError
from sharedenc.mlflow_server import HOST, Server, free_port, serve
from sharedenc.tracking import MlflowTracker, Patience, check_server

JOIN_FROM_ELSEWHERE = """
import sys
from pathlib import Path
from sharedenc.mlflow_server import serve
with serve(Path(sys.argv[1])) as server:
    print(server.uri, server.pid)
"""


def state_of(root: Path) -> Path:
    return root / "mlflow-server.json"


def test_the_last_user_of_a_private_server_stops_it(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        with urllib.request.urlopen(f"{server.uri}/health", timeout=60) as answer:
            assert answer.status == 200
        assert json.loads(state_of(tmp_path).read_text())["pid"] == server.pid
        other = subprocess.run(
            [sys.executable, "-c", JOIN_FROM_ELSEWHERE, str(tmp_path)],
            check=True,
            capture_output=True,
            text=True,
        )
        assert other.stdout.split() == [server.uri, str(server.pid)]
        with serve(tmp_path) as joined:
            assert joined == server
        with urllib.request.urlopen(f"{server.uri}/health", timeout=60) as answer:
            assert answer.status == 200
    assert server.pid is not None
    assert not mlflow_server._group_lives(server.pid)
    assert not state_of(tmp_path).exists()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((HOST, int(server.uri.rsplit(":", 1)[1])), timeout=5)
    assert (tmp_path / "mlflow.db").is_file()


@pytest.mark.slow
def test_a_killed_server_comes_back_on_its_port_with_what_it_knew(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        tracker = MlflowTracker(server.uri, patience=Patience(120.0, meanwhile=server.revive))
        run = tracker.child("s", tracker.study("s", {}), "trial", {})
        run.metrics({"score": 0.5}, 1)
        assert not server.revive()
        assert server.pid is not None
        os.killpg(server.pid, signal.SIGKILL)
        os.waitpid(server.pid, 0)
        run.metrics({"score": 0.75}, 2)
        assert tracker.history(run.run_id, "score") == [(1, 0.5), (2, 0.75)]
        second = json.loads(state_of(tmp_path).read_text())
        assert second["pid"] != server.pid
        assert server.uri.endswith(f":{second['port']}")
        # Whoever joins before it is missed starts it on that port too.
        os.killpg(second["pid"], signal.SIGKILL)
        os.waitpid(second["pid"], 0)
        with serve(tmp_path) as joined:
            assert joined.uri == server.uri
            assert not server.revive()
            second = json.loads(state_of(tmp_path).read_text())
    assert not mlflow_server._group_lives(second["pid"])
    assert not state_of(tmp_path).exists()


def test_a_server_of_the_users_is_not_started_again() -> None:
    assert not Server("http://127.0.0.1:1", None).revive()


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=f"port {port} is in use"), serve(tmp_path, port):
            pass
    assert not state_of(tmp_path).exists()


@pytest.mark.parametrize(
    "state", ["dead", "somebody else's", "half written"], ids=lambda text: text.split()[0]
)
def test_a_stale_state_file_is_cleaned_up(tmp_path: Path, state: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    pid = {"dead": gone.pid, "somebody else's": os.getpid()}.get(state, 0)
    text = json.dumps({"pid": pid, "port": free_port()})
    state_of(tmp_path).write_text(text[:9] if state == "half written" else text)
    assert mlflow_server._running(tmp_path) is None
    assert not state_of(tmp_path).exists()


def test_a_named_server_is_used_and_must_answer(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "untouched"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    with serve(root) as server:
        assert server == Server(mlflow_uri, None)
    monkeypatch.setattr(mlflow_server, "check_server", partial(check_server, wait_s=1.0))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{HOST}:{free_port()}")
    with pytest.raises(TrackingError, match="no MLflow server answers"), serve(root):
        pass
    assert not root.exists()


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, whatever its name says" * 99)
    with pytest.raises(TrackingError, match=r"(?s)did not come up.*not a database") as error:
        with serve(tmp_path):
            pass
    assert "mlflow-server.log" in str(error.value)
    assert not state_of(tmp_path).exists()
