"""Real services for tests, each as a context manager that ends what it started, by pid.

Everything listens on 127.0.0.1, on ports that were free a moment ago.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

HOST = "127.0.0.1"
START_S = 180.0
STOP_S = 20.0
BIN = Path(sys.executable).parent

Environment = Mapping[str, str]


_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, none of them twice while the tests run."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            one = held.enter_context(socket.socket())
            one.bind((HOST, 0))
            port = int(one.getsockname()[1])
            if port not in _given:
                _given.add(port)
                found.append(port)
    return found


def await_true(what: str, happens: Callable[[], bool], wait_s: float = START_S) -> None:
    """Poll until ``happens()``; AssertionError that names ``what`` when it never does."""
    deadline = time.monotonic() + wait_s
    while not happens():
        assert time.monotonic() < deadline, f"{what}: not within {wait_s:.0f} s"
        time.sleep(0.2)


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, environment: Environment | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service in a session of its own; at the end stop it and all that came from it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, some patience, then SIGKILL for the process and all its descendants."""
    family = descendants(process.pid)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    for one in [*family, *descendants(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_S)
    psutil.wait_procs(family, timeout=STOP_S)


def descendants(pid: int) -> list[psutil.Process]:
    """Return the live children of a process, and theirs."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as answer:
        answer.close()
        return True
    except OSError:
        return False


def _up(process: subprocess.Popen[bytes], log: Path, url: str) -> None:
    def up() -> bool:
        assert process.poll() is None, f"ended at once:\n{log.read_text()[-3000:]}"
        return _answers(url)

    await_true(f"{url} answers", up)


@contextlib.contextmanager
def mlflow_server(
    folder: Path, options: Sequence[str] = (), environment: Environment | None = None
) -> Iterator[str]:
    """Give the address of a tracking server; SQLite and artifacts in ``folder`` by default.

    Args:
        folder: For its log, and for its store unless ``options`` names another.
        options: More options of ``mlflow server``; what stands here wins.
        environment: The whole environment; this process's own by default.
    """
    (port,) = free_ports(1)
    command = [str(BIN / "mlflow"), "server", f"--host={HOST}", f"--port={port}"]
    given = {option.split("=")[0] for option in options}
    defaults = {
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": str(folder / "artifacts"),
    }
    command += [f"{name}={value}" for name, value in defaults.items() if name not in given]
    log = folder / "mlflow-server.log"
    # Its job runners are ten processes that a tracking server does not need.
    quiet = {**(environment or os.environ), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running([*command, *options], log, quiet) as process:
        _up(process, log, f"http://{HOST}:{port}/health")
        yield f"http://{HOST}:{port}"


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Give the address of an S3 server (moto, in memory) with any credentials."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    log = folder / "s3-server.log"
    with running(command, log) as process:
        _up(process, log, f"http://{HOST}:{port}/moto-api/")
        yield f"http://{HOST}:{port}"


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server with the database ``mlflow`` of the user ``mlflow``."""

    port: int
    password: str

    @property
    def uri(self) -> str:
        """Without the password, which libpq reads from PGPASSWORD."""
        return f"postgresql+psycopg2://mlflow@{HOST}:{self.port}/mlflow"


def postgres_programs() -> Path:
    """Return the folder of the newest PostgreSQL of Debian's package; skips without one."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4])
    )
    if not found:
        pytest.skip("PostgreSQL is not installed (make ci-packages)")
    return found[-1].parent


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Run a PostgreSQL of its own in a temporary folder, as an unprivileged user."""
    programs = postgres_programs()
    # PostgreSQL refuses to run as root, and its user may not read pytest's folders.
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    prefix = as_user if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="se-pg-"))
    (port,) = free_ports(1)
    password = secrets.token_hex(8)
    try:
        (folder / "password").write_text(password)
        if prefix:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        data = folder / "data"
        init = [*prefix, str(programs / "initdb"), f"--pgdata={data}", "--username=mlflow"]
        init += ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
        init += ["--encoding=UTF8", "--locale=C"]
        made = subprocess.run(init, capture_output=True, text=True, cwd=folder)
        assert made.returncode == 0, made.stderr
        command = [*prefix, str(programs / "postgres"), "-D", str(data), "-k", str(folder)]
        command += ["-h", HOST, "-p", str(port), "-c", "fsync=off"]
        log = folder / "postgres.log"
        server = Postgres(port, password)
        with running(command, log) as process:

            def ready() -> bool:
                assert process.poll() is None, log.read_text()[-3000:]
                return _psql(programs, server, "SELECT 1").returncode == 0

            await_true("PostgreSQL answers", ready)
            assert _psql(programs, server, "CREATE DATABASE mlflow").returncode == 0
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _psql(programs: Path, server: Postgres, query: str) -> subprocess.CompletedProcess[str]:
    command = [str(programs / "psql"), "-h", HOST, "-p", str(server.port), "-U", "mlflow"]
    return subprocess.run(
        [*command, "-d", "postgres", "-c", query],
        capture_output=True,
        text=True,
        env={**os.environ, "PGPASSWORD": server.password},
    )


@dataclass
class RayNode:
    """One `ray start --block` and what came from it."""

    process: subprocess.Popen[bytes]
    temp_dir: Path
    drain_file: Path

    @property
    def raylet(self) -> psutil.Process | None:
        """The node's raylet, while it lives."""
        for one in descendants(self.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if one.name() == "raylet" and one.status() != psutil.STATUS_ZOMBIE:
                    return one
        return None

    def trials(self) -> list[psutil.Process]:
        """The processes of this node that train now."""
        found = []
        for one in descendants(self.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                # Tune's actor classes: with resources a subclass, which gives it another name.
                if re.match(r"ray::(ImplicitFunc|ResourceTrainable)", " ".join(one.cmdline())):
                    found.append(one)
        return found

    def kill(self) -> None:
        """What a power cut does to a node: everything of it is gone, nothing is told."""
        family = descendants(self.process.pid)
        for one in [*family, psutil.Process(self.process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait(STOP_S)


@dataclass
class RayCluster:
    """A running cluster; the first node is the head.

    Attributes:
        environment: What a client of it needs (the token among it), on top of os.environ.
    """

    address: str
    environment: dict[str, str]
    nodes: list[RayNode]


HEAD_COMMAND = "ray start --head --port=6379 --node-ip-address=HEAD"
WORKER_COMMAND = "ray start --address=HEAD:6379"
"""What docs/deploying.md says; a test compares."""


@contextlib.contextmanager
def ray_cluster(
    nodes: int = 2,
    *,
    cpus: int = 1,
    environment: Environment | None = None,
    options: Sequence[str] = (),
) -> Iterator[RayCluster]:
    """Start a Ray cluster of ``nodes`` raylets on this machine, with token authentication.

    The commands are those of docs/deploying.md. What is added is what several nodes on one machine
    need: ports and a temporary folder of their own, and a drain file each.

    Args:
        cpus: Of each node.
        environment: More variables for every node (a tracking server's address, say).
        options: More options of every `ray start`.
    """
    # Ray's sockets must have short names, so not below pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="se-ray-"))
    (port,) = free_ports(1)
    secret = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    common = {**os.environ, **secret, **(environment or {})}
    cluster = RayCluster(f"{HOST}:{port}", secret, [])
    with contextlib.ExitStack() as started:
        started.callback(shutil.rmtree, folder, ignore_errors=True)
        for number in range(nodes):
            text = (HEAD_COMMAND if number == 0 else WORKER_COMMAND).replace("HEAD", HOST)
            command = [word.replace("6379", str(port)) for word in text.split()]
            command = [str(BIN / "ray"), *command[1:], "--block", f"--num-cpus={cpus}"]
            temp_dir, drain = folder / f"n{number}", folder / f"drain-{number}"
            command += [*_own_ports(), f"--temp-dir={temp_dir}", *options]
            if number == 0:
                command += ["--include-dashboard=false"]
            own = {**common, "SHAREDENC_DRAIN_FILE": str(drain)}
            log = folder / f"ray-start-{number}.log"
            process = started.enter_context(running(command, log, own))
            cluster.nodes.append(RayNode(process, temp_dir, drain))

            def joined(process: subprocess.Popen[bytes] = process, log: Path = log) -> bool:
                assert process.poll() is None, f"ray start ended:\n{log.read_text()[-3000:]}"
                return "Ray runtime started" in log.read_text()

            await_true(f"node {number} of Ray is up", joined)
        yield cluster


def _own_ports() -> list[str]:
    names = ["node-manager", "object-manager", "dashboard-agent-listen", "dashboard-agent-grpc"]
    names += ["runtime-env-agent", "metrics-export"]
    ports = [f"--{name}-port={port}" for name, port in zip(names, free_ports(6), strict=True)]
    workers = ",".join(map(str, free_ports(24)))
    return [*ports, f"--worker-port-list={workers}", "--object-store-memory=80000000"]
