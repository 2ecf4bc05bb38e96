"""The daemon: its loop in this process with a server that is pretended, and as a real process."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from jetson_agent.daemon import STATUS_FILE, Daemon
from jetson_agent.errors import AgentError, AuthError, ForbiddenError, ServerError
from jetson_agent.link import Link, Pace
from jetson_agent.notify import notify, watchdog_s
from jetson_agent.protocol import BenchResult
from jetson_agent.registry import MemoryRegistry, ModelVersion
from jetson_agent.timing import Timing
from tests.agent import fake_board, models
from tests.agent.fake_trtexec import make_fake_trtexec, set_scenario
from tests.agent.pretending import Pretence, timing_of
from tests.agent.publishing import manifest_of, publish

ROOT = Path(__file__).resolve().parents[2]
# A clock on which an hour takes a second or two.
FAST = Pace(poll_s=0.05, away_s=0.02, away_max_s=0.2, refused_s=1000.0, jitter=0.0)
PATIENCE_S = 120.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.02)


class Trouble(MemoryRegistry):
    """A server with an error of choice for reading, and one for writing; `asked` counts."""

    reading: ServerError | None = None
    writing: ServerError | None = None
    asked = 0
    told = 0

    def ready_versions(self) -> list[ModelVersion]:
        self.asked += 1
        if self.reading:
            raise self.reading
        return super().ready_versions()

    def bench_keys(self, device: str) -> dict[str, str]:
        if self.reading:
            raise self.reading
        return super().bench_keys(device)

    def download(self, version: ModelVersion, name: str, folder: Path) -> Path:
        if self.reading:
            raise self.reading
        return super().download(version, name, folder)

    def report(self, result: BenchResult, artifacts: Any = None) -> str:
        self.told += 1
        if self.reading or self.writing:
            raise self.reading or self.writing  # type: ignore[misc]
        return super().report(result, artifacts)


class Running:
    """A daemon in a thread of this process."""

    def __init__(self, tmp_path: Path) -> None:
        self.pretence = Pretence(tmp_path)
        self.server = Trouble(files=self.pretence.shelf.registry.files)
        self.server.versions = self.pretence.shelf.registry.versions
        self.pretence.shelf.registry = self.pretence.agent.registry = self.server
        self.now = time.time
        self.daemon = Daemon(
            agent=self.pretence.agent,
            state=tmp_path / "state",
            server="http://server",
            pace=FAST,
            clock=lambda: self.now(),
        )
        self.thread = threading.Thread(target=self.daemon.run)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.pretence.agent.stopping.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()

    @property
    def status(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.daemon.state / STATUS_FILE).read_text())
        return value


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    if made.thread.is_alive():
        made.stop()


def test_what_is_registered_while_it_runs_is_timed_and_reported(running: Running) -> None:
    running.start()
    wait_for(lambda: running.server.asked >= 2, "it polls")
    running.pretence.add("seg", "A")
    wait_for(lambda: running.server.results, "a result is there")
    running.stop()
    assert running.pretence.timed == [b"seg"]
    status = running.status
    assert (status["doing"], status["counts"]["valid"]) == ("stopped", 1)
    assert status["waiting_to_be_sent"] == 0
    assert (status["device"], status["mode"]) == ("board", "MAXN-pinned-2t")


def test_while_the_server_is_away_it_times_what_it_has_and_sends_later(running: Running) -> None:
    """Two loads of one file: after the first the server goes."""
    running.pretence.bench = _with_loads(running, ["single", "stream"])
    running.pretence.add("seg", "A")

    def leave(*args: Any, **more: Any) -> Timing:
        running.server.reading = ServerError("no route to host")
        return running.pretence.pretend(*args, **more)

    running.pretence.agent.workbench.time_model = leave
    running.start()
    wait_for(lambda: len(running.pretence.timed) == 2, "both loads are timed")
    wait_for(lambda: running.daemon.reading.state == "away", "the server is known to be away")
    asked = running.server.asked
    wait_for(lambda: running.server.asked >= asked + 5, "it goes on asking")
    assert running.server.results == {}
    assert len(running.pretence.agent.outbox) == 2
    running.server.reading = None
    wait_for(lambda: len(running.server.results) == 2, "all is sent")
    running.stop()
    assert len(running.pretence.timed) == 2
    assert {r.load for r in running.server.results.values()} == {"single", "stream"}
    assert len(running.pretence.agent.outbox) == 0


def _with_loads(running: Running, loads: list[Any]) -> Any:
    from dataclasses import replace

    return replace(running.pretence.bench, loads=loads)


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (AuthError("who are you?"), "unauthorized", "401"),
        (ForbiddenError("not you"), "forbidden", "403"),
    ],
)
def test_who_is_not_let_in_does_not_hammer_and_says_so(
    running: Running, error: ServerError, state: str, words: str
) -> None:
    running.server.reading = error
    running.start()
    wait_for(lambda: running.daemon.reading.state == state, "it is refused")
    wait_for(lambda: words in running.status["doing"], "it says so")
    # Long enough for a dozen polls.
    time.sleep(0.6)
    running.stop()
    assert running.server.asked == 1
    assert running.status["server"]["state"] == state
    assert str(error) in running.status["last_error"]


def test_who_may_read_but_not_write_goes_on_timing_and_keeps_the_results(
    running: Running,
) -> None:
    running.server.writing = ForbiddenError("no right to write")
    for name in ("a", "b"):
        running.pretence.add(name, name, name)
    running.start()
    wait_for(lambda: len(running.pretence.timed) == 2, "both are timed")
    wait_for(lambda: running.server.asked >= 5, "it polls on")
    running.stop()
    assert running.server.told == 1
    assert len(running.pretence.agent.outbox) == 2
    assert running.status["server"]["writing"] == "forbidden"


def test_a_board_that_wakes_in_1970_waits_until_its_clock_is_set(running: Running) -> None:
    running.now = lambda: 1000.0
    running.pretence.add("seg", "A")
    running.start()
    wait_for(lambda: running.daemon.doing == "waiting for the clock", "it waits")
    wait_for(lambda: running.status["doing"] == running.daemon.doing, "it has written so")
    assert running.server.asked == 0
    assert "clock says 1970" in running.status["last_error"]
    running.now = time.time
    wait_for(lambda: running.server.results, "it works")
    running.stop()


def test_a_backend_that_is_gone_for_an_upgrade_spoils_no_job(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetson_agent.daemon.FAULT_S", 0.05)
    good = running.pretence.agent.look

    def gone() -> Any:
        raise AgentError("backend tensorrt cannot work here: there is no trtexec")

    running.pretence.agent.look = gone
    running.pretence.add("seg", "A")
    running.start()
    wait_for(lambda: "no trtexec" in running.daemon.doing, "it says so")
    running.pretence.agent.look = good
    wait_for(lambda: running.server.results, "it works")
    running.stop()
    assert [r.verdict for r in running.server.results.values()] == ["valid"]


def test_a_fault_of_its_own_is_told_and_survived(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetson_agent.daemon.FAULT_S", 0.05)
    running.server.reading = ZeroDivisionError("oops")  # type: ignore[assignment]
    running.pretence.add("seg", "A")
    running.start()
    wait_for(lambda: "oops" in running.daemon.last_error, "it fails")
    running.server.reading = None
    wait_for(lambda: running.server.results, "it works")
    running.stop()
    assert any("Traceback" in line for line in running.pretence.said)


def test_a_file_that_cannot_be_had_holds_up_nothing_else(running: Running) -> None:
    running.pretence.add("a", "a", "a")
    running.pretence.add("b", "b", "b")
    del running.server.files["voc20-resnet18-a", "1", "model.onnx"]
    running.start()
    wait_for(lambda: running.server.results, "the other is timed")
    running.stop()
    assert [r.architecture for r in running.server.results.values()] == ["b"]


def test_a_file_that_comes_back_is_waited_for_as_long_as_it_was_away_and_no_longer(
    running: Running,
) -> None:
    """The first download fails and the server answers again at once: 300 s would be too long."""
    running.daemon.pace = Pace(poll_s=0.05, away_s=0.02, away_max_s=1e6, jitter=0.0)
    download = running.server.download
    failures = iter([ServerError("restarting")] * 3)

    def fail_at_first(version: ModelVersion, name: str, folder: Path) -> Path:
        for error in failures:
            raise error
        return download(version, name, folder)

    running.server.download = fail_at_first  # type: ignore[method-assign]
    running.pretence.add("seg", "A")
    running.start()
    wait_for(lambda: running.server.results, "it is timed")
    running.stop()
    assert [Pace(away_s=5.0, away_max_s=300.0).after(n) for n in (1, 2, 3, 9)] == [5, 10, 20, 300]


def test_one_job_that_nobody_foresaw_does_not_keep_the_others_from_their_turn(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetson_agent.daemon.FAULT_S", 0.01)
    running.daemon.pace = Pace(poll_s=0.05, away_max_s=1e6, jitter=0.0)
    download = running.server.download

    def broken(version: ModelVersion, name: str, folder: Path) -> Path:
        if version.model.endswith("-a"):
            raise OSError(5, "Input/output error")
        return download(version, name, folder)

    running.server.download = broken  # type: ignore[method-assign]
    running.pretence.add("a", "a", "a")
    running.pretence.add("b", "b", "b")
    running.start()
    wait_for(lambda: running.server.results, "the other is timed")
    running.stop()
    assert [r.architecture for r in running.server.results.values()] == ["b"]
    assert "Input/output error" in running.status["last_error"]
    # A fault of ours is no power cut: it does not count against the job.
    running.pretence.start().recover()
    assert {e.interrupted for e in running.pretence.agent.journal.entries("DISCOVERED")} == {0}


def test_a_result_that_the_outbox_could_not_take_is_sent_later_and_not_timed_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetson_agent.daemon.FAULT_S", 0.01)
    outbox = running.pretence.agent.outbox
    put = outbox.put
    failures = iter([OSError(28, "No space left on device")] * 2)

    def full_at_first(result: BenchResult) -> Path:
        for error in failures:
            raise error
        return put(result)

    monkeypatch.setattr(outbox, "put", full_at_first)
    running.pretence.add("seg", "A")
    running.start()
    wait_for(lambda: running.server.results, "it is sent")
    running.stop()
    assert running.pretence.timed == [b"seg"]
    assert next(failures, None) is None


def test_a_disk_too_full_for_the_status_stops_nothing(running: Running) -> None:
    (running.daemon.state / f"{STATUS_FILE}.part").mkdir(parents=True)
    running.pretence.add("seg", "A")
    running.start()
    wait_for(lambda: running.server.results, "it is timed")
    running.stop()
    assert not (running.daemon.state / STATUS_FILE).exists()


def test_a_board_whose_gpu_is_gone_spends_no_job(running: Running) -> None:
    running.pretence.answers = {
        b"a": [timing_of("failed", kind="no-device")] * 2,
        b"b": [timing_of("failed", kind="no-device")] * 2,
    }
    for name in ("a", "b"):
        running.pretence.add(name, name, name)
    running.start()
    wait_for(lambda: len(running.server.results) == 2, "both are timed")
    running.stop()
    assert {r.verdict for r in running.server.results.values()} == {"valid"}
    assert all("failed_tries" not in r.certificate for r in running.server.results.values())
    # It was told, and the next start has nothing to make good.
    assert any("Because." in line for line in running.pretence.said)
    assert running.pretence.agent.journal.entries("DISCOVERED") == []


def test_a_refused_file_is_not_fetched_again_at_every_poll(running: Running) -> None:
    fetched: list[str] = []
    download = running.server.download

    def counted(version: ModelVersion, name: str, folder: Path) -> Path:
        fetched.append(name)
        return download(version, name, folder)

    running.server.download = counted  # type: ignore[method-assign]
    running.pretence.shelf.add(running.pretence.file("seg"), "A", content=b"something else")
    running.start()
    wait_for(lambda: running.server.asked >= 4, "it polls on")
    running.stop()
    assert fetched == ["model.onnx"]
    assert "sha256" in running.status["refused"][0]["reason"]


def test_a_job_that_failed_rests_while_others_have_their_turn(running: Running) -> None:
    # Its rest is over as soon as the clock jumps, and not before, however slow this machine is.
    running.pretence.agent.back_off_s = 1000.0
    ahead_s = itertools.count(0.0, 0.0)
    running.pretence.agent.clock = lambda: time.time() + next(ahead_s)
    running.pretence.answers = {b"a": [timing_of("failed", kind="crash")] * 2}
    running.pretence.add("a", "a", "a")
    running.pretence.add("b", "b", "b")
    running.start()
    wait_for(lambda: running.server.results, "the other had its turn")
    ahead_s = itertools.count(5000.0, 5000.0)
    wait_for(lambda: len(running.server.results) == 2, "both are there")
    running.stop()
    assert running.pretence.timed[:2] == [b"a", b"b"]
    assert running.pretence.timed[2:] == [b"a", b"a"]
    assert {r.verdict for r in running.server.results.values()} == {"valid"}


def test_the_wait_for_a_server_doubles_up_to_its_limit_and_starts_anew() -> None:
    now = [0.0]
    pace = Pace(away_s=5.0, away_max_s=60.0, refused_s=600.0, jitter=0.0)
    link = Link(pace=pace, clock=lambda: now[0])
    waits = []
    for _ in range(6):
        link.failed(ServerError("away"))
        waits.append(link.wait_s)
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    link.failed(AuthError("who?"))
    assert (link.state, link.wait_s) == ("unauthorized", 600.0)
    now[0] = 600.0
    assert link.wait_s == 0.0
    link.worked(30.0)
    assert (link.state, link.wait_s) == ("ok", 30.0)
    link.failed(ServerError("away"))
    assert link.wait_s == 5.0


def test_polls_are_spread() -> None:
    pace = Pace(poll_s=30.0)
    waits = [pace.spread(30.0) for _ in range(500)]
    assert min(waits) >= 24.0
    assert max(waits) <= 36.0
    assert max(waits) - min(waits) > 6.0


def test_systemd_is_told_of_start_status_life_and_end(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_s() == pytest.approx(0.03)
    got: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(PATIENCE_S)
        running.server.reading = AuthError("who?")
        running.start()
        while not {"READY=1", "WATCHDOG=1"} <= set(got) or "401" not in "".join(got):
            got.append(server.recv(4096).decode())
        running.pretence.agent.stopping.set()
        while got[-1] != "STOPPING=1":
            got.append(server.recv(4096).decode())
        running.stop()
    assert got.index("READY=1") <= 2
    assert "STATUS=server does not know this user (401)" in got


def test_a_watchdog_of_another_process_and_no_systemd_are_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_s() is None
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


class Process:
    """`jetson-agent run` as people start it."""

    def __init__(self, uri: str, data: str, state: Path, *more: str) -> None:
        self.state = state
        self.log = state.with_suffix(".log")
        command = [sys.executable, "-m", "jetson_agent", "run", "--tracking-uri", uri]
        command += ["--device", f"board-{data}", "--select", f"{data}-*", "--state-dir", str(state)]
        if "--backend" not in more:
            command += ["--backend", "onnxruntime", "--threads", "1"]
        command += ["--poll-s", "0.2"]
        command += ["--warmup-s", "0.01", "--duration-s", "0.05", "--runs", "2", "--repeats", "0"]
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [*command, *more],
                cwd=ROOT,
                stderr=stream,
                stdout=stream,
                env={**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"},
                start_new_session=True,
            )

    @property
    def status(self) -> dict[str, Any]:
        path = self.state / STATUS_FILE
        return json.loads(path.read_text()) if path.exists() else {"server": {}, "counts": {}}

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        def met() -> object:
            assert self.process.poll() is None, self.said
            return condition()

        wait_for(met, what)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _bench_runs(uri: str, data: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"bench/board-{data}")
    wanted = "tags.`sharedenc.kind` = 'bench'"
    return list(client.search_runs([experiment.experiment_id], wanted)) if experiment else []


def _ended(process: Process) -> int:
    started = time.monotonic()
    process.process.send_signal(signal.SIGTERM)
    code = process.process.wait(PATIENCE_S)
    assert time.monotonic() - started < 60
    return code


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started_again_has_everything_once(tmp_path: Path) -> None:
    from sharedenc.mlflow_server import serve

    data = f"d{uuid4().hex[:8]}"
    root = tmp_path / "server"
    with serve(root) as server:
        uri = server.uri
        for seed, graph in enumerate(("seg", "det")):
            model = models.convolution(tmp_path / f"{graph}.onnx", seed=seed)
            publish(uri, model, manifest_of(model, graph, graph=graph, data=data))
        agent = Process(uri, data, tmp_path / "state", "--load", "single")
        with agent:
            agent.wait_for(lambda: len(_bench_runs(uri, data)) == 2, "both are timed")
            agent.wait_for(lambda: agent.status["waiting_to_be_sent"] == 0, "all of it is sent")
            assert _ended(agent) == 0
    # Now nobody answers: the same board starts, with what it knows, in the other mode of load.
    agent = Process(uri, data, tmp_path / "state")
    with agent:
        agent.wait_for(lambda: agent.status["server"].get("state") == "away", "the server is away")
        agent.wait_for(lambda: agent.status["waiting_to_be_sent"] == 2, "both are timed without it")
        with serve(root, int(uri.rpartition(":")[2])) as again:
            assert again.uri == uri
            agent.wait_for(lambda: len(_bench_runs(uri, data)) == 4, "the other load is sent too")
            # A run is there before its figures are.
            agent.wait_for(lambda: agent.status["waiting_to_be_sent"] == 0, "all of it is sent")
            agent.wait_for(lambda: agent.status["server"]["state"] == "ok", "it knows")
        agent.wait_for(
            lambda: agent.status["server"]["state"] == "away", "the server is away again"
        )
        assert _ended(agent) == 0
    with serve(root, int(uri.rpartition(":")[2])):
        runs = _bench_runs(uri, data)
        made = [(r.data.tags["sharedenc.graph"], r.data.tags["sharedenc.load"]) for r in runs]
        assert sorted(made) == [
            ("det", "single"),
            ("det", "stream"),
            ("seg", "single"),
            ("seg", "stream"),
        ]
        assert all(run.data.metrics["n"] >= 20 for run in runs)


@pytest.mark.slow
def test_each_mode_and_each_software_of_a_board_has_its_own_figures(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"d{uuid4().hex[:8]}"
    model = models.convolution(tmp_path / "m.onnx")
    publish(mlflow_uri, model, manifest_of(model, "conv", data=data))
    board = fake_board.build(tmp_path / "root", "agx-orin-64")
    trtexec = make_fake_trtexec(tmp_path / "tensorrt")
    monkeypatch.setenv("JETSON_AGENT_SYSROOT", str(board.root))
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(trtexec))
    more = ("--backend", "tensorrt", "--load", "single", "--builds", "1", "--preflight-s", "0")

    def stale() -> list[str]:
        runs = [r for r in _bench_runs(mlflow_uri, data) if "sharedenc.stale" in r.data.tags]
        return [run.data.tags["sharedenc.mode"].split("-")[0] for run in runs]

    def modes() -> set[tuple[str, str]]:
        runs = _bench_runs(mlflow_uri, data)
        found = [(r.data.tags["sharedenc.mode"], r.data.tags["sharedenc.runtime"]) for r in runs]
        assert len(found) == len(set(found))
        return set(found)

    with Process(mlflow_uri, data, tmp_path / "state", *more) as agent:
        agent.wait_for(lambda: len(modes()) == 1, "the first mode is timed")
        board.select("MODE_30W")
        agent.wait_for(lambda: len(modes()) == 2, "the second mode is timed")
        set_scenario(trtexec.parent, {"version": "v100700"})
        trtexec.write_text(trtexec.read_text())
        agent.wait_for(lambda: len(modes()) == 3, "the new software is timed")
        agent.wait_for(stale, "the old figure is marked")
        assert _ended(agent) == 0
    (first, old), *_ = sorted(modes())
    assert first.startswith("MAXN")
    assert old.startswith("10.3.0")
    assert "+l4t" in old
    assert {runtime.partition("+")[0] for _, runtime in modes()} == {"10.3.0", "10.7.0"}
    # In the other mode nobody has timed the new software yet.
    assert stale() == ["MODE_30W"]


@pytest.mark.slow
def test_a_daemon_that_has_nothing_to_do_takes_less_than_a_hundredth_of_a_core(
    mlflow_uri: str, tmp_path: Path
) -> None:
    """CPU time, which the load of this machine does not touch, over two polls of the usual pace."""
    data = f"d{uuid4().hex[:8]}"
    model = models.convolution(tmp_path / "m.onnx")
    publish(mlflow_uri, model, manifest_of(model, "conv", data=data))
    with Process(
        mlflow_uri, data, tmp_path / "state", "--load", "single", "--poll-s", "30"
    ) as agent:
        agent.wait_for(lambda: agent.status["counts"].get("sent") == 1, "the job is done")
        agent.wait_for(lambda: agent.status["doing"] == "idle", "it is idle")
        polls = agent.status["counts"]["polls"]
        watched = psutil.Process(agent.process.pid)
        began_s, before = time.monotonic(), watched.cpu_times()
        agent.wait_for(lambda: agent.status["counts"]["polls"] >= polls + 2, "it polls twice")
        lasted_s, after = time.monotonic() - began_s, watched.cpu_times()
        used_s = sum(after[:4]) - sum(before[:4])
        assert lasted_s > 30
        assert used_s / lasted_s < 0.01
        assert _ended(agent) == 0


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_and_leaves_no_process(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"d{uuid4().hex[:8]}"
    model = models.convolution(tmp_path / "m.onnx")
    publish(mlflow_uri, model, manifest_of(model, "conv", data=data))
    folder = tmp_path / "tensorrt"
    trtexec = make_fake_trtexec(folder, {"scenario": "ignore_sigterm"})
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(trtexec))
    more = ("--backend", "tensorrt", "--load", "single")
    with Process(mlflow_uri, data, tmp_path / "state", *more) as agent:
        agent.wait_for((folder / "pids.json").exists, "the tool hangs")
        agent.process.send_signal(signal.SIGTERM)
        agent.process.send_signal(signal.SIGINT)
        assert agent.process.wait(PATIENCE_S) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        pids = json.loads((folder / "pids.json").read_text())
        wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), "all is gone")


@pytest.mark.slow
def test_a_signal_during_a_timing_ends_it_within_seconds_and_the_next_start_does_the_job(
    mlflow_uri: str, tmp_path: Path
) -> None:
    data = f"d{uuid4().hex[:8]}"
    model = models.convolution(tmp_path / "m.onnx")
    publish(mlflow_uri, model, manifest_of(model, "conv", data=data))
    slow = ("--load", "single", "--duration-s", "100", "--deadline-s", "200")
    with Process(mlflow_uri, data, tmp_path / "state", *slow) as agent:
        agent.wait_for(lambda: "timing" in agent.status.get("doing", ""), "it times")
        agent.wait_for(lambda: "build 1 of 1" in agent.said, "it is in the middle of it")
        assert _ended(agent) == 0
        assert agent.status["doing"] == "stopped"
    assert _bench_runs(mlflow_uri, data) == []
    with Process(mlflow_uri, data, tmp_path / "state", "--load", "single") as agent:
        agent.wait_for(lambda: len(_bench_runs(mlflow_uri, data)) == 1, "it is done")
        assert _ended(agent) == 0
