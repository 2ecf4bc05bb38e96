"""R10: how long a sweep takes in the best order, against one Tuner per phase, simulated.

The reference is what a script does that calls ``Tuner.fit()`` once per strategy and freeze mode:
baselines, then swaps and shared encoders in each of their freeze modes, then duals. Each phase goes
in grid order and waits for the last trial of the one before. Both sides get the same trials and
devices; only the order differs.

Further rows compare the best order with itself where frozen trials of an encoder may train
together: sooner on few devices and, where durations are known, as soon on many.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from benchmarks.protocol import Duel, Side, Unequal, load_average, result
from sweeps.simulate import (
    Durations,
    Outcome,
    Span,
    Virtual,
    fused_bound,
    gpus,
    simulate,
    workload,
)

TABLE = ((44, 8), (352, 8), (352, 32), (1056, 32), (1056, 128), (4400, 128), (4400, 512))
FEW_TO_MANY = ((44, 1), (44, 8), (352, 8), (352, 32), (1056, 32), (1056, 128), (4400, 512))
HOUR = 3600.0


def run(rounds: int) -> list[dict[str, Any]]:
    """A row per size and per what the policy knows of durations; means over seeds 0, 1, ..."""
    rows = []
    for durations in ("known", "estimated"):
        for trials, devices in TABLE:
            rows.append(_row(trials, devices, durations, rounds))
        for trials, devices in FEW_TO_MANY:
            rows.append(_together(trials, devices, durations, rounds))
    return rows


def _row(trials: int, devices: int, durations: Durations, rounds: int) -> dict[str, Any]:
    load = load_average()
    reference = ours = bound = 0.0
    for seed in range(rounds):
        work = workload(trials, seed)
        theirs = phases(work, devices)
        outcome = simulate(work, gpus(devices), durations=durations, seed=seed)
        check(work, outcome)
        reference += theirs.figure / rounds
        ours += outcome.makespan / HOUR / rounds
        bound += outcome.bound / HOUR / rounds
        load = max(load, load_average())
    return result(
        "R10",
        f"{trials} trials on {devices} GPUs, durations {durations}",
        Duel(reference, ours, rounds, load),
        unit="h",
        check="same trials, each once, none before what it waits for",
        limit=bound,
    )


def _together(trials: int, devices: int, durations: Durations, rounds: int) -> dict[str, Any]:
    load = load_average()
    alone = ours = bound = 0.0
    for seed in range(rounds):
        work = workload(trials, seed)
        apart = simulate(work, gpus(devices), durations=durations, seed=seed)
        together = simulate(work, gpus(devices), durations=durations, seed=seed, fuse=True)
        check(work, apart)
        check_together(work, devices, together)
        alone += apart.makespan / HOUR / rounds
        ours += together.makespan / HOUR / rounds
        bound += fused_bound(work, devices) / HOUR / rounds
        load = max(load, load_average())
    return result(
        "R10",
        f"{trials} trials on {devices} GPUs, frozen ones together against alone, "
        f"durations {durations}",
        Duel(alone, ours, rounds, load),
        unit="h",
        check="same trials, each once, none before what it waits for, what is shared made once",
        limit=bound,
    )


def phases(trials: Sequence[Virtual], devices: int) -> Side:
    """One strategy and freeze mode after the other, in grid order; hours, and the trials run."""

    def phase(trial: Virtual) -> tuple[int, str]:
        order = ("baseline", "swap", "share", "dual")
        return order.index(trial.cell.strategy), trial.cell.freeze

    now = 0.0
    done: list[str] = []
    for _, members in groupby(sorted(trials, key=phase), key=phase):
        free = [now] * devices
        for trial in members:
            end = heapq.heappop(free) + trial.seconds
            heapq.heappush(free, end)
            done.append(trial.id)
        now = max(free)
    return Side(now / HOUR, sorted(done))


def check(trials: Sequence[Virtual], outcome: Outcome) -> None:
    """Every trial ran once, for its time, and after what it waits for.

    Raises:
        Unequal: not so.
    """
    spans = _in_order(trials, outcome)
    for trial in trials:
        span = spans[trial.id]
        if abs(span.end - span.start - trial.seconds) > 1e-6 * trial.seconds:
            raise Unequal(f"{trial.id} took {span.end - span.start} s, not {trial.seconds} s")


def check_together(trials: Sequence[Virtual], devices: int, outcome: Outcome) -> None:
    """Every trial ran once, after what it waits for, in groups of one encoder on one device each.

    A group takes the longest of what its trials share, and all that is their own.

    Raises:
        Unequal: not so.
    """
    _in_order(trials, outcome)
    by_id = {trial.id: trial for trial in trials}
    occupied = []
    for group in outcome.groups:
        members = [by_id[span.id] for span in group]
        keys = {trial.fusion for trial in members}
        if len(members) > 1 and (len(keys) > 1 or None in keys):
            raise Unequal(f"{', '.join(t.id for t in members)} have not one frozen encoder")
        shared = [trial.seconds * trial.shared for trial in members]
        own = sum(trial.seconds for trial in members) - sum(shared)
        start, end = group[0].start, max(span.end for span in group)
        if abs(end - start - max(shared) - own) > 1e-6 * (end - start):
            raise Unequal(f"{members[0].id} and others took {end - start} s")
        occupied += [(start, 1), (end, -1)]
    now = 0
    for _, change in sorted(occupied):
        now += change
        if now > devices:
            raise Unequal(f"more than {devices} devices were in use")


def _in_order(trials: Sequence[Virtual], outcome: Outcome) -> dict[str, Span]:
    spans = {span.id: span for span in outcome.spans}
    if len(outcome.spans) != len(trials):
        raise Unequal(f"{len(trials)} trials, {len(outcome.spans)} attempts")
    for trial in trials:
        before = (*trial.needs, *trial.after)
        late = [name for name in before if spans[name].end > spans[trial.id].start]
        if late:
            raise Unequal(f"{trial.id} started before {late[0]} had ended")
    return spans
