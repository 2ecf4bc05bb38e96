from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jetson_agent.proc import STARTED, Finished, child_environment, run_child, run_tool


def run(
    code: str,
    tmp_path: Path,
    *,
    deadline_s: float = 120,
    stopping: threading.Event | None = None,
) -> Finished:
    return run_child(
        [sys.executable, "-c", code],
        deadline_s=deadline_s,
        stopping=stopping or threading.Event(),
        log=tmp_path / "log",
        environment=child_environment(),
    )


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_both_streams_are_kept_and_the_exit_code_told(tmp_path: Path) -> None:
    finished = run("import sys; print('out', flush=True); sys.exit('err')", tmp_path)
    assert finished.tail == "out\nerr"
    assert finished.describe == "ended with exit code 1"
    assert not finished.timed_out


def test_only_the_end_of_a_long_log_is_kept(tmp_path: Path) -> None:
    assert run("print('x' * 100_000 + 'end')", tmp_path).tail.endswith("xend")
    assert len(run("print('x' * 100_000)", tmp_path).tail) <= 4000


def test_a_child_that_does_not_end_is_ended_after_its_deadline(tmp_path: Path) -> None:
    finished = run("import time; time.sleep(600)", tmp_path, deadline_s=0.2)
    assert finished.timed_out
    assert finished.describe == "was ended by SIGTERM"


def test_a_child_that_ignores_the_signal_and_its_own_child_are_gone_after_a_stop(
    tmp_path: Path,
) -> None:
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'part')!r}, 'w').write(str(child.pid))\n"
        f"os.rename({str(tmp_path / 'part')!r}, {str(tmp_path / 'pid')!r})\n"
        "time.sleep(600)\n"
    )
    stopping = threading.Event()

    def stop_once_it_runs() -> None:
        end = time.monotonic() + 120
        while not (tmp_path / "pid").exists() and time.monotonic() < end:
            time.sleep(0.02)
        stopping.set()

    watcher = threading.Thread(target=stop_once_it_runs)
    watcher.start()
    finished = run(code, tmp_path, stopping=stopping)
    watcher.join()
    assert finished.stopped
    assert finished.describe == "was ended by SIGKILL"
    grandchild = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 30
    while is_running(grandchild) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(grandchild)


def test_a_stop_ends_the_child_at_once(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    finished = run("import time; time.sleep(600)", tmp_path, stopping=stopping)
    assert finished.stopped
    assert not finished.timed_out


def test_a_child_does_not_see_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "secret" not in child_environment().values()
    assert child_environment()["PATH"] == os.environ["PATH"]


def test_the_start_of_the_work_is_told_once_while_it_runs(tmp_path: Path) -> None:
    told: list[bool] = []
    go = tmp_path / "go"
    code = (
        "import os, sys, time\n"
        f"print('before'); print({STARTED!r}, flush=True); print({STARTED!r}, flush=True)\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
    )

    def note() -> None:
        told.append(True)
        go.touch()

    finished = run_child(
        [sys.executable, "-c", code],
        deadline_s=120,
        stopping=threading.Event(),
        log=tmp_path / "log",
        environment=child_environment(),
        on_start=note,
    )
    assert told == [True]
    assert not finished.timed_out
    assert finished.tail == f"before\n{STARTED}\n{STARTED}"


@pytest.mark.parametrize("ignore", [False, True])
def test_a_tool_that_does_not_end_is_ended_after_its_deadline(tmp_path: Path, ignore: bool) -> None:
    prefix = "trap '' TERM; " if ignore else ""
    finished = run_tool(
        ["/bin/sh", "-c", f"{prefix}echo out; echo err >&2; exec sleep 600"],
        # Long enough for a shell to come to its `exec` on a machine that is busy.
        deadline_s=3.0,
        log=tmp_path / "log",
    )
    assert finished.timed_out
    assert finished.tail == "out\nerr"
    assert finished.describe == f"was ended by {'SIGKILL' if ignore else 'SIGTERM'}"


def test_a_tool_is_in_the_group_of_who_started_it_and_dies_with_it(tmp_path: Path) -> None:
    script = "echo $$ >{part}; mv {part} {pid}; exec sleep 600"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from jetson_agent.proc import run_tool\n"
        "script, log = sys.argv[1:]\n"
        "run_tool(['/bin/sh', '-c', script], deadline_s=600, log=Path(log))\n"
    )
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen(
        [
            *(sys.executable, "-c", code),
            script.format(part=tmp_path / "part", pid=pid_file),
            str(tmp_path / "log"),
        ],
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while not pid_file.exists() and time.monotonic() < end:
            time.sleep(0.02)
        tool = int(pid_file.read_text())
        assert os.getpgid(tool) == parent.pid
        parent.kill()
        parent.wait()
        while is_running(tool) and time.monotonic() < end:
            time.sleep(0.02)
        assert not is_running(tool)
    finally:
        parent.kill()
        parent.wait()
