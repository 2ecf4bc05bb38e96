"""What runs in a worker process: trials that train together, mostly one, from plain values to plain
values.

A payload is a dict of JSON values (see `sweeps.payload`), so that nothing but this package
has to exist in the worker when Ray unpickles it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.stopping import PREEMPTED, Stop, save_on_sigterm

if TYPE_CHECKING:
    from sharedenc.tracking import MlflowTracker, Tracker
    from sharedenc.training.job import EpochReport, OnEpoch, TrialJob
    from sweeps.signals import Listener

OnReport = Callable[[str, dict[str, Any]], bool]
"""Gets a trial's name and an epoch of it; True means that this trial is to stop now."""
OnEnd = Callable[[str, dict[str, Any]], None]
"""Gets a trial's name and its outcome, as soon as it has ended."""
AskStop = Callable[[], str]
"""Gives a reason to save and end all trials, empty to go on."""
Execute = Callable[[Sequence[dict[str, Any]], OnReport, OnEnd, AskStop], None]

ENDED = "stopped: Ray has ended what this process trains"
"""The reason of trials whose neighbour's report was the last one that Ray took."""
BEST = "best.safetensors"
# How long a trial waits for a server that is away before it can start.
SERVER_WAIT_S = 300.0


def execute(
    payloads: Sequence[dict[str, Any]], on_report: OnReport, on_end: OnEnd, stop: AskStop
) -> None:
    """Train trials together, or one alone, and say how each ended; never raises an `Exception`.

    Args:
        payloads: Of each trial, its places and the run that records it.
        on_report: Gets ``{epoch, epochs, score, rank, seconds, images_per_s, members}`` after each
            epoch; ``members`` are those that trained it together.
        on_end: Gets ``{state, kind, error, reason, traceback, result, epochs_done,
            peak_memory_bytes}`` once for each trial.
        stop: Asked before each step.
    """
    from sharedenc.training.together import run_together

    group = _Running([payload["node"] for payload in payloads], on_report, on_end)
    jobs: dict[str, TrialJob] = {}
    try:
        tracker = _open(payloads[0])
        for payload in payloads:
            name = payload["node"]
            try:
                jobs[name] = make_job(payload, tracker, stop)
                tracker.resume(payload["run_id"])
            except Exception as error:
                jobs.pop(name, None)
                group.end(name, _raised(error))
        # From here on the training goes on, whether the server answers or not.
        names = list(jobs)
        runs = {payload["node"]: payload["run_id"] for payload in payloads}
        if names:
            run_together(
                list(jobs.values()),
                [tracker.handle(runs[name]) for name in names],
                [group.listener(name) for name in names],
                lambda index, outcome: group.end(names[index], outcome.to_dict()),
            )
    except Exception as error:
        for name in list(group.running):
            group.end(name, _raised(error))


def _open(payload: dict[str, Any]) -> MlflowTracker:
    """Load what trials of a study may need besides this package, and reach their server."""
    from sharedenc.models.plugins import load_entry_points, load_plugin
    from sharedenc.tracking import MlflowTracker, Patience

    load_entry_points(check=False)
    for plugin in payload["plugins"]:
        load_plugin(Path(plugin), check=False)
    uri = payload["tracking_uri"]
    return MlflowTracker(uri, wait_s=SERVER_WAIT_S, patience=Patience(SERVER_WAIT_S))


def _raised(error: Exception) -> dict[str, Any]:
    """The outcome of a trial that something outside its training ended."""
    from sharedenc.training.job import failure_kind

    return {
        "state": "failed",
        "kind": failure_kind(error),
        "error": type(error).__name__,
        "reason": str(error) or type(error).__name__,
        "traceback": "".join(traceback.format_exception(error)),
        "result": None,
        "epochs_done": 0,
        "peak_memory_bytes": 0,
    }


class _Running:
    """The trials of a process that have not ended."""

    def __init__(self, names: Sequence[str], on_report: OnReport, on_end: OnEnd) -> None:
        self.running = list(names)
        self._on_report, self._on_end = on_report, on_end

    def end(self, name: str, outcome: dict[str, Any]) -> None:
        """A trial has ended."""
        if name in self.running:
            self.running.remove(name)
            self._on_end(name, outcome)

    def listener(self, name: str) -> OnEpoch:
        """What is told of a trial's epochs."""

        def on_epoch(report: EpochReport) -> bool:
            score = report.metrics.get("score", math.nan)
            return self._on_report(
                name,
                {
                    "epoch": report.epoch,
                    "epochs": report.epochs,
                    "score": score,
                    "rank": score if math.isnan(report.rank) else report.rank,
                    "seconds": report.seconds,
                    "images_per_s": report.metrics.get("images_per_s", math.nan),
                    "members": report.members,
                },
            )

        return on_epoch


def make_job(payload: dict[str, Any], tracker: Tracker, stop: AskStop) -> TrialJob:
    """The job of a payload, with its pack and its parent on this machine's disk."""
    from sharedenc.spec import Trial
    from sharedenc.training.job import TrialJob

    return TrialJob(
        trial=Trial.from_dict(payload["trial"]),
        pack=_pack(payload),
        weights=_weights(payload),
        parent=_parent(payload, tracker),
        work_dir=Path(payload["work_dir"]),
        device=payload["device"],
        cache_dir=Path(payload["cache_dir"]) if payload.get("cache_dir") else None,
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
        taps_budget_bytes=payload["taps_budget_bytes"],
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


def make_trainable(run: Execute, signals: str) -> Any:
    """Wrap the function of a process as a trainable of Ray Tune.

    Each result names a trial as ``node`` and has an epoch or the ``outcome`` of it; the outcome of
    the last one comes when the process is free again.

    Args:
        run: What to do for trials that train together.
        signals: Name of the actor through which the driver says what is to stop, see
            `sweeps.signals`.
    """
    from ray.tune.trainable.function_trainable import wrap_function

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        payloads: list[dict[str, Any]] = json.loads(config["payloads"])
        left = [payload["node"] for payload in payloads]
        ears = _listen(signals)
        last: dict[str, Any] = {}
        ended_by_tune = False

        def say(result: dict[str, Any]) -> None:
            """Report, unless Tune has ended this: a further report would wait for ever."""
            nonlocal ended_by_tune
            if ended_by_tune:
                return
            try:
                tune.report(result)
            except SystemExit:
                ended_by_tune = True

        def on_report(name: str, report: dict[str, Any]) -> bool:
            # Comes back when the driver has decided.
            say({"node": name, **report})
            return ended_by_tune or ears.is_cut(name)

        def on_end(name: str, outcome: dict[str, Any]) -> None:
            nonlocal last
            left.remove(name)
            result = {"node": name, "outcome": json.dumps(outcome)}
            if not left:
                last = result
            else:
                say(result)

        drain = payloads[0].get("drain_file")
        with Stop(None if drain is None else Path(drain), ears.reason) as stop:
            if stop():
                # What is told to stop while its process starts has nothing to save.
                for name in list(left):
                    on_end(name, stopped(stop()))
            else:
                run(payloads, on_report, on_end, lambda: ENDED if ended_by_tune else stop())
        _give_back_memory()
        if ended_by_tune:
            raise SystemExit(0)
        tune.report(last)

    class Trainable(wrap_function(trial)):  # type: ignore[misc]  # Ray has no types
        _name = "trial"

        def setup(self, config: dict[str, Any]) -> None:
            # Trials run in threads of their own; this runs in the worker's main thread, which is
            # the one that gets signals. Ray's own handler would end the process at once.
            save_on_sigterm()
            super().setup(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            # What is refused here starts in a new process, uncharged (see `sweeps.lost`).
            return bool(super().reset_config(new_config)) and gpu_answers()

    return Trainable


def stopped(reason: str) -> dict[str, Any]:
    """The outcome of a trial that was told to stop before it began."""
    state = "preempted" if reason.startswith(PREEMPTED) else "stopped"
    return {"state": state, "kind": None, "error": "", "reason": reason, "result": None}


def _listen(signals: str) -> Listener:
    from sweeps.signals import Deaf, listen

    try:
        return listen(signals)
    except ValueError:  # the driver has gone, and Ray will end this process
        return Deaf()


def gpu_answers() -> bool:
    """Whether this process can still use its GPU, if it did: an assert or ECC error ends that."""
    torch = _torch_on_gpu()
    if torch is not None:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
    return True


def _torch_on_gpu() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _give_back_memory() -> None:
    """Return a finished trial's freed memory to the system before the next one is packed here.

    What is there after the first trial are the libraries, which stay: left out from then on, since
    to look through them takes a quarter of a second.
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    torch = _torch_on_gpu()
    if torch is not None:
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()  # of which a neighbour on the GPU has no use
