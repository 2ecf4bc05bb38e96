"""Asks the tracking server for a board's timings and tells the sweep what they decide."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jetson_agent.protocol import INT8_FILES, MODEL_FILE, QUANTIZED, Seen
from sharedenc.errors import TrackingError
from sharedenc.spec import Recipe
from sweeps.budget import GRAPHS, Budget, Figure, Figures, judge

if TYPE_CHECKING:
    from sharedenc.export.bench import BenchRow
    from sweeps.graph import Node
    from sweeps.state import SweepState

Place = tuple[str, str]
"""Backbone and graph."""

# How often the server is asked while trials are withheld.
POLL_S = 10.0
# A board that builds an engine may say nothing for as long as that takes.
ALIVE_S = 1800.0


class Timings(Protocol):
    """The part of `sharedenc.export.bench.Bench` that is needed here."""

    def rows(self, device: str) -> list[BenchRow]: ...

    def seen(self, device: str) -> list[Seen]: ...


@dataclass
class BudgetWatch:
    """Withholds what is undecided, skips what is too slow, and gives up after a while.

    Args:
        architectures: Digests of the untrained files, by backbone and graph.
        image_px: What they were exported with.
        missing: Why a graph has no architecture (its export failed), by backbone and graph.
    """

    budget: Budget
    timings: Timings
    nodes: Sequence[Node]
    architectures: Mapping[Place, frozenset[str]]
    image_px: int
    note: Callable[[str], None]
    missing: Mapping[Place, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    _begun: float = math.nan
    _asked: float = -math.inf
    _over: bool = False
    _told: set[str] = field(default_factory=set)

    def beat(self, state: SweepState) -> None:
        """Look again, if it is time to; called at every beat of the sweep."""
        if self._over or self.clock() - self._asked < POLL_S:
            return
        self._asked = self.clock()
        if math.isnan(self._begun):
            self._begun = self._asked
        try:
            rows = self.timings.rows(self.budget.device)
            seen = self.timings.seen(self.budget.device)
        except TrackingError as error:
            self._say(f"latency budget: no timings are read: {error}")
            rows, seen = [], None
        figures = self.figures(rows)
        for (backbone, graph), figure in figures.items():
            known = figure.unsupported or not math.isnan(figure.ms)
            if not known and (backbone, graph) not in self.missing:
                why = figure.mark or f"its timing has no {self.budget.stat}"
                self._say(f"latency budget: {backbone} {graph} is not judged: {why}")
        self._apply(state, figures, seen)

    def figures(self, rows: Iterable[BenchRow]) -> dict[Place, Figure]:
        """What the board says of each graph, of one power mode; the newest of each counts."""
        budget = self.budget
        fitting = [
            row
            for row in rows
            if row.precision == budget.precision and row.load == "single" and not row.stale
        ]
        mode = budget.mode or (fitting[-1].mode if fitting else "")
        found = {place: Figure(mark=why) for place, why in self.missing.items()}
        for row in fitting:
            if row.mode != mode:
                continue
            for place, digests in self.architectures.items():
                # A job that failed for good takes no figure's place, but is not waited for.
                failed = row.verdict == "failed"
                if row.architecture in digests and not (failed and place in found):
                    found[place] = _figure(row, budget)
        return found

    def _apply(self, state: SweepState, figures: Figures, seen: Sequence[Seen] | None) -> None:
        decided = judge(self.nodes, figures, self.budget, self.image_px)
        waiting = [name for name, row in state.rows.items() if row.state == "waiting"]
        # From the end of each chain: what is skipped here needs no second reason.
        for name in reversed(waiting):
            if decided[name].decision == "skip":
                state.skip(name, decided[name].why)
        unknown = {
            name: decided[name].why
            for name in waiting
            if decided[name].decision == "unknown" and state.rows[name].state == "waiting"
        }
        why_not = self._why_not_wait(seen) if unknown else ""
        if why_not:
            self._say(f"latency budget: {why_not}; {len(unknown)} trials go on without it")
        state.withhold({} if why_not else unknown)
        self._over = bool(why_not) or not unknown

    def _why_not_wait(self, seen: Sequence[Seen] | None) -> str:
        waited = self.clock() - self._begun
        device = self.budget.device
        if waited > self.budget.wait_s:
            return f"{device} has not timed everything within {self.budget.wait_s:.0f} s"
        if seen is None:
            return ""
        if not seen:
            return (
                f"no agent of device {device} has ever answered this server (start `jetson-agent "
                "run` on the board, and run the same command again)"
            )
        silent = self.now() - seen[0].at
        if silent > ALIVE_S:
            return f"the agent of {device} has been silent for {silent / 60:.0f} min"
        self._say(f"latency budget: waiting for {device} ({self.budget.what})")
        return ""

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.note(text)


def _figure(row: BenchRow, budget: Budget) -> Figure:
    if row.verdict == "unsupported":
        reason = row.reasons or "no reason given"
        return Figure(unsupported=f"{budget.precision} on {budget.device}: {reason}")
    if row.verdict == "failed":
        return Figure(mark=f"failed: {row.reasons or 'no reason given'}")
    # Wrong outputs of random weights are no verdict on trained ones; the time is what it is.
    value = row.metrics.get(f"latency_ms/{budget.stat}", math.nan)
    return Figure(ms=value, mark="" if row.verdict == "valid" else row.verdict)


def open_watch(
    budget: Budget,
    nodes: Sequence[Node],
    waiting: Sequence[Node],
    *,
    uri: str,
    study: str,
    pack: Path,
    recipe: Recipe,
    note: Callable[[str], None],
) -> BudgetWatch:
    """Register the untrained graphs of what waits, for the board to time.

    Args:
        nodes: The whole study.
        waiting: The nodes that nobody has trained yet.
        pack: The packed data set, for the calibration of INT8.

    Raises:
        TrackingError: the server is away.
    """
    from sharedenc.data.packed import PackedDataset
    from sharedenc.export.bench import Bench
    from sharedenc.export.calibration import Calibration
    from sharedenc.export.untrained import export_untrained

    architectures: dict[Place, frozenset[str]] = {}
    missing: dict[Place, str] = {}
    int8 = Calibration(pack=PackedDataset.open(pack), shown=False)
    for backbone in dict.fromkeys(node.cell.backbone for node in waiting):
        note(f"latency budget: untrained graphs of {backbone} for {budget.device}")
        for row in export_untrained(uri, study, [backbone], GRAPHS, int8=int8, recipe=recipe):
            place = backbone, row.graph
            digests = _digests(row.architectures, budget.precision)
            if digests:
                architectures[place] = digests
            else:
                missing[place] = row.reason or row.int8_reason or "it could not be exported"
        for name in GRAPHS:
            if (backbone, name) not in architectures:
                missing.setdefault((backbone, name), "the data has not all of its tasks")
    for (backbone, graph), why in missing.items():
        note(f"latency budget: {backbone} {graph} is not judged: {why}")
    return BudgetWatch(
        budget=budget,
        timings=Bench(uri),
        nodes=nodes,
        architectures=architectures,
        image_px=recipe.image_px,
        note=note,
        missing=missing,
    )


def _digests(architectures: Mapping[str, str], precision: str) -> frozenset[str]:
    """Those of the files that a precision is timed with, by whichever backend."""
    names = set(INT8_FILES.values()) if precision in QUANTIZED else {MODEL_FILE}
    return frozenset(architectures[name] for name in names & set(architectures))
