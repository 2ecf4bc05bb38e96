"""R10: how long a sweep takes in the best order, against one Tuner per strategy, simulated.

The reference is what a script does that calls ``Tuner.fit()`` once per strategy: baselines, then
swaps, then shared encoders, then duals, each in grid order, each waiting for the last trial of the
one before. Both sides get the same trials and devices; only the order differs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from benchmarks.protocol import Duel, Side, Unequal, load_average, result
from sweeps.simulate import Durations, Outcome, Virtual, gpus, simulate, workload

TABLE = ((44, 8), (352, 8), (352, 32), (1056, 32), (1056, 128), (4400, 128), (4400, 512))
HOUR = 3600.0


def run(rounds: int) -> list[dict[str, Any]]:
    """A row per size and per what the policy knows of durations; means over seeds 0, 1, ..."""
    rows = []
    for durations in ("known", "estimated"):
        for trials, devices in TABLE:
            rows.append(_row(trials, devices, durations, rounds))
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
    spans = {span.id: span for span in outcome.spans}
    if len(outcome.spans) != len(trials):
        raise Unequal(f"{len(trials)} trials, {len(outcome.spans)} attempts")
    for trial in trials:
        span = spans[trial.id]
        if abs(span.end - span.start - trial.seconds) > 1e-6 * trial.seconds:
            raise Unequal(f"{trial.id} took {span.end - span.start} s, not {trial.seconds} s")
        late = [name for name in (*trial.needs, *trial.after) if spans[name].end > span.start]
        if late:
            raise Unequal(f"{trial.id} started before {late[0]} had ended")
