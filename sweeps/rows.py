"""What a sweep knows of each trial, and what others tell it of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sharedenc.spec import State, Trial
from sweeps.faults import Kind

if TYPE_CHECKING:
    from sweeps.graph import Node

ENDED = ("done", "stopped", "failed", "skipped")


class Unresolvable(Exception):
    """A trial that can never be made although what it waits for has ended; the text says why."""


@dataclass
class Row:
    """What is known of one trial at any time.

    ``trial`` is None until it is known; ``attempts`` counts starts, those that were preempted
    left out; ``reused`` says where a finished trial was taken from; ``score`` is the best so far,
    ``speed`` in images per second; ``not_before`` is a time of the sweep's clock; ``history``
    holds (epoch, score) of search trials. ``together`` names all trials that its last attempt was
    started with, itself among them; empty when it started alone. ``seconds_per_epoch`` is its part
    of what they took, ``epoch_wall_s`` how long an epoch of all of them lasts.
    """

    node: Node
    trial: Trial | None = None
    state: State = "waiting"
    reason: str = ""
    kind: str = ""
    traceback: str = ""
    run_id: str = ""
    attempts: int = 0
    preemptions: int = 0
    reused: str = ""
    epoch: int = 0
    epochs: int = 0
    score: float = math.nan
    speed: float = math.nan
    seconds_per_epoch: float = math.nan
    started: float = math.nan
    ended: float = math.nan
    not_before: float = 0.0
    earlier: float = 0.0
    epoch_wall_s: float = math.nan
    machine: str = ""
    together: tuple[str, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)
    history: list[tuple[int, float]] = field(default_factory=list)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)

    @property
    def seconds(self) -> float:
        """Seconds of training, earlier attempts of this invocation included, up to now."""
        if math.isnan(self.started):
            return self.earlier
        return (
            self.earlier + (self.clock() if math.isnan(self.ended) else self.ended) - self.started
        )

    def take_over(self, found: Settled) -> None:
        """Become what an earlier trial came to, state and reason aside."""
        self.score, self.run_id, self.reused = found.score, found.run_id, found.reused
        self.attempts, self.history = found.attempts, list(found.history)
        self.epoch = self.history[-1][0] if self.history else 0
        self.trial = found.trial or self.trial

    @property
    def kind_of_trial(self) -> Kind:
        """Backbone and graph, whose code it runs."""
        return self.node.cell.backbone, self.node.cell.graph


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What an earlier trial with the same content key came to.

    ``trial`` is the one that was really trained, where it is only compatible: what starts from it
    has its key.
    """

    state: State
    reason: str
    score: float
    run_id: str
    reused: str
    attempts: int
    history: list[tuple[int, float]] = field(default_factory=list)
    trial: Trial | None = None


Listener = Callable[[str, Row], None]
Resolve = Callable[["Node", Mapping[str, Row]], Trial]


class Estimates(Protocol):
    """Learns durations from epochs as they arrive."""

    def epoch(self, row: Row, seconds: float) -> None:
        """One epoch of a trial took this long."""

    def finished(self, name: str, epochs: int, *, by_itself: bool = True) -> None:
        """A trial ended for good after so many epochs."""

    def works(self) -> Mapping[str, float]:
        """New estimates in seconds by node id, since the last call; empty when none changed."""


def as_given(node: Node, rows: Mapping[str, Row]) -> Trial:
    """The trial that a node carries already."""
    if node.trial is None:
        raise Unresolvable("its trial is not known")
    return node.trial
