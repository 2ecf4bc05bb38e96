"""Launchers: the one file that starts Ray and builds a `tune.Tuner`, and its in-process twin."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sharedenc.errors import SpecError
from sweeps.order import Machine
from sweeps.resources import local_machine
from sweeps.state import Row, SweepState
from sweeps.worker import Execute, execute, make_trainable

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

# A trial that was cut writes its last words before its process takes the next trial.
LAST_WORDS_S = 120


class Launcher(Protocol):
    """Runs the trials of a `SweepState` until it is finished."""

    def machines(self) -> list[Machine]:
        """What there is to run on; the launcher is open from here on."""

    def run(
        self,
        state: SweepState,
        payload: Callable[[Row], dict[str, Any]],
        beat: Callable[[], None],
    ) -> None:
        """Run everything. ``payload`` makes a started row's input, ``beat`` is called often."""

    def close(self) -> None:
        """Stop what still runs and leave no process behind."""


@dataclass
class LocalLauncher:
    """One trial after the other in this process: for tests, debugging and machines without Ray."""

    run_trial: Execute = execute

    def machines(self) -> list[Machine]:
        """One slot, whatever a trial asks for."""
        whole = local_machine()
        return [Machine(cpus=whole.cpus, gpus=whole.gpus, memory=whole.memory)]

    def run(
        self,
        state: SweepState,
        payload: Callable[[Row], dict[str, Any]],
        beat: Callable[[], None],
    ) -> None:
        """Run every trial to its end before the next one starts."""
        while not state.finished:
            row = state.next()
            if row is None:
                raise SpecError("no trial can start, although some wait; this is a bug")
            name = row.node.id

            def on_report(report: dict[str, Any], name: str = name) -> bool:
                cut = state.epoch(name, report["epoch"], report["score"])
                beat()
                return cut

            state.end(name, self.run_trial(payload(row), on_report))
            beat()

    def close(self) -> None:
        """Nothing was started."""


@dataclass
class RayLauncher:
    """Ray Tune on this machine, or on the cluster at ``address``.

    A Ray that this process has joined already is used as it is, and left running.

    Args:
        storage: A folder of this launcher's own for Tune's (few) files; removed at the end.
        threads: Threads of one trial, for the libraries that read them from the environment.
        address: A Ray cluster to join; None starts a private Ray on this machine.
        cpus, memory_gib: Limits of this machine that differ from what it has.
        run_trial: What a worker does for one trial.
    """

    storage: Path
    threads: int = 1
    address: str | None = None
    cpus: float | None = None
    memory_gib: float | None = None
    run_trial: Execute = execute
    _scratch: Path | None = None
    _joined: bool = False

    def machines(self) -> list[Machine]:
        """Start or join Ray and read off its nodes.

        Raises:
            SpecError: the cluster cannot be joined.
        """
        os.environ.update({k: v for k, v in RAY_SETTINGS.items() if k not in os.environ})
        import ray

        _silence()
        if ray.is_initialized():
            return _nodes()
        self._joined = True
        # Ray puts a handler of its own in place of the caller's.
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            return self._join(ray)
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)

    def _join(self, ray: Any) -> list[Machine]:
        settings: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "ERROR",
            "runtime_env": {"env_vars": self._worker_environment()},
        }
        if self.address is not None:
            try:
                ray.init(address=self.address, **settings)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise SpecError(
                    f"no Ray cluster at {self.address!r} ({error}); start one with "
                    "`ray start --head`, or leave out --address and RAY_ADDRESS"
                ) from None
            return _nodes()
        machine = local_machine(self.cpus, self.memory_gib)
        self._scratch = _short_folder()
        ray.init(
            address="local",
            num_cpus=int(machine.cpus),
            num_gpus=int(machine.gpus),
            _memory=machine.memory,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _temp_dir=str(self._scratch),
            **settings,
        )
        return [machine]

    def _worker_environment(self) -> dict[str, str]:
        threads = {
            name: str(self.threads)
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        return {**RAY_SETTINGS, **threads, "TUNE_FUNCTION_THREAD_TIMEOUT_S": str(LAST_WORDS_S)}

    def run(
        self,
        state: SweepState,
        payload: Callable[[Row], dict[str, Any]],
        beat: Callable[[], None],
    ) -> None:
        """Run the whole graph with one Tuner; another one takes over should Tune itself fail."""
        from sweeps.searcher import failure

        self.storage.mkdir(parents=True, exist_ok=True)
        while not state.finished:
            try:
                self._fit(state, payload, beat)
                return
            except RuntimeError as error:
                lost = state.running
                if not lost:
                    raise
                for row in lost:
                    state.end(row.node.id, failure(f"{error}\n{traceback.format_exc()}"))

    def _fit(
        self,
        state: SweepState,
        payload: Callable[[Row], dict[str, Any]],
        beat: Callable[[], None],
    ) -> None:
        from ray import tune

        from sweeps.searcher import BracketScheduler, GraphSearcher, Watcher

        tuner = tune.Tuner(
            tune.with_resources(make_trainable(self.run_trial), _placement),
            tune_config=tune.TuneConfig(
                search_alg=GraphSearcher(state, payload),
                scheduler=BracketScheduler(state),
                num_samples=len(state.rows),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.storage.resolve()),
                callbacks=[Watcher(state, beat)],
                progress_reporter=_Silent(),
                verbose=0,
            ),
        )
        tuner.fit()

    def close(self) -> None:
        """Shut a private Ray down with all its processes, or leave the cluster."""
        if self._joined:
            import ray

            ray.shutdown()
            self._joined = False
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        shutil.rmtree(self.storage, ignore_errors=True)


class _Silent:
    """A progress reporter of Tune that reports nothing; ours reads `SweepState`."""

    def setup(self, **info: Any) -> None: ...

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: Any) -> None: ...


def _placement(config: dict[str, Any]) -> Any:
    from ray import tune

    bundle = {"CPU": config["cpus"], "memory": config["memory"]}
    if config["gpus"]:
        bundle["GPU"] = config["gpus"]
    return tune.PlacementGroupFactory([bundle])


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _nodes() -> list[Machine]:
    import ray

    return [_machine(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _machine(resources: dict[str, float]) -> Machine:
    return Machine(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory=int(resources.get("memory", 0)),
    )


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
