"""What runs in a worker process: one trial, from plain values to plain values.

A payload is a dict of JSON values (see `sweeps.payload`), so that nothing but this package
has to exist in the worker when Ray unpickles it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.stopping import PREEMPTED, Stop, save_on_sigterm

if TYPE_CHECKING:
    from sharedenc.tracking import Tracker
    from sharedenc.training.run import EpochReport, TrialJob

OnReport = Callable[[dict[str, Any]], bool]
AskStop = Callable[[], str]
Execute = Callable[[dict[str, Any], OnReport, AskStop], dict[str, Any]]

BEST = "best.safetensors"
# How long a trial waits for a server that is away before it can start.
SERVER_WAIT_S = 300.0


def execute(payload: dict[str, Any], on_report: OnReport, stop: AskStop) -> dict[str, Any]:
    """Train one trial and say how it ended; never raises an `Exception`.

    Args:
        payload: The trial, its places and the run that records it.
        on_report: Gets ``{epoch, epochs, score, rank, seconds, images_per_s}`` after each epoch;
            True means that the trial is to stop now.
        stop: Asked before each step: a reason to save and end, or an empty string.

    Returns:
        ``{state, kind, error, reason, traceback, result, epochs_done, peak_memory_bytes}``.
    """
    from sharedenc.models.plugins import load_entry_points, load_plugin
    from sharedenc.tracking import MlflowTracker, Patience
    from sharedenc.training.job import failure_kind
    from sharedenc.training.run import run_and_record

    try:
        load_entry_points(check=False)
        for plugin in payload["plugins"]:
            load_plugin(Path(plugin), check=False)
        uri = payload["tracking_uri"]
        tracker = MlflowTracker(uri, wait_s=SERVER_WAIT_S, patience=Patience(SERVER_WAIT_S))
        job = make_job(payload, tracker, stop)
        tracker.resume(payload["run_id"])
        # From here on the training goes on, whether the server answers or not.
        run = tracker.handle(payload["run_id"])
    except Exception as error:
        return {
            "state": "failed",
            "kind": failure_kind(error),
            "error": type(error).__name__,
            "reason": str(error) or type(error).__name__,
            "traceback": traceback.format_exc(),
            "result": None,
            "epochs_done": 0,
            "peak_memory_bytes": 0,
        }

    def on_epoch(report: EpochReport) -> bool:
        score = report.metrics.get("score", math.nan)
        return on_report(
            {
                "epoch": report.epoch,
                "epochs": report.epochs,
                "score": score,
                "rank": score if math.isnan(report.rank) else report.rank,
                "seconds": report.seconds,
                "images_per_s": report.metrics.get("images_per_s", math.nan),
            }
        )

    return run_and_record(job, run, on_epoch).to_dict()


def make_job(payload: dict[str, Any], tracker: Tracker, stop: AskStop) -> TrialJob:
    """The job of a payload, with its pack and its parent on this machine's disk."""
    from sharedenc.spec import Trial
    from sharedenc.training.run import TrialJob

    return TrialJob(
        trial=Trial.from_dict(payload["trial"]),
        pack=_pack(payload),
        weights=_weights(payload),
        parent=_parent(payload, tracker),
        work_dir=Path(payload["work_dir"]),
        device=payload["device"],
        workers=payload["workers"],
        plugins=tuple(payload["plugins"]),
        keep=payload["keep"],
        predictions=payload["predictions"],
        test=payload["test"],
        storage=payload.get("storage"),
        checkpoint_every=payload["checkpoint_every"],
        fresh=payload.get("fresh", False),
        stop=stop,
        baselines=payload.get("baselines") or {},
    )


def _pack(payload: dict[str, Any]) -> Path:
    """The pack where the driver has it, or fetched from the storage, once per machine."""
    path = Path(payload["pack"])
    if path.is_dir() or not payload.get("storage"):
        return path
    from sharedenc.data.pack_store import fetch
    from sharedenc.storage import open_storage

    cache = payload.get("cache_dir")
    storage = open_storage(payload["storage"])
    return fetch(payload["pack_digest"], storage, None if cache is None else Path(cache))


def _weights(payload: dict[str, Any]) -> str:
    """The option for the initial weights, their file fetched from the storage if need be."""
    option = str(payload["weights"])
    if option in ("none", "default") or not payload.get("storage"):
        return option
    from sharedenc.models.weight_store import fetch
    from sharedenc.storage import open_storage

    cache = payload.get("cache_dir")
    storage = open_storage(payload["storage"])
    digest = payload["trial"]["weights_digest"]
    return str(fetch(Path(option), digest, storage, None if cache is None else Path(cache)))


def _parent(payload: dict[str, Any], tracker: Tracker) -> Path | None:
    """The source baseline's best network: from this disk, the storage, or its MLflow run."""
    parent = payload["parent"]
    if parent is None:
        return None
    path = Path(parent["path"])
    if path.is_file():
        return path
    folder = Path(payload["work_dir"]) / "parent"
    if payload.get("storage") and parent.get("key"):
        from sharedenc.storage import StorageError, open_storage
        from sharedenc.training.keeper import fetch_best

        # What the storage cannot give, the tracking server has.
        with contextlib.suppress(StorageError):
            found = fetch_best(open_storage(payload["storage"]), parent["key"], folder)
            if found is not None and found.is_file():
                return found
    return tracker.download(parent["run_id"], f"checkpoint/{BEST}", folder)


def make_trainable(run: Execute, signals: str | None = None) -> Any:
    """Wrap a trial's function as a trainable of Ray Tune.

    Args:
        run: What to do for one trial.
        signals: Name of the actor through which the driver says stop; see `sweeps.signals`.
    """
    from ray.tune.trainable.function_trainable import wrap_function

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        cut = False

        def on_report(report: dict[str, Any]) -> bool:
            nonlocal cut
            try:
                tune.report(report)
            except SystemExit:
                # That is how Tune ends a trial which the scheduler stopped: from within report.
                cut = True
            return cut

        payload = json.loads(config["payload"])
        drain = payload.get("drain_file")
        with Stop(None if drain is None else Path(drain), _ask(signals)) as stop:
            # What is told to stop while its process starts has nothing to save.
            outcome = stopped(stop()) if stop() else run(payload, on_report, stop)
        _give_back_memory()
        if cut:
            # A further report would wait for an answer that never comes.
            raise SystemExit(0)
        tune.report({"outcome": json.dumps(outcome)})

    class Trainable(wrap_function(trial)):  # type: ignore[misc]  # Ray has no types
        _name = "trial"

        def setup(self, config: dict[str, Any]) -> None:
            # Trials run in threads of their own; this runs in the worker's main thread, which is
            # the one that gets signals. Ray's own handler would end the process at once.
            save_on_sigterm()
            super().setup(config)

    return Trainable


def stopped(reason: str) -> dict[str, Any]:
    """The outcome of a trial that was told to stop before it began."""
    state = "preempted" if reason.startswith(PREEMPTED) else "stopped"
    return {"state": state, "kind": None, "error": "", "reason": reason, "result": None}


def _ask(signals: str | None) -> AskStop | None:
    if signals is None:
        return None
    from sweeps.signals import listen

    try:
        return listen(signals)
    except ValueError:  # the driver has gone, and Ray will end this process
        return None


def _give_back_memory() -> None:
    """Return a finished trial's freed memory to the system before the next one is packed here."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
