"""The two ends of Ray Tune that decide: a search algorithm and a trial scheduler.

Both only translate between Tune's trials and `SweepState`. Tune pickles them to disk for a
resume that this project does not use (its ledger is MLflow), so they pickle to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.state import Row, SweepState

# How Ray says that its memory monitor ended a worker; a kernel's kill looks like any other death.
OUT_OF_MEMORY = ("OutOfMemoryError", "memory usage threshold", "NODE_OUT_OF_MEMORY")


def failure(trace: str) -> dict[str, Any]:
    """The outcome of a trial whose worker is gone, by what Ray says of it."""
    out_of_memory = any(sign in trace for sign in OUT_OF_MEMORY)
    why = "it ran out of memory" if out_of_memory else "the worker process died"
    return {
        "state": "failed",
        "kind": "oom" if out_of_memory else "machine",
        "reason": f"{why} (Ray's message is the traceback)",
        "traceback": trace,
    }


class GraphSearcher(Searcher):  # type: ignore[misc]  # Ray has no types
    """Hands out trials whose needs are met, the most urgent first, and nothing without a free slot.

    A trial that is taken early is a decision taken too early: by the time it could start, another
    one may be more urgent, or its own bracket may know more.
    """

    def __init__(self, state: SweepState, payload: Callable[[Row], dict[str, Any]]) -> None:
        super().__init__()
        self._state = state
        self._payload = payload
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._state.finished:
            finished: str = Searcher.FINISHED
            return finished
        row = self._state.next()
        if row is None:
            return None
        self._names[trial_id] = row.node.id
        demand = row.node.demand
        return {
            "node": row.node.id,
            "cpus": demand.cpus,
            "gpus": demand.gpus,
            "memory": demand.memory,
            "payload": json.dumps(self._payload(row)),
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error:
            return  # `Watcher.on_trial_error` follows, and knows why
        name = self._names[trial_id]
        text = (result or {}).get("outcome")
        # Without an outcome it was the bracket that ended the trial.
        self._state.end(name, json.loads(text) if text else {"state": "stopped"})

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study is resumed by running the same command again")

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Searcher, ()


class BracketScheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops a search trial when its bracket says so; final trials belong to no bracket."""

    def __init__(self, state: SweepState) -> None:
        super().__init__()
        self._state = state

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        go_on: str = TrialScheduler.CONTINUE
        stop: str = TrialScheduler.STOP
        if "outcome" in result or "epoch" not in result:
            return go_on
        cut = self._state.epoch(trial.config["node"], result["epoch"], result["score"])
        return stop if cut else go_on

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FIFOScheduler, ()


class Watcher(Callback):  # type: ignore[misc]
    """Tells the state of workers that died, and gives progress a regular beat."""

    def __init__(self, state: SweepState, beat: Callable[[], None]) -> None:
        self._state = state
        self._beat = beat

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self._beat()

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        file = trial.error_file
        trace = Path(file).read_text(errors="replace") if file and Path(file).exists() else ""
        self._state.end(trial.config["node"], failure(trace))

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Callback, ()
