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

from sweeps.groups import Group
from sweeps.lost import lost
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
        self._groups: dict[str, Group] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._beat()
        row = self._state.next()
        if row is None:
            finished: str = Searcher.FINISHED
            return finished if self._state.finished else None
        group = self._state.group(row.node.id)
        self._groups[trial_id] = group
        payloads = [self._payload(self._state.rows[name]) for name in group.members]
        return {
            "nodes": list(group.members),
            "machine": row.machine,
            "cpus": group.demand.cpus,
            "gpus": group.demand.gpus,
            "memory": group.demand.memory,
            "payloads": json.dumps(payloads),
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error:
            return  # `Watcher.on_trial_error` follows, and knows why
        result = result or {}
        for name in self.running(trial_id):
            if name == result.get("node") and "outcome" in result:
                self._state.end(name, json.loads(result["outcome"]))
            else:
                self._state.end(name, lost("its worker ended without a word of it"))

    def running(self, trial_id: str) -> list[str]:
        """Who runs in one of Tune's trials: one that has failed there may run in another by now."""
        return list(self._groups[trial_id].running)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study is resumed by running the same command again")

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Searcher, ()


class BracketScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tells what trials report, and cuts a search trial when its bracket says so.

    Tune would stop the whole process, in which others may train; so a cut goes to the worker.

    Args:
        state: What decides.
        cut: Tells a worker that a trial of it is cut; known there when it returns.
    """

    def __init__(self, state: SweepState, cut: Callable[[str], None]) -> None:
        super().__init__()
        self._state = state
        self._cut = cut
        self._controller: Any = None

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._controller = tune_controller
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        name = result.get("node")
        if name is not None and "outcome" in result:
            # The last of a group ends with its process, in `GraphSearcher.on_trial_complete`.
            if self._state.runs_with_others(name):
                self._state.end(name, json.loads(result["outcome"]))
        elif name is not None and self._state.epoch(name, result):
            self._cut(name)
        go_on: str = TrialScheduler.CONTINUE
        return go_on

    def withdraw(self, trial: TuneTrial, outcome: dict[str, Any]) -> None:
        """End a trial that Tune has not started and cannot start any more."""
        if trial in self._controller._resetting_trials:
            return  # a worker is about to take it, or to be told as dead
        for name in trial.config["nodes"]:
            self._state.end(name, outcome)
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
        running: Gives the names of what runs in one of Tune's trials, by its id.
    """

    def __init__(
        self,
        state: SweepState,
        beat: Callable[[], None],
        lost: Lost,
        scheduler: BracketScheduler,
        running: Callable[[str], list[str]],
    ) -> None:
        self._state = state
        self._beat = beat
        self._lost = lost
        self._scheduler = scheduler
        self._running = running

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
        for name in self._running(trial.trial_id):
            self._state.end(name, outcome)

    def _take_back(self, row: Row, trials: list[TuneTrial]) -> None:
        """Ray goes on looking for a place on a machine that is gone; nobody else ends that."""
        for trial in reversed(trials):
            if row.node.id in trial.config["nodes"]:
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
