"""What runs in a worker process: one trial, from plain values to plain values.

A payload is a dict of JSON values (see `sweeps.run.payload`), so that nothing but this module
has to exist in the worker when Ray unpickles it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharedenc.tracking import Tracker
    from sharedenc.training.run import EpochReport

OnReport = Callable[[dict[str, Any]], bool]
Execute = Callable[[dict[str, Any], OnReport], dict[str, Any]]


def execute(payload: dict[str, Any], on_report: OnReport) -> dict[str, Any]:
    """Train one trial and say how it ended; never raises an `Exception`.

    Args:
        payload: The trial, its places and the run that records it.
        on_report: Gets ``{epoch, epochs, score, metrics, seconds}`` after each epoch; True means
            that the trial is to stop now.

    Returns:
        ``{state, kind, reason, traceback, result}``.
    """
    from sharedenc.models.plugins import load_entry_points, load_plugin
    from sharedenc.spec import Trial
    from sharedenc.tracking import MlflowTracker
    from sharedenc.training.run import TrialJob, run_and_record

    try:
        load_entry_points(check=False)
        for plugin in payload["plugins"]:
            load_plugin(Path(plugin), check=False)
        tracker = MlflowTracker(payload["tracking_uri"])
        job = TrialJob(
            trial=Trial.from_dict(payload["trial"]),
            pack=Path(payload["pack"]),
            weights=payload["weights"],
            parent=_parent(payload, tracker),
            work_dir=Path(payload["work_dir"]),
            device=payload["device"],
            workers=payload["workers"],
            plugins=tuple(payload["plugins"]),
            predictions=payload["predictions"],
            test=payload["test"],
        )
        run = tracker.resume(payload["run_id"])
    except Exception as error:
        kind = getattr(error, "kind", "code")
        return _outcome("failed", kind=kind, reason=str(error), trace=traceback.format_exc())

    def on_epoch(report: EpochReport) -> bool:
        return on_report(
            {
                "epoch": report.epoch,
                "epochs": report.epochs,
                "score": report.metrics.get("score", float("nan")),
                "seconds": report.seconds,
                "metrics": report.metrics,
            }
        )

    outcome = run_and_record(job, run, on_epoch)
    result = None if outcome.result is None else outcome.result.to_dict()
    return _outcome(outcome.state, outcome.kind, outcome.reason, outcome.traceback, result)


def _outcome(
    state: str,
    kind: str | None = None,
    reason: str | None = None,
    trace: str | None = None,
    result: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"state": state, "kind": kind, "reason": reason, "traceback": trace, "result": result}


def _parent(payload: dict[str, Any], tracker: Tracker) -> Path | None:
    """The source baseline's best checkpoint: on this machine's disk, or from its MLflow run."""
    parent = payload["parent"]
    if parent is None:
        return None
    path = Path(parent["path"])
    if path.is_file():
        return path
    to = Path(payload["work_dir"]) / "parent"
    return tracker.download(parent["run_id"], "checkpoint/best.safetensors", to)


def make_trainable(run: Execute) -> Callable[[dict[str, Any]], None]:
    """Wrap a trial's function as a function trainable of Ray Tune."""

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        cut = False

        def on_report(report: dict[str, Any]) -> bool:
            nonlocal cut
            try:
                tune.report({"epoch": report["epoch"], "score": report["score"]})
            except SystemExit:
                # That is how Tune ends a trial which the scheduler stopped: from within report.
                cut = True
            return cut

        outcome = run(json.loads(config["payload"]), on_report)
        _give_back_memory()
        if cut:
            # A further report would wait for an answer that never comes.
            raise SystemExit(0)
        tune.report({"outcome": json.dumps(outcome)})

    return trial


def _give_back_memory() -> None:
    """Return a finished trial's freed memory to the system before the next one is packed here."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
