"""Where a sweep stands: the one place that decides what starts, what is cut, what is skipped.

Every launcher drives this object and nothing else; it knows neither Ray nor MLflow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sharedenc.spec import State
from sweeps.brackets import Bracket
from sweeps.graph import Node
from sweeps.order import Machine, plan, upward_ranks
from sweeps.resources import fit


@dataclass
class Row:
    """What is known of one trial at any time; ``score`` is the best so far."""

    node: Node
    state: State = "waiting"
    reason: str = ""
    kind: str = ""
    traceback: str = ""
    run_id: str = ""
    attempts: int = 0
    epoch: int = 0
    epochs: int = 0
    score: float = math.nan
    started: float = math.nan
    ended: float = math.nan
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Duration so far, or of the whole trial once it has ended."""
        if math.isnan(self.started):
            return 0.0
        return (time.monotonic() if math.isnan(self.ended) else self.ended) - self.started


Listener = Callable[[str, Row], None]


class SweepState:
    """Rows of a study and the decisions on them.

    Args:
        nodes: The trials; their demands are fitted to ``machines``.
        machines: What each machine offers.
        reused: State and reason of trials that have ended in an earlier invocation.
        concurrent: Most trials at once; None for as many as fit.
        listener: Called with an event (`start`, `epoch`, `end`) and the row, after each change.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        machines: Sequence[Machine],
        *,
        reused: Mapping[str, tuple[State, str]] | None = None,
        concurrent: int | None = None,
        listener: Listener | None = None,
    ) -> None:
        reused = reused or {}
        runnable = [node for node in nodes if node.blocked is None and node.id not in reused]
        demands = fit([node.demand for node in runnable], machines) if runnable else []
        fitted = {n.id: replace(n, demand=d) for n, d in zip(runnable, demands, strict=True)}
        self.rows = {node.id: Row(node=fitted.get(node.id, node)) for node in nodes}
        self.machines = list(machines)
        self._free = list(machines)
        self._concurrent = len(self.rows) if concurrent is None else concurrent
        self._place: dict[str, int] = {}
        self._brackets: dict[str, Bracket] = {}
        self._listen = listener or (lambda event, row: None)
        self._jobs = [row.node.job for row in self.rows.values()]
        self._ranks = upward_ranks(self._jobs)
        for name, (state, reason) in reused.items():
            self.rows[name].state, self.rows[name].reason = state, reason

    def skip_blocked(self) -> None:
        """Skip what cannot run and everything that needs it."""
        for row in self.rows.values():
            if row.node.blocked is not None and row.state == "waiting":
                self._close(row, "skipped", row.node.blocked)

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""
        return all(row.state not in ("waiting", "running") for row in self.rows.values())

    @property
    def running(self) -> list[Row]:
        """Trials that train now."""
        return [row for row in self.rows.values() if row.state == "running"]

    def next(self) -> Row | None:
        """Start the most urgent trial whose needs are met and that fits; None when none does."""
        if len(self.running) >= self._concurrent:
            return None
        done = {name for name, row in self.rows.items() if row.state == "done"}
        started = {name for name, row in self.rows.items() if row.state != "waiting"}
        starts = plan(self._jobs, self._ranks, done=done, started=started, free=self._free)
        if not starts:
            return None
        name, place = starts[0]
        row = self.rows[name]
        self._place[name] = place
        self._free[place] = self._free[place].without(row.node.demand)
        row.state, row.reason, row.started = "running", "", time.monotonic()
        row.attempts += 1
        row.epochs = row.node.trial.recipe.epochs
        self._listen("start", row)
        return row

    def epoch(self, name: str, epoch: int, score: float) -> bool:
        """Record an epoch; True when the trial's bracket cuts it here."""
        row = self.rows[name]
        row.epoch = epoch
        if math.isfinite(score):
            row.score = score if math.isnan(row.score) else max(row.score, score)
        node = row.node
        if node.group is not None and node.ladder is not None:
            bracket = self._brackets.setdefault(node.group, Bracket(node.ladder))
            cut = bracket.report(name, epoch, score)
            row.reason = cut or ""
        self._listen("epoch", row)
        return bool(row.reason)

    def end(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Record how a trial ended and skip what depended on it, unless it is done."""
        row = self.rows[name]
        if row.state != "running":
            return
        row.kind = outcome.get("kind") or ""
        row.traceback = outcome.get("traceback") or ""
        row.result = outcome.get("result") or {}
        score = row.result.get("score")
        if score is not None and math.isfinite(score):
            row.score = score
        if row.node.group in self._brackets and outcome["state"] == "done":
            self._brackets[row.node.group].finish(name, row.epoch)
        self._close(row, outcome["state"], row.reason or outcome.get("reason") or "")

    def interrupt(self, reason: str) -> None:
        """Mark what trains now as stopped; what waits goes on waiting for the next invocation."""
        for row in self.running:
            row.state, row.reason, row.ended = "stopped", reason, time.monotonic()
            self._listen("end", row)

    def _close(self, row: Row, state: State, reason: str) -> None:
        place = self._place.pop(row.node.id, None)
        if place is not None:
            demand = row.node.demand
            back = replace(demand, cpus=-demand.cpus, gpus=-demand.gpus, memory=-demand.memory)
            self._free[place] = self._free[place].without(back)
        row.state, row.reason, row.ended = state, reason, time.monotonic()
        self._listen("end", row)
        if state != "done":
            for other in self.rows.values():
                if other.state == "waiting" and row.node.id in other.node.needs:
                    self._close(other, "skipped", f"needs {row.node.id}, which {_ended(state)}")


def _ended(state: State) -> str:
    return {"failed": "failed", "skipped": "was skipped", "stopped": "was stopped"}.get(
        state, f"is {state}"
    )
