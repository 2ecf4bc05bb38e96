"""Starts a private Ray or joins a cluster, says what machines there are, and leaves nothing behind.

A private Ray dies with its driver, also by ``kill -9``: Ray's own processes watch for that. What
then stays is its folder of sockets and logs. So each session is recorded beside the runs, and the
next one removes what the dead left, processes included should any have survived.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharedenc.errors import SpecError
from sharedenc.training.allocator import ENVIRONMENT as ALLOCATOR
from sweeps.order import Machine
from sweeps.resources import local_machine

MIB = 2**20
OBJECT_STORE_BYTES = 128 * MIB

# Ray reads these when it is imported. Its own progress, loggers, metrics files, experiment
# snapshots and signal handler would be in our way.
RAY_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Its monitor's kill ends all of Tune, while the kernel's ends one worker, which is one row.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}

# How long a node may take to answer, and how long one that did not is given no trial.
ANSWER_S, SILENT_S = 3.0, 60.0
# A trial that was cut writes its last words before its process takes the next trial.
LAST_WORDS_S = 120


@dataclass
class RaySession:
    """This process's connection to Ray; one that it had before is used and left as it is.

    Args:
        records: Folder in which private sessions are recorded while they run.
        threads: Threads of one trial, for the libraries that read them from the environment.
        address: A Ray cluster to join; None starts a private Ray on this machine.
        cpus, memory_gib, gpus: Limits of this machine that differ from what it has.
    """

    records: Path
    threads: int = 1
    address: str | None = None
    cpus: float | None = None
    memory_gib: float | None = None
    gpus: float | None = None
    _scratch: Path | None = None
    _record: Path | None = None
    _joined: bool = False
    _private: list[Machine] = field(default_factory=list)
    _silent: dict[str, float] = field(default_factory=dict)

    def open(self) -> None:
        """Start or join Ray.

        Raises:
            SpecError: the cluster cannot be joined.
        """
        os.environ.update({k: v for k, v in RAY_SETTINGS.items() if k not in os.environ})
        import ray

        _silence()
        if ray.is_initialized():
            return
        self._joined = True
        with _own_sigterm():
            if self.address is None:
                self._start(ray)
            else:
                self._join(ray, self.address)

    def machines(self) -> list[Machine]:
        """What each living machine offers; those that are being drained are left out."""
        if self._private:
            return list(self._private)
        now = time.monotonic()
        self._silent = {name: until for name, until in self._silent.items() if until > now}
        leaving = self.draining() | set(self._silent)
        return [
            machine(node["Resources"], node["NodeID"])
            for node in _living()
            if node["NodeID"] not in leaving
        ]

    def draining(self) -> set[str]:
        """Ids of nodes that are about to be taken away."""
        if self._private:
            return set()
        from ray._private.state import state

        return set(state.get_draining_nodes())

    @property
    def private(self) -> bool:
        """Whether this process started this Ray for itself, on this machine."""
        return bool(self._private)

    def is_gone(self, name: str) -> bool:
        """Whether a machine has left the cluster, even where Ray has not noticed it yet.

        Ray misses a node after some fifteen seconds, its workers are gone after five: so the
        node's own port is tried. One that does not answer is left out for a while.
        """
        if self._private or not name or name == self.node:
            return False
        node = next((node for node in _living() if node["NodeID"] == name), None)
        if node is None:
            return True
        try:
            place = (node["NodeManagerAddress"], node["NodeManagerPort"])
            socket.create_connection(place, timeout=ANSWER_S).close()
        except OSError:
            self._silent[name] = time.monotonic() + SILENT_S
            return True
        return False

    @property
    def node(self) -> str:
        """The id of the node that the driver runs on."""
        import ray

        return "" if self._private else str(ray.get_runtime_context().get_node_id())

    def close(self) -> None:
        """Shut a private Ray down with all its processes, or leave the cluster."""
        if self._joined:
            import ray

            ray.shutdown()
            self._joined = False
            self._private = []
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        if self._record is not None:
            self._record.unlink(missing_ok=True)
            self._record = None

    def _start(self, ray: Any) -> None:
        clean_up(self.records)
        whole = local_machine(self.cpus, self.memory_gib)
        gpus = whole.gpus if self.gpus is None else self.gpus
        self._scratch = _short_folder()
        self._write_record([])
        ray.init(
            address="local",
            num_cpus=int(whole.cpus),
            num_gpus=int(gpus),
            _memory=whole.memory,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _temp_dir=str(self._scratch),
            **self._settings(),
        )
        self._write_record(_children())
        self._private = [Machine(cpus=whole.cpus, gpus=gpus, memory=whole.memory)]

    def _join(self, ray: Any, address: str) -> None:
        try:
            ray.init(address=address, **self._settings())
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SpecError(
                f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`, or "
                "leave out --address and RAY_ADDRESS. Ray asks for a token: RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN must be the same here as on the cluster"
            ) from None

    def _settings(self) -> dict[str, Any]:
        return {
            "log_to_driver": False,
            "logging_level": "ERROR",
            # Credentials are never put here: Ray stores and shows a runtime environment. A
            # private Ray's workers inherit them, a cluster's have those of their node.
            "runtime_env": {"env_vars": worker_environment(self.threads)},
        }

    def _write_record(self, pids: list[int]) -> None:
        self.records.mkdir(parents=True, exist_ok=True)
        self._record = self.records / f"ray-{os.getpid()}.json"
        processes = {str(pid): _birth(pid) for pid in [os.getpid(), *pids]}
        self._record.write_text(
            json.dumps(
                {"driver": os.getpid(), "processes": processes, "folder": str(self._scratch)}
            )
        )


def worker_environment(threads: int) -> dict[str, str]:
    """What every worker finds in its environment, whatever its node has."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **RAY_SETTINGS,
        **dict.fromkeys(names, str(threads)),
        **ALLOCATOR,
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": str(LAST_WORDS_S),
    }


def machine(resources: dict[str, float], name: str = "") -> Machine:
    """A machine by what Ray says of a node."""
    return Machine(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory=int(resources.get("memory", 0)),
        id=name,
    )


def clean_up(records: Path) -> None:
    """Remove what sessions whose driver is dead have left."""
    for path in records.glob("ray-*.json") if records.is_dir() else ():
        try:
            record = json.loads(path.read_text())
            driver, processes = str(record["driver"]), dict(record["processes"])
            folder = Path(record["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            continue
        if _birth(int(driver)) == processes.pop(driver):
            continue
        for pid, birth in processes.items():
            if birth is not None and _birth(int(pid)) == birth:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(pid), signal.SIGKILL)
        if folder.name.startswith("ray-"):
            shutil.rmtree(folder, ignore_errors=True)
        path.unlink(missing_ok=True)


def _children() -> list[int]:
    """All processes that descend from this one."""
    import psutil

    return [process.pid for process in psutil.Process().children(recursive=True)]


def _birth(pid: int) -> float | None:
    """When a process was started, in seconds since 1970; None when there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        return None if dead else float(process.create_time())
    except psutil.Error:
        return None


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own in place of the caller's."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, before)


def _living() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _short_folder() -> Path:
    """A temporary folder short enough for the sockets that Ray makes in it (107 bytes)."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="ray-", dir=base if len(base) < 30 else "/tmp"))


def _silence() -> None:
    """Keep Ray's remarks out of our progress and off standard output; failures become rows."""
    import ray._private.worker

    for name in ("ray", "ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Without this, deaths of workers are printed on standard output whatever `log_to_driver` says.
    ray._private.worker._worker_logs_enabled = False
