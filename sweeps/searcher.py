"""The two ends of Ray Tune that decide: a search algorithm and a trial scheduler.

Both only translate between Tune's trials and `SweepState`. A trial that is tried again is a new
trial of Tune's. Tune pickles them to disk for a resume that this project does not use (its
ledger is MLflow), so they pickle to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.state import Row, SweepState

Lost = Callable[[str, str], dict[str, Any]]
"""The outcome of a trial by Ray's message and the id of its machine."""


class GraphSearcher(Searcher):  # type: ignore[misc]  # Ray has no types
    """Hands out trials whose needs are met, the most urgent first, and nothing without a free slot.

    A trial that is taken early is a decision taken too early: by the time it could start, another
    one may be more urgent, or its own bracket may know more.

    Args:
        state: What decides.
        payload: A started row's input.
        beat: Called at every question: Tune asks once a second when nothing runs, and does
            nothing else then.
    """

    def __init__(
        self,
        state: SweepState,
        payload: Callable[[Row], dict[str, Any]],
        beat: Callable[[], None],
    ) -> None:
        super().__init__()
        self._state = state
        self._payload = payload
        self._beat = beat
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._beat()
        row = self._state.next()
        if row is None:
            finished: str = Searcher.FINISHED
            return finished if self._state.finished else None
        name = row.node.id
        self._names[trial_id] = name
        demand = self._state.demand(name)
        return {
            "node": name,
            "machine": row.machine,
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
        text = (result or {}).get("outcome")
        # Without an outcome it was the bracket that ended the trial.
        outcome = json.loads(text) if text else {"state": "stopped"}
        self._state.end(self._names[trial_id], outcome)

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
        self._controller: Any = None

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._controller = tune_controller
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        go_on: str = TrialScheduler.CONTINUE
        stop: str = TrialScheduler.STOP
        if "outcome" in result or "epoch" not in result:
            return go_on
        cut = self._state.epoch(trial.config["node"], result)
        return stop if cut else go_on

    def withdraw(self, trial: TuneTrial, outcome: dict[str, Any]) -> None:
        """End a trial that Tune has not started and cannot start any more."""
        if trial in self._controller._resetting_trials:
            return  # a worker is about to take it, or to be told as dead
        self._state.end(trial.config["node"], outcome)
        self._controller.stop_trial(trial)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FIFOScheduler, ()


class Watcher(Callback):  # type: ignore[misc]
    """Tells the state of workers that are gone, and gives everything else a regular beat.

    Args:
        state: What decides.
        beat: Called after every step of Tune's.
        lost: Sorts what Ray says of a worker that is gone.
        scheduler: Takes back trials that wait for a machine that is gone.
    """

    def __init__(
        self,
        state: SweepState,
        beat: Callable[[], None],
        lost: Lost,
        scheduler: BracketScheduler,
    ) -> None:
        self._state = state
        self._beat = beat
        self._lost = lost
        self._scheduler = scheduler

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self._beat()
        there = {machine.id for machine in self._state.machines}
        for row in self._state.running:
            if row.machine and row.machine not in there:
                self._take_back(row, trials)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        file = trial.error_file
        trace = Path(file).read_text(errors="replace") if file and Path(file).exists() else ""
        outcome = self._lost(trace, trial.config["machine"])
        self._state.end(trial.config["node"], outcome)

    def _take_back(self, row: Row, trials: list[TuneTrial]) -> None:
        """Ray goes on looking for a place on a machine that is gone; nobody else ends that."""
        for trial in reversed(trials):
            if trial.config["node"] == row.node.id:
                if trial.status == TuneTrial.PENDING:
                    why = "preempted: its machine left the cluster"
                    self._scheduler.withdraw(trial, {"state": "preempted", "reason": why})
                return

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Callback, ()


class Quiet(TrialProgressCallback):  # type: ignore[misc]
    """Takes the place of the callback that prints trials on standard output."""

    def on_trial_result(self, *values: Any, **info: Any) -> None: ...

    def on_trial_error(self, *values: Any, **info: Any) -> None: ...

    def on_trial_complete(self, *values: Any, **info: Any) -> None: ...

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Callback, ()
