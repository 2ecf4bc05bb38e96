"""One trial from start to end: build, train, keep the best, test, record."""

from __future__ import annotations

import json
import resource
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sharedenc.data.batch import IMAGENET_MEAN, IMAGENET_STD, train_batches
from sharedenc.data.packed import PackedDataset
from sharedenc.errors import SharedencError
from sharedenc.evaluation.evaluate import SUMMARY, evaluate_network
from sharedenc.evaluation.page import prediction_page
from sharedenc.models.network import Network
from sharedenc.models.plugins import load_plugin
from sharedenc.tracking import RunHandle
from sharedenc.training import checkpoint
from sharedenc.training.initialise import count, initial_network, open_pack
from sharedenc.training.job import (
    EpochReport,
    OnEpoch,
    Outcome,
    TrialJob,
    TrialResult,
    failure_kind,
    score,
    trial_params,
)
from sharedenc.training.loop import Progress, fit
from sharedenc.training.numerics import applied, seed_everything

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


def run_and_record(job: TrialJob, run: RunHandle, on_epoch: OnEpoch | None = None) -> Outcome:
    """Run a trial and give it a named end in ``run``, whatever is raised.

    A failure becomes tags and the Outcome; KeyboardInterrupt and SystemExit are raised again once
    the run is marked as stopped. The state of the last whole epoch is on disk in either case.
    """
    try:
        run.keep_in(job.work_dir)
        run.tags({"sharedenc.state": "running", "sharedenc.reason": ""})
        run.params(trial_params(job.trial))
        result = run_trial(job, run, on_epoch)
        run.end(result.state)
    except (KeyboardInterrupt, SystemExit) as error:
        run.end("stopped", f"interrupted ({type(error).__name__})")
        raise
    except Exception as error:
        return _failed(error, run)
    if result.state == "done":
        (job.work_dir / checkpoint.RESUME).unlink(missing_ok=True)
    return Outcome(result.state, result=result)


def _failed(error: Exception, run: RunHandle) -> Outcome:
    kind = failure_kind(error)
    reason = str(error) or type(error).__name__
    trace = traceback.format_exc()[-MAX_TRACEBACK:]
    try:
        run.tags({"sharedenc.failure_kind": kind, "sharedenc.traceback": trace})
        run.end("failed", reason)
    except Exception as second:
        # The trial's own failure matters more than that of telling it.
        trace += f"\nand its end could not be recorded: {second}"
    exit_code = error.exit_code if isinstance(error, SharedencError) else 1
    return Outcome("failed", kind=kind, reason=reason, traceback=trace, exit_code=exit_code)


def run_trial(job: TrialJob, run: RunHandle, on_epoch: OnEpoch | None = None) -> TrialResult:
    """Train one trial, test its best network, and upload what the layout of a run asks for.

    A second call with the same ``work_dir`` goes on after the last whole epoch.

    Raises:
        SharedencError: one of its kinds, by what went wrong.
    """
    started = time.monotonic()
    trial, recipe = job.trial, job.trial.recipe
    for plugin in job.plugins:
        load_plugin(Path(plugin), check=False)
    with applied(trial.numerics):
        seed_everything(trial.seed)
        _reset_peak_memory(job.device)
        pack = open_pack(job)
        network = initial_network(job, pack)
        parameters = count(network)
        run.metrics({f"params/{name}": value for name, value in parameters.items()}, step=0)
        best = job.work_dir / checkpoint.BEST
        meta = network_meta(job, pack)
        train = pack.split("train")

        def tell(report: EpochReport) -> bool:
            report.metrics["score"] = score(trial.cell, report.metrics, "val/")
            run.metrics(report.metrics, step=report.epoch)
            return on_epoch is not None and on_epoch(report)

        def validate() -> dict[str, float]:
            metrics = _evaluate(network, pack, job, "val")
            return {name: metrics[name] for name in SUMMARY if name in metrics}

        progress = fit(
            network,
            recipe=recipe,
            lr=trial.lr,
            numerics=trial.numerics,
            device=job.device,
            name=trial.cell.name,
            key=trial.key,
            batches=lambda epoch: train_batches(
                train, recipe, seed=trial.seed, epoch=epoch, workers=job.workers
            ),
            validate=validate,
            keep_best=lambda: checkpoint.save_network(network, best, meta),
            on_epoch=tell,
            resume_file=job.work_dir / checkpoint.RESUME,
        )
        test: dict[str, float] = {}
        page: Path | None = None
        if progress.end == "done" and (job.test or job.predictions):
            state, _ = checkpoint.read_checkpoint(best)
            checkpoint.load_state(network, state, best)
            if job.test:
                test = _evaluate(network, pack, job, "test")
                run.metrics({f"test/{k}": v for k, v in test.items()}, step=progress.epoch)
            if job.predictions:
                page = prediction_page(
                    network,
                    pack.split("test"),
                    recipe,
                    pack.classes,
                    trial.numerics,
                    job.device,
                    job.work_dir / "page.png",
                )
        result = _result(job, progress, parameters, test, time.monotonic() - started)
    _upload(job, run, result, page)
    return result


def _evaluate(network: Network, pack: PackedDataset, job: TrialJob, split: str) -> dict[str, float]:
    trial = job.trial
    return evaluate_network(
        network,
        pack.split(split),
        trial.recipe,
        pack.classes,
        trial.numerics,
        job.device,
        workers=job.workers,
    )


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
        peak_memory_bytes=_peak_memory(job.device),
    )


def _upload(job: TrialJob, run: RunHandle, result: TrialResult, page: Path | None) -> None:
    summary: Mapping[str, float] = {
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "best_epoch": result.best_epoch,
        # The last word on the score is that of the network that is kept.
        "score": result.score,
    }
    run.metrics(summary, step=result.epochs)
    if result.state != "done":
        return
    for name, content in (("trial", job.trial.to_dict()), ("result", result.to_dict())):
        path = job.work_dir / f"{name}.json"
        checkpoint.write_atomic(path, json.dumps(content, indent=1).encode())
        run.artifact(path)
    run.artifact(Path(result.checkpoint), "checkpoint")
    if page is not None:
        run.artifact(page, "predictions")


def _reset_peak_memory(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        # Linux: 5 sets the peak resident size back to the present one.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_memory(device: str) -> int:
    """Peak memory of the trial in bytes: of the GPU, or the process's resident size."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
