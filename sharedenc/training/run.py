"""One trial from start to end: build, train, keep the best, test, record."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sharedenc.data.batch import IMAGENET_MEAN, IMAGENET_STD, train_batches
from sharedenc.data.packed import PackedDataset
from sharedenc.errors import SharedencError
from sharedenc.evaluation.evaluate import SUMMARY, evaluate_network
from sharedenc.evaluation.page import prediction_page
from sharedenc.files import file_sha256, write_atomic
from sharedenc.models.plugins import load_plugin
from sharedenc.redact import hide_credentials
from sharedenc.storage import open_storage
from sharedenc.tracking import RunHandle
from sharedenc.training import checkpoint, memory
from sharedenc.training.device import device_name
from sharedenc.training.failures import failure_kind, out_of_memory
from sharedenc.training.initialise import count, initial_network, open_pack
from sharedenc.training.interval import Interval
from sharedenc.training.job import (
    PREEMPTED,
    EpochReport,
    OnEpoch,
    Outcome,
    TrialJob,
    TrialResult,
    TrialStoppedError,
    rank,
    score,
    trial_params,
)
from sharedenc.training.keeper import Keeper
from sharedenc.training.loop import Progress, fit
from sharedenc.training.numerics import applied, seed_everything
from sharedenc.training.software import software

__all__ = [
    "EpochReport",
    "OnEpoch",
    "Outcome",
    "TrialJob",
    "TrialResult",
    "run_and_record",
    "run_trial",
]

MAX_TRACEBACK = 4000
SHA256 = "sharedenc.sha256"


@dataclass
class Watch:
    """What is known of a trial from outside when something is raised in it."""

    epochs: int = 0
    fixed_bytes: int = 0


def run_and_record(job: TrialJob, run: RunHandle, on_epoch: OnEpoch | None = None) -> Outcome:
    """Run a trial and give it a named end in ``run``, whatever is raised.

    A failure becomes tags and the Outcome, and so does a stop that was asked for. KeyboardInterrupt
    and SystemExit are raised again once the run is marked as stopped; the last saved state is on
    disk in any case.
    """
    watch = Watch()
    try:
        run.keep_in(job.work_dir)
        run.tags(
            {
                "sharedenc.state": "running",
                "sharedenc.reason": "",
                "sharedenc.device_name": device_name(job.device),
                "sharedenc.software": software(),
            }
        )
        run.params(trial_params(job.trial))
        result = run_trial(job, run, on_epoch, watch)
        run.end(result.state)
    except TrialStoppedError as stop:
        reason = str(stop)
        run.end("stopped", reason)
        return Outcome(
            "preempted" if reason.startswith(PREEMPTED) else "stopped",
            reason=reason,
            epochs_done=watch.epochs,
            peak_memory_bytes=memory.peak_bytes(job.device),
        )
    except (KeyboardInterrupt, SystemExit) as error:
        run.end("stopped", f"interrupted ({type(error).__name__})")
        raise
    except Exception as error:
        return _failed(error, job, run, watch)
    return Outcome(
        result.state,
        result=result,
        epochs_done=result.epochs,
        peak_memory_bytes=result.peak_memory_bytes,
    )


def _failed(error: Exception, job: TrialJob, run: RunHandle, watch: Watch) -> Outcome:
    kind = failure_kind(error)
    reason = str(error) or type(error).__name__
    trace = hide_credentials(traceback.format_exc())[-MAX_TRACEBACK:]
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
                fixed_bytes=watch.fixed_bytes,
                peak_bytes=peak,
                capacity_bytes=memory.capacity_bytes(job.device),
            )
    try:
        run.tags({"sharedenc.failure_kind": kind, "sharedenc.traceback": trace})
        run.end("failed", reason)
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
        epochs_done=watch.epochs,
        peak_memory_bytes=peak,
    )


def run_trial(
    job: TrialJob, run: RunHandle, on_epoch: OnEpoch | None = None, watch: Watch | None = None
) -> TrialResult:
    """Train one trial, test its best network, and upload what the layout of a run asks for.

    A second call with the same ``work_dir`` or ``storage`` goes on from the last saved state. Rows
    of metrics that the run has already are not sent again, and those that it lacks are.

    Raises:
        TrialStoppedError: the job's ``stop`` gave a reason; the state is saved.
        SharedencError: one of its kinds, by what went wrong.
    """
    started = time.monotonic()
    watch = watch or Watch()
    trial, recipe = job.trial, job.trial.recipe
    for plugin in job.plugins:
        load_plugin(Path(plugin), check=False)
    keeper = _keeper(job)
    state = keeper.load()
    if state is not None:
        watch.epochs = state["epoch"]
        started -= state["seconds"] + state["train_s"]
    with applied(trial.numerics):
        seed_everything(trial.seed)
        memory.reset_peak(job.device)
        pack = open_pack(job)
        network = initial_network(job, pack)
        parameters = count(network)
        watch.fixed_bytes = memory.fixed_bytes(parameters)
        meta = network_meta(job, pack)
        train = pack.split("train")
        rows = Rows(run, parameters)
        if state is not None:
            rows.say_history(state["history"], state["said_ms"])

        def tell(report: EpochReport) -> bool:
            report.metrics["score"] = score(trial.cell, report.metrics, "val/")
            rows.say(report.epoch, report.metrics, report.at_ms)
            watch.epochs = report.epoch
            ranked = replace(report, rank=rank(trial.cell, report.metrics, job.baselines))
            return on_epoch is not None and on_epoch(ranked)

        def check_stop() -> None:
            if reason := job.stop():
                raise TrialStoppedError(reason)

        def evaluate(split: str) -> dict[str, float]:
            return evaluate_network(
                network,
                pack.split(split),
                recipe,
                pack.classes,
                trial.numerics,
                job.device,
                workers=job.workers,
                before_batch=check_stop,
            )

        def validate() -> dict[str, float]:
            metrics = evaluate("val")
            return {name: metrics[name] for name in SUMMARY if name in metrics}

        progress = fit(
            network,
            recipe=recipe,
            lr=trial.lr,
            numerics=trial.numerics,
            device=job.device,
            name=trial.cell.name,
            batches=lambda epoch, skip: train_batches(
                train, recipe, seed=trial.seed, epoch=epoch, workers=job.workers, skip=skip
            ),
            validate=validate,
            on_epoch=tell,
            keeper=keeper,
            keep_best=lambda: keeper.keep_best(network, meta),
            state=state,
            check_stop=check_stop,
        )
        best = keeper.publish_best()
        test: dict[str, float] = {}
        pages: Sequence[Path] = ()
        if progress.end == "done" and (job.test or job.predictions):
            tensors, _ = checkpoint.read_checkpoint(best)
            checkpoint.load_state(network, tensors, best)
            if job.test:
                test = evaluate("test")
            if job.predictions:
                pages = prediction_page(
                    network,
                    pack.split("test"),
                    recipe,
                    pack.classes,
                    trial.numerics,
                    job.device,
                    job.work_dir / "page.png",
                )
        result = _result(job, progress, parameters, test, time.monotonic() - started)
    took = [seconds for seconds in progress.epoch_s if seconds > 0]
    rows.say_end(result, sum(took) / len(took) if took else None)
    if result.state == "done":
        if job.keep:
            _upload(job, run, result, pages)
        keeper.settle()
    return result


def _keeper(job: TrialJob) -> Keeper:
    keeper = Keeper(
        job.work_dir,
        job.trial.key,
        every=Interval.parse(job.checkpoint_every),
        storage=None if job.storage is None else open_storage(job.storage),
    )
    if job.fresh:
        keeper.discard()
    return keeper


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

    def say_end(self, result: TrialResult, epoch_s: float | None) -> None:
        """Send what is known at the end; a trial that was cut may go on, so its end is none."""
        took = {
            "seconds": result.seconds,
            "peak_memory_bytes": result.peak_memory_bytes,
            "best_epoch": result.best_epoch,
        }
        if epoch_s is not None:
            took["epoch_s"] = epoch_s
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


def _result(
    job: TrialJob,
    progress: Progress,
    parameters: dict[str, int],
    test: dict[str, float],
    seconds: float,
) -> TrialResult:
    val = {
        name.removeprefix("val/"): value
        for name, value in progress.history[progress.best_epoch - 1].items()
        if name.startswith("val/")
    }
    speeds = [row["images_per_s"] for row in progress.history]
    assert progress.end, "fit returns with a named end"
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


def _upload(job: TrialJob, run: RunHandle, result: TrialResult, pages: Sequence[Path]) -> None:
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
