"""What happens to a trial that did not end by itself: again, when, at whose expense, or never.

Code and data faults would come again and are not retried. A machine's fault is retried a few
times, a preemption is nobody's fault, and a trial out of memory gets one try with a whole device.
Trials that trained together are each tried alone after a fault of machine or memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sharedenc.spec import Recipe, Trial
from sweeps.order import Demand, Machine
from sweeps.resources import memory_bytes

Kind = tuple[str, str]
"""Backbone and graph: trials of one kind run the same code."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How long a sweep insists, and where it stops by itself.

    Args:
        machine_attempts: Starts of a trial that machine faults may use up, in one invocation.
        backoff_s, backoff_max_s: Wait before the next try; it doubles with every fault.
        preemptions: Most preemptions of a trial; they are never charged.
        machine_wait_s: How long trials wait for a machine that could hold them, when nothing runs;
            and for how long a cluster that can grow is expected to, before trials share more of it.
        max_concurrent: Most trials at once; None for as many as fit.
        max_gpu_hours: Device hours (on machines without GPUs: trial hours) after which nothing
            more is started.
        hold_back: Whether a bug in the first trial of a kind keeps its siblings waiting.
    """

    machine_attempts: int = 3
    backoff_s: float = 5.0
    backoff_max_s: float = 300.0
    preemptions: int = 50
    machine_wait_s: float = 900.0
    max_concurrent: int | None = None
    max_gpu_hours: float | None = None
    hold_back: bool = True


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Try again after ``delay_s``; ``whole``: with a whole device; ``charged``: as an attempt."""

    delay_s: float
    charged: bool = True
    whole: bool = False


@dataclass
class Faults:
    """The faults of one trial in this invocation; ``idle`` counts preemptions without progress."""

    machine: int = 0
    oom: int = 0
    preempted: int = 0
    idle: int = 0
    epoch: int = 0

    def judge(
        self, outcome: Mapping[str, Any], epoch: int, rules: Rules, *, together: bool = False
    ) -> Retry | None:
        """Count this end of a trial that had finished ``epoch`` epochs; None when it was final.

        Of trials that ran out of memory ``together`` nobody knows yet whether they do alone.
        """
        if outcome["state"] == "preempted":
            self.preempted += 1
            self.idle = 0 if epoch > self.epoch else self.idle + 1
            self.epoch = epoch
            if self.preempted > rules.preemptions:
                return None
            return Retry(delay_s=backoff(self.idle, rules), charged=False)
        if outcome.get("kind") == "machine":
            self.machine += 1
            if self.machine >= rules.machine_attempts:
                return None
            return Retry(delay_s=backoff(self.machine - 1, rules))
        if outcome.get("kind") == "oom" and together:
            return Retry(delay_s=0.0)
        if outcome.get("kind") == "oom":
            self.oom += 1
            return Retry(delay_s=0.0, whole=True) if self.oom == 1 else None
        return None

    def last_reason(self, outcome: Mapping[str, Any]) -> str:
        """The reason of an end that is final, with the number of tries before it."""
        reason = outcome.get("reason") or "no reason given"
        if outcome["state"] == "preempted":
            return f"preempted {self.preempted} times, last: {reason}"
        if outcome.get("kind") == "machine" and self.machine > 1:
            return f"{reason} (attempt {self.machine} of {self.machine})"
        return reason


def backoff(before: int, rules: Rules) -> float:
    """Seconds to wait after ``before`` earlier faults of the same sort."""
    return min(rules.backoff_s * 2.0 ** min(before, 30), rules.backoff_max_s)


def whole(demand: Demand, machines: list[Machine]) -> Demand:
    """The demand enlarged to a whole GPU, or without GPUs to the machine with most memory."""
    if demand.gpus:
        return replace(demand, gpus=max(demand.gpus, 1.0))
    able = [m for m in machines if m.holds(replace(demand, memory=0))]
    if not able:
        return demand
    largest = max(able, key=lambda m: (m.memory, m.cpus))
    return Demand(cpus=largest.cpus, memory=largest.memory)


def smaller_batch(trial: Trial, memory: int) -> int:
    """A batch size that should fit into ``memory`` bytes: at most half of what did not."""

    def needs(batch: int) -> int:
        recipe: Recipe = replace(trial.recipe, batch_size=batch)
        return memory_bytes(trial.cell, recipe, trial.numerics)

    batch = max(trial.recipe.batch_size // 2, 1)
    while batch > 1 and memory and needs(batch) > memory:
        batch //= 2
    return batch


@dataclass
class HoldBack:
    """Kinds of trials whose first one failed on a bug before its first epoch.

    ``held`` gives the reason by kind; a kind that has finished an epoch is never held again.
    """

    proved: set[Kind] = field(default_factory=set)
    held: dict[Kind, str] = field(default_factory=dict)

    def epoch(self, kind: Kind) -> bool:
        """A trial of this kind finished an epoch; True when that frees its siblings."""
        self.proved.add(kind)
        return self.held.pop(kind, None) is not None

    def failure(self, kind: Kind, name: str, outcome: Mapping[str, Any], epoch: int) -> bool:
        """A trial failed for good; True when that holds its siblings back from now on."""
        bug = outcome.get("kind") == "code" and outcome.get("error") != "NonFiniteLossError"
        if not bug or epoch > 0 or kind in self.proved or kind in self.held:
            return False
        first_line = (outcome.get("reason") or "no reason given").splitlines()[0]
        self.held[kind] = f"held back: {name} failed before its first epoch ({first_line})"
        return True
