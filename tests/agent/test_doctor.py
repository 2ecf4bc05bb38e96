"""`jetson-agent doctor`: on boards that are not there, and against a real server with a login."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jetson_agent import doctor, doctor_board
from jetson_agent.credentials import PASSWORD, TOKEN, USERNAME
from jetson_agent.doctor import Report, examine
from jetson_agent.doctor_server import service_row
from jetson_agent.protocol import BenchResult
from tests.agent import fake_board
from tests.agent.fake_board import FakeBoard
from tests.agent.fake_trtexec import make_fake_trtexec
from tests.agent.test_protocol import RESULT
from tests.infra.cluster import mlflow_server

ADMIN = ("admin", "password-of-the-admin-1")
BOARD = ("board-1", "password-of-the-board-1")
NODES = ("nvmap", "nvgpu/igpu0/ctrl", "dri/renderD128")


@pytest.fixture
def trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = make_fake_trtexec(tmp_path / "bin")
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(program))
    return program


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (USERNAME, PASSWORD, TOKEN, "JETSON_AGENT_CREDENTIALS", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def board(folder: Path, kind: fake_board.Kind = "agx-orin-64", **facts: object) -> FakeBoard:
    """A board with the device nodes of JetPack 6."""
    made = fake_board.build(folder / "root", kind, **facts)  # type: ignore[arg-type]
    if kind != "x86":
        for name in NODES:
            made.write(f"dev/{name}", b"")
    return made


def look(made: FakeBoard, folder: Path, **more: object) -> Report:
    return examine(None, folder / "state", root=made.root, **more)  # type: ignore[arg-type]


def states(report: Report) -> dict[str, str]:
    return {row.check: row.state for row in report.rows}


def row(report: Report, check: str) -> doctor.Row:
    [found] = [row for row in report.rows if row.check == check]
    return found


def test_a_pinned_agx_orin_lacks_nothing_but_python_s_tensorrt(
    tmp_path: Path, trtexec: Path
) -> None:
    report = look(board(tmp_path), tmp_path)
    assert report.ready
    doubted = {check for check, state in states(report).items() if state != "ok"}
    # Both are true here: no JetPack, and no server was named.
    assert doubted == {"checking outputs", "server"}
    assert row(report, "tensorrt").detail == f"10.3.0, {trtexec}"
    assert "python3-libnvinfer" in row(report, "checking outputs").mend
    told = row(report, "board").detail
    for fact in ("Jetson AGX Orin 64GB", "L4T 36.4.4", "JetPack 6.2.1", "TensorRT 10.3.0.30"):
        assert fact in told
    assert row(report, "power mode").detail == "MAXN (has MAXN, MODE_15W, MODE_30W, MODE_50W)"
    assert row(report, "clocks").detail == "pinned, GPU at 1300.5 MHz"
    assert row(report, "power").detail.startswith("12.0 W now (VDD_GPU_SOC 6.0,")
    assert row(report, "temperature").detail == "45.0 degrees"
    assert row(report, "GPU").detail == "3 device nodes can be opened"


def test_every_row_that_is_not_ok_says_how_to_mend_it(tmp_path: Path) -> None:
    for number, made in enumerate(
        [
            board(tmp_path / "a", pinned=False, tensorrt="", temperature_c=88.0),
            board(tmp_path / "b", "x86"),
            board(tmp_path / "c", "orin-nano"),
        ]
    ):
        made.over_current(3, 7) if number == 2 else None
        for found in look(made, made.root).rows:
            assert (found.state == "ok") == (found.mend == ""), found


def test_a_floating_clock_is_told_with_how_to_pin_it(tmp_path: Path, trtexec: Path) -> None:
    report = look(board(tmp_path, pinned=False), tmp_path)
    assert report.ready, "it can time; its figures will be suspect"
    found = row(report, "clocks")
    assert (found.state, found.detail) == (
        "warn",
        "floating (GPU and CPU): figures will be suspect",
    )
    assert "jetson_clocks" in found.mend
    assert "jetson-clocks-lock.service" in found.mend


def test_an_orin_nano_that_counts_over_currents_while_idle(tmp_path: Path, trtexec: Path) -> None:
    made = board(tmp_path, "orin-nano", mode="MAXN_SUPER")
    made.over_current(3, 12)
    report = look(made, tmp_path)
    assert report.ready
    assert row(report, "power mode").detail == "MAXN_SUPER (has 15W, 25W, MAXN_SUPER)"
    found = row(report, "throttling")
    assert (found.state, found.detail) == ("warn", "not now; since the start: oc3 12")
    assert "Orin Nano Super" in found.mend
    made.alarm(1)
    assert "VDD_IN crit" in row(look(made, tmp_path), "throttling").detail


def test_a_plain_machine_is_ready_with_onnx_runtime_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(tmp_path / "gone"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    report = look(board(tmp_path, "x86"), tmp_path)
    found = states(report)
    assert report.ready
    assert (found["tensorrt"], found["onnxruntime"]) == ("warn", "ok")
    assert "GPU" not in found
    assert "no Jetson, Plain CPU 3000" in row(report, "board").detail


def test_a_board_without_tensorrt_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(tmp_path / "gone"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    report = look(board(tmp_path, tensorrt=""), tmp_path)
    assert not report.ready
    found = states(report)
    assert (found["tensorrt"], found["board"]) == ("missing", "missing")
    assert "nvidia-jetpack" in row(report, "tensorrt").mend


def test_device_nodes_of_other_groups_and_none_at_all(
    tmp_path: Path, trtexec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = board(tmp_path)
    may = os.access
    node = made.root / "dev" / "dri" / "renderD128"

    def access(path: os.PathLike[str], mode: int) -> bool:
        return False if Path(path) == node else may(path, mode)

    with monkeypatch.context() as patch:
        # Tests may run as root, who may open everything.
        patch.setattr(doctor_board.os, "access", access)
        patch.setattr(Path, "group", lambda self: "render")
        found = row(look(made, tmp_path), "GPU")
    assert found.state == "missing"
    assert found.detail == "renderD128 cannot be opened (group render)"
    assert found.mend == "sudo usermod --append --groups render USER, then log in again"
    for name in NODES:
        made.remove(f"dev/{name}")
    assert "--runtime=nvidia" in row(look(made, tmp_path), "GPU").mend


def test_power_that_only_a_group_may_read(
    tmp_path: Path, trtexec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = board(tmp_path)
    base = "sys/bus/i2c/devices/1-0040/hwmon/hwmon1"
    made.write(f"{base}/curr1_input", "")
    assert "does not answer" in row(look(made, tmp_path), "power").detail
    monkeypatch.setattr(doctor_board.os, "access", lambda path, mode: "curr1" not in str(path))
    found = row(look(made, tmp_path), "power")
    assert (found.state, "curr1_input cannot be read (group" in found.detail) == ("warn", True)


@pytest.mark.parametrize(
    ("now_s", "state", "told"),
    [
        (60.0, "missing", "1970-01-01T00:01:00+00:00: boards without a battery wake in 1970"),
        (1_700_000_000.0, "missing", "2023-11-14"),
        (1_800_000_000.0, "ok", "2027-01-15T08:00:00+00:00"),
        (1e18, "ok", "1e+18 s since 1970"),
    ],
)
def test_a_clock_that_nobody_has_set(
    tmp_path: Path, trtexec: Path, now_s: float, state: str, told: str
) -> None:
    report = look(board(tmp_path), tmp_path, clock=lambda: now_s)
    found = row(report, "clock")
    assert found.state == state
    assert told in found.detail
    assert report.ready == (state == "ok")
    assert ("timedatectl" in found.mend) == (state == "missing")


def test_a_clock_beside_the_server_s() -> None:
    found = doctor._clock(1_800_000_000.0, -3600.0)
    assert (found.state, "3600 s behind the server's" in found.detail) == ("warn", True)
    assert doctor._clock(1_800_000_000.0, 2.0).state == "ok"


def test_a_binding_that_crashes_or_is_of_another_version_costs_the_check(
    tmp_path: Path, trtexec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetson_agent.backends.trt_runner.what_is_missing", lambda: "")
    made = board(tmp_path)
    for code, state, told in (
        ("print('10.3.0')", "ok", "tensorrt 10.3.0 for Python"),
        ("print('8.6.2')", "warn", "tensorrt for Python is 8.6.2, trtexec 10.3.0"),
        ("raise ImportError('numpy is too new')", "warn", "ImportError: numpy is too new"),
        ("import os; os.abort()", "warn", "exit code -6"),
    ):
        monkeypatch.setattr(doctor, "IMPORT", code)
        found = row(look(made, tmp_path), "checking outputs")
        assert found.state == state
        assert told in found.detail


def test_credentials_that_others_can_read_and_a_ca_that_is_none(
    tmp_path: Path, trtexec: Path
) -> None:
    secret = tmp_path / "login"
    secret.write_text("username=board-1\npassword=planted-4711\n")
    secret.chmod(0o644)
    (tmp_path / "ca.pem").write_text("nothing")
    made = board(tmp_path)
    more = {"credentials": secret, "ca_file": tmp_path / "ca.pem"}
    report = look(made, tmp_path, tracking_uri="https://127.0.0.1:9", offline=True, **more)
    found = states(report)
    assert (found["credentials"], found["CA"], found["server"]) == ("missing",) * 3
    assert f"chmod 600 {secret}" in row(report, "credentials").mend
    assert "planted" not in json.dumps(report.to_dict())
    secret.chmod(0o600)
    report = look(
        made, tmp_path, tracking_uri="https://127.0.0.1:9", credentials=secret, offline=True
    )
    assert row(report, "credentials").detail == f"user board-1, from {secret}"
    assert row(report, "server").detail == "https://127.0.0.1:9, not asked (--offline)"
    installed = made.write("etc/jetson-agent/credentials", "token=planted-4711\n")
    installed.chmod(0o640)
    assert states(look(made, tmp_path))["credentials"] == "missing"
    installed.chmod(0o600)
    assert states(look(made, tmp_path))["credentials"] == "ok"


def test_an_address_with_a_password_is_shown_without_it(tmp_path: Path, trtexec: Path) -> None:
    uri = "http://me:planted-4711@server:5000"
    report = look(board(tmp_path), tmp_path, tracking_uri=uri, offline=True)
    assert row(report, "server").detail.startswith("http://server:5000")
    assert "planted" not in json.dumps(report.to_dict())


def write_status(state: Path, **changes: object) -> None:
    told = {
        "pid": os.getpid(),
        "doing": "idle",
        "updated": time.time() - 120,
        "server": {"state": "ok", "writing": "ok"},
        "waiting_to_be_sent": 2,
        "last_error": "",
    }
    state.mkdir(exist_ok=True)
    (state / "status.json").write_text(json.dumps(told | changes))


def test_what_the_daemon_says_of_itself(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert service_row(state).state == "ok"
    write_status(state)
    found = service_row(state, time.time())
    assert (found.state, found.detail) == (
        "ok",
        "idle, as of 2 min ago; 2 results wait to be sent",
    )
    write_status(state, server={"state": "forbidden", "writing": "away"}, last_error="no")
    found = service_row(state, time.time())
    assert found.state == "warn"
    assert "(403); server away; last error: no" in found.detail
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_status(state, pid=gone.pid, doing="timing m")
    assert "is gone; it was: timing m" in service_row(state, time.time()).detail
    write_status(state, pid=gone.pid, doing="stopped")
    assert service_row(state, time.time()).state == "ok"
    for text in ("", "[]", "{}", '{"server": 1}'):
        (state / "status.json").write_text(text)
        assert service_row(state).state == "warn"


def test_little_memory_and_a_state_folder_that_is_not_ours(tmp_path: Path, trtexec: Path) -> None:
    made = board(tmp_path)
    made.memory(64 * 2**20, 2**19)
    (tmp_path / "file").touch()
    report = examine(None, tmp_path / "file" / "state", root=made.root)
    found = states(report)
    assert (found["memory"], found["state folder"]) == ("warn", "missing")
    assert not report.ready


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jetson_agent", "doctor", *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_command_prints_rows_or_one_object_and_ends_by_what_is_missing(
    tmp_path: Path, trtexec: Path
) -> None:
    made = board(tmp_path)
    done = run("--offline", **made.environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "ready"
    assert any(line.startswith("ok       clocks ") for line in lines)
    made.remove("dev/nvmap")
    for name in NODES[1:]:
        made.remove(f"dev/{name}")
    done = run("--offline", "--json", **made.environment)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["ready"] is False
    assert [r["check"] for r in found["rows"] if r["state"] == "missing"] == ["GPU"]
    assert found["board"]["power_modes"][2]["name"] == "MODE_30W"


# A server as docs/jetson.md has it: who is logged in reads, and nobody else does.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("guarded")
    settings = folder / "basic_auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/users.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        **{k: v for k, v in os.environ.items() if k not in (USERNAME, PASSWORD)},
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs forms",
    }
    with mlflow_server(folder, ["--app-name=basic-auth"], environment) as uri:
        import requests

        made = requests.post(
            f"{uri}/api/2.0/mlflow/users/create",
            json={"username": BOARD[0], "password": BOARD[1]},
            auth=ADMIN,
            timeout=60,
        )
        assert made.ok, made.text
        yield uri


@pytest.fixture
def login(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(user: str, password: str) -> Path:
        path = tmp_path / f"login-{user}"
        path.write_text(f"username={user}\npassword={password}\n")
        path.chmod(0o600)
        return path

    return write


@pytest.mark.slow
def test_a_server_with_a_login_says_who_is_let_in_and_which_modes_have_figures(
    guarded: str, tmp_path: Path, trtexec: Path, login: Callable[[str, str], Path]
) -> None:
    made = board(tmp_path)
    words = ("--tracking-uri", guarded, "--json")
    nobody = run(*words, **made.environment)
    assert nobody.returncode == 1
    found = {r["check"]: r for r in json.loads(nobody.stdout)["rows"]}
    assert "(401)" in found["server"]["detail"]
    assert "--credentials" in found["server"]["mend"]
    # Any answer tells the time, a refusal too.
    assert found["clock"]["detail"].endswith("as the server's")

    good = login(*BOARD)
    first = run(*words, "--credentials", good, **made.environment)
    assert first.returncode == 0, first.stdout + first.stderr
    told = json.loads(first.stdout)
    found = {r["check"]: r for r in told["rows"]}
    assert found["server"]["detail"].startswith(f"{guarded} answers, 0 versions")
    assert "none yet in MAXN, MODE_15W, MODE_30W, MODE_50W" in found["figures by mode"]["detail"]

    report_figure(guarded, good, replace(RESULT, device=told["device"]["name"], mode="MAXN-pinned"))
    second = run(*words, "--credentials", good, **made.environment)
    found = {r["check"]: r for r in json.loads(second.stdout)["rows"]}
    told_modes = found["figures by mode"]["detail"]
    assert told_modes == "none yet in MODE_15W, MODE_30W, MODE_50W (there are some in MAXN-pinned)"
    for done in (nobody, first, second):
        assert BOARD[1] not in done.stdout + done.stderr


def report_figure(uri: str, credentials: Path, result: BenchResult) -> None:
    """As the board's own user, in a process of its own: the login goes by the environment."""
    code = (
        "import sys; from pathlib import Path\n"
        "from jetson_agent.credentials import find_server\n"
        "from jetson_agent.protocol import BenchResult\n"
        "from jetson_agent.registry_mlflow import MlflowRegistry\n"
        "server = find_server(sys.argv[1], credentials_file=Path(sys.argv[2]))\n"
        "MlflowRegistry(server).report(BenchResult.from_json(sys.stdin.read()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, uri, str(credentials)],
        input=result.to_json(),
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_server_that_is_not_there_is_told_with_what_to_do(tmp_path: Path, trtexec: Path) -> None:
    made = board(tmp_path)
    done = run("--tracking-uri", "http://127.0.0.1:9", "--json", **made.environment)
    assert done.returncode == 1
    found = {r["check"]: r for r in json.loads(done.stdout)["rows"]}
    assert "no MLflow server answers at http://127.0.0.1:9" in found["server"]["detail"]
    assert "curl" in found["server"]["mend"]
