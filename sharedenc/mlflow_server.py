"""The MLflow server that a study writes to: the user's, or a private one beside the runs.

The private server is shared by all processes that use one runs folder, since two servers must
never open one SQLite file: the first starts it, others join it, the last to leave stops it. Who
uses it is counted with a shared file lock, which the kernel gives back whatever becomes of a user.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sharedenc.errors import TrackingError
from sharedenc.tracking import check_server

START_S = 180.0
"""Longest wait for a server to come up; it takes about six seconds on a quiet machine."""
JOIN_S, STOP_S = 60.0, 10.0
REVIVE_S = 15.0
"""Shortest time between two attempts to start a dead server again."""
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """A server that answers. ``pid`` leads its process group; None for one that is not ours.

    ``root`` is a private server's runs folder.
    """

    uri: str
    pid: int | None
    root: Path | None = field(default=None, compare=False)
    _tried: list[float] = field(default_factory=list, compare=False, repr=False)

    def revive(self) -> bool:
        """Start a private server that has died again, on its port; True when that was done.

        Cheap enough for every beat of a driver. It does not wait until the server answers:
        whoever talks to it tries again anyway.
        """
        if self.root is None or (self._tried and time.monotonic() - self._tried[-1] < REVIVE_S):
            return False
        pid = _known(self.root).get("pid")
        if pid is not None and _is_mlflow(pid):
            return False
        self._tried.append(time.monotonic())
        with _locked(self.root):
            pid = _known(self.root).get("pid")
            if pid is not None and _is_mlflow(pid):
                return False
            if pid is not None:
                _clear_orphans(pid)
            port = int(self.uri.rpartition(":")[2])
            if not _is_free(port):
                return False
            pid = _spawn(self.root, port)
            _write_state(self.root, pid, port)
        return True


@contextlib.contextmanager
def serve(root: Path, port: int | None = None) -> Iterator[Server]:
    """Give a running MLflow server while the block runs.

    Args:
        root: The runs folder; a private server keeps ``mlflow.db``, ``artifacts/`` and its log in
            it. Not touched when ``MLFLOW_TRACKING_URI`` names a server.
        port: For a private server that this call starts; any free one by default.

    Raises:
        TrackingError: the named server does not answer, the port is in use, or a private server
            did not start (with the end of its log).
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        check_server(named)
        yield Server(named, None)
        return
    root = root.resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(f"the runs folder {root} cannot be made: {error}") from error
    with open(root / ".mlflow-users", "w") as users:
        with _locked(root):
            # Others may still talk to one that has just died, and expect it back on its port.
            last = _known(root).get("port")
            server = _running(root) or _start(root, port, prefer=last)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield server
        finally:
            with _locked(root):
                fcntl.flock(users, fcntl.LOCK_UN)
                if _is_last(users.fileno()):
                    _stop(root)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Let one process at a time start, join or stop the server of ``root``."""
    with open(root / ".mlflow-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_last(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _state_file(root: Path) -> Path:
    return root / "mlflow-server.json"


def _log_file(root: Path) -> Path:
    return root / "mlflow-server.log"


def _write_state(root: Path, pid: int, port: int) -> None:
    """Name the server; a reader sees the old state or the new one."""
    part = _state_file(root).with_suffix(".part")
    part.write_text(json.dumps({"pid": pid, "port": port}))
    os.replace(part, _state_file(root))


def _known(root: Path) -> dict[str, int]:
    """``pid`` and ``port`` of the server that the state file names; empty when it names none."""
    try:
        state = json.loads(_state_file(root).read_text())
        return {"pid": int(state["pid"]), "port": int(state["port"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _clear_orphans(pid: int) -> None:
    """End what a dead server left behind, so that its port is free again.

    As long as no process has the number, those of its group are its own.
    """
    _reap(pid)
    if not Path(f"/proc/{pid}").exists() and _group_lives(pid):
        _end_group(pid)


def _running(root: Path) -> Server | None:
    """Return the live server that ``root``'s state file names; clean up after a dead one."""
    path = _state_file(root)
    state = _known(root)
    if not state:
        path.unlink(missing_ok=True)
        return None
    pid, port = state["pid"], state["port"]
    if _is_mlflow(pid):
        with contextlib.suppress(TrackingError):
            _await_health(root, pid, port, JOIN_S)
            return Server(f"http://{HOST}:{port}", pid, root)
        _end_group(pid)
    else:
        _clear_orphans(pid)
    path.unlink(missing_ok=True)
    return None


def _is_mlflow(pid: int) -> bool:
    """Whether the process lives and is a server of ours, not a later owner of the number."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"mlflow" in words and b"server" in words


def _start(root: Path, port: int | None, *, prefer: int | None = None) -> Server:
    if port is not None and not _is_free(port):
        raise TrackingError(f"port {port} is in use. Give another --port, or none for a free one.")
    for attempt in range(3):
        again = prefer if prefer and attempt == 0 and _is_free(prefer) else None
        chosen = port or again or free_port()
        pid = _spawn(root, chosen)
        _write_state(root, pid, chosen)
        try:
            _await_health(root, pid, chosen, START_S)
        except BaseException as error:
            lost_race = isinstance(error, TrackingError) and not _is_mlflow(pid)
            _end_group(pid)
            _state_file(root).unlink(missing_ok=True)
            # Another program may have taken the free port meanwhile; then another one will do.
            if lost_race and port is None and attempt < 2 and not _is_free(chosen):
                continue
            raise
        return Server(f"http://{HOST}:{chosen}", pid, root)
    raise AssertionError("the last attempt returns or raises")


def _spawn(root: Path, port: int) -> int:
    """Start the server in a session of its own: Ctrl-C must not stop it before the last write."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(root / "artifacts")]
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    env |= {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        sys.executable,
        command,
        env,
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(_log_file(root)), log_flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    # The kernel shows an empty command line for a moment after it has returned from the spawn.
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline and not _is_mlflow(pid):
        _reap(pid)
        time.sleep(0.01)
    return pid


def _await_health(root: Path, pid: int, port: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        _reap(pid)
        if not _is_mlflow(pid):
            break
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5.0):
                return
        except OSError:
            time.sleep(0.1)
    try:
        log_end = _log_file(root).read_text(errors="replace")[-1500:]
    except OSError:
        log_end = "(none)"
    raise TrackingError(
        f"the private MLflow server of {root} did not come up on port {port}. Its log "
        f"({_log_file(root)}) ends with:\n{log_end}"
    )


def _stop(root: Path) -> None:
    path = _state_file(root)
    with contextlib.suppress(OSError, ValueError, KeyError):
        pid = int(json.loads(path.read_text())["pid"])
        if _is_mlflow(pid):
            _end_group(pid)
    path.unlink(missing_ok=True)


def _end_group(pid: int) -> None:
    """End a server and its workers, kindly first; returns when all of them are gone."""
    for number, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            _reap(pid)
            if not _group_lives(pid):
                return
            time.sleep(0.05)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # somebody else's child
        os.waitpid(pid, os.WNOHANG)


def _group_lives(group: int) -> bool:
    """Whether a process of the group runs; zombies, which wait for their parent, do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        state, process_group = fields[0], int(fields[2])
        if process_group == group and state != "Z":
            return True
    return False


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
