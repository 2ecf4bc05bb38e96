"""What a trial's run is told: rows of metrics, files, and how the trial ended."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sharedenc.data.batch import IMAGENET_MEAN, IMAGENET_STD
from sharedenc.data.packed import PackedDataset
from sharedenc.errors import SharedencError
from sharedenc.files import file_sha256, write_atomic
from sharedenc.redact import hide_credentials
from sharedenc.tracking import RunHandle
from sharedenc.training import checkpoint, memory
from sharedenc.training.failures import failure_kind, out_of_memory
from sharedenc.training.job import (
    PREEMPTED,
    Outcome,
    TrialJob,
    TrialResult,
    TrialStoppedError,
    score,
)
from sharedenc.training.learner import Progress

MAX_TRACEBACK = 4000
SHA256 = "sharedenc.sha256"


class Rows:
    """A run's rows of metrics: each is sent once, however often the trial is taken up again.

    The row after the last epoch is the trial's end: test scores, what it took, and the last word on
    the score, that of the network that is kept.
    """

    def __init__(self, run: RunHandle, parameters: Mapping[str, int]) -> None:
        self._run = run
        self._first = {f"params/{name}": value for name, value in parameters.items()}
        self._logged = run.logged_steps()

    def say(self, epoch: int, metrics: Mapping[str, float], at_ms: int | None) -> None:
        """Send an epoch's row, with the time at which it was known first."""
        if epoch in self._logged:
            return
        self._run.metrics({**metrics, **(self._first if epoch == 1 else {})}, epoch, at_ms)
        self._logged.add(epoch)

    def say_history(
        self, history: Sequence[Mapping[str, float]], said_ms: Sequence[int | None]
    ) -> None:
        """Send the rows of a state that the run lacks: of another run, or lost on the way."""
        for epoch, (metrics, at_ms) in enumerate(zip(history, said_ms, strict=True), start=1):
            self.say(epoch, metrics, at_ms)

    def say_end(self, result: TrialResult, means: Mapping[str, float]) -> None:
        """Send what is known at the end; a trial that was cut may go on, so its end is none.

        Args:
            means: Over epochs, of what is known of them.
        """
        took = {
            "seconds": result.seconds,
            "peak_memory_bytes": result.peak_memory_bytes,
            "best_epoch": result.best_epoch,
            **means,
        }
        if result.state != "done":
            self._run.metrics(took, step=result.epochs)
            return
        test = {f"test/{name}": value for name, value in result.test.items()}
        self.say(result.epochs + 1, test | took | {"score": result.score}, None)


def network_meta(job: TrialJob, pack: PackedDataset) -> dict[str, Any]:
    """What a checkpoint says about itself: enough to build, feed and export it anywhere."""
    trial = job.trial
    return {
        "backbone": trial.cell.backbone,
        "tasks": list(trial.cell.tasks),
        "num_classes": pack.classes.num_classes,
        "classes": list(pack.classes.names),
        "class_list": pack.classes.name,
        "image_px": trial.recipe.image_px,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "cell": trial.cell.name,
        "key": trial.key,
        "data": pack.name,
        "data_digest": pack.digest,
        "plugins": list(job.plugins),
    }


def trial_result(
    job: TrialJob,
    progress: Progress,
    parameters: dict[str, int],
    test: dict[str, float],
    seconds: float,
) -> TrialResult:
    """Put together what a trial gave that ended by itself, or was cut."""
    val = {
        name.removeprefix("val/"): value
        for name, value in progress.history[progress.best_epoch - 1].items()
        if name.startswith("val/")
    }
    speeds = [row["images_per_s"] for row in progress.history]
    assert progress.end, "a training that ends has a named end"
    return TrialResult(
        cell=job.trial.cell.name,
        key=job.trial.key,
        state=progress.end,
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        score=score(job.trial.cell, val),
        val=val,
        test=test,
        history=progress.history,
        parameters=parameters,
        checkpoint=str((job.work_dir / checkpoint.BEST).resolve()),
        seconds=seconds,
        images_per_s=sum(speeds) / len(speeds),
        peak_memory_bytes=memory.peak_bytes(job.device),
    )


def upload(job: TrialJob, run: RunHandle, result: TrialResult, pages: Sequence[Path]) -> None:
    """Upload a finished trial's files, and say what their bytes are to be."""
    uploads: list[tuple[Path, str]] = []
    for name, content in (("trial", job.trial.to_dict()), ("result", result.to_dict())):
        path = job.work_dir / f"{name}.json"
        write_atomic(path, json.dumps(content, indent=1).encode())
        uploads.append((path, ""))
    uploads.append((Path(result.checkpoint), "checkpoint"))
    uploads += [(path, "predictions") for path in pages]
    digests = {}
    for path, folder in uploads:
        run.artifact(path, folder)
        digests[f"{folder}/{path.name}".lstrip("/")] = file_sha256(path)
    run.tags({SHA256: json.dumps(digests, sort_keys=True)})


def end_run(
    ending: TrialResult | Exception,
    job: TrialJob,
    run: RunHandle,
    *,
    epochs_done: int,
    fixed_bytes: int,
    wait_s: float | None = None,
) -> Outcome:
    """Give a run its named end, whatever the trial gave or raised; never raises an `Exception`.

    Args:
        fixed_bytes: Memory of the trial that does not depend on its batch.
        wait_s: How long to wait for a tracking server that is away; see `RunHandle.end`.
    """
    try:
        if isinstance(ending, TrialResult):
            run.end(ending.state, wait_s=wait_s)
            return Outcome(
                ending.state,
                result=ending,
                epochs_done=ending.epochs,
                peak_memory_bytes=ending.peak_memory_bytes,
            )
        if isinstance(ending, TrialStoppedError):
            reason = str(ending)
            run.end("stopped", reason, wait_s=wait_s)
            return Outcome(
                "preempted" if reason.startswith(PREEMPTED) else "stopped",
                reason=reason,
                epochs_done=epochs_done,
                peak_memory_bytes=memory.peak_bytes(job.device),
            )
        error = ending
    except Exception as second:
        error = second
    return _failed(error, job, run, epochs_done, fixed_bytes, wait_s)


def _failed(
    error: Exception,
    job: TrialJob,
    run: RunHandle,
    epochs_done: int,
    fixed_bytes: int,
    wait_s: float | None,
) -> Outcome:
    kind = failure_kind(error)
    reason = str(error) or type(error).__name__
    trace = hide_credentials("".join(traceback.format_exception(error)))[-MAX_TRACEBACK:]
    peak = 0
    # A device that is gone can also not be asked about its memory.
    with contextlib.suppress(RuntimeError, AssertionError):
        peak = memory.peak_bytes(job.device)
        if kind == "oom":
            reason = out_of_memory(
                error,
                batch_size=job.trial.recipe.batch_size,
                image_px=job.trial.recipe.image_px,
                device=job.device,
                fixed_bytes=fixed_bytes,
                peak_bytes=peak,
                capacity_bytes=memory.capacity_bytes(job.device),
            )
    try:
        run.tags({"sharedenc.failure_kind": kind, "sharedenc.traceback": trace})
        run.end("failed", reason, wait_s=wait_s)
    except Exception as second:
        # The trial's own failure matters more than that of telling it.
        trace += f"\nand its end could not be recorded: {second}"
    return Outcome(
        "failed",
        kind=kind,
        reason=reason,
        traceback=trace,
        exit_code=error.exit_code if isinstance(error, SharedencError) else 1,
        error=type(error).__name__,
        epochs_done=epochs_done,
        peak_memory_bytes=peak,
    )
