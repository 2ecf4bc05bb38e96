"""The words in which a sweep's state is told, in one place for every display."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sweeps.resources import slots

if TYPE_CHECKING:
    from sweeps.order import Demand, Machine
    from sweeps.state import Row, SweepState


def headline(state: SweepState, works: Mapping[str, float] | None = None) -> str:
    """Counts and the time left: ``12/48 done, 2 running, 34 waiting, about 6:10 left``."""
    rows = list(state.rows.values())
    counts = Counter(row.state for row in rows)
    parts = [f"{counts['done'] + counts['stopped']}/{len(rows)} done"]
    reused = sum(bool(row.reused) for row in rows)
    if reused:
        parts[0] += f" ({reused} reused)"
    parts += [f"{counts[name]} {name}" for name in ("running", "waiting")]
    parts += [f"{counts[name]} {name}" for name in ("failed", "skipped") if counts[name]]
    demands = [state.demand(row.node.id) for row in rows if row.state in ("running", "waiting")]
    most = state.rules.max_concurrent
    left = time_left(rows, places(state.machines, demands, most), works)
    if state.stopping:
        parts.append(state.stopping)
    elif left is not None:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def places(machines: Iterable[Machine], demands: Iterable[Demand], most: int | None = None) -> int:
    """Trials that run at once: as many of the largest demand as the machines hold."""
    demand = max(demands, key=lambda d: (d.gpus, d.cpus, d.memory), default=None)
    if demand is None:
        return 1
    held = sum(slots(machine, demand) for machine in machines)
    return max(min(held, most) if most is not None else held, 1)


def time_left(
    rows: Iterable[Row], devices: int, works: Mapping[str, float] | None = None
) -> float | None:
    """Seconds until the last trial ends; None while nothing says how long one takes.

    Args:
        rows: All trials.
        devices: Trials that run at once.
        works: Estimated seconds by trial. Without them the work of a node counts in a unit of its
            own, which the trials that are done, or else the epochs that are, turn into seconds.
    """
    rows = list(rows)
    works = works or {}
    pace = _pace(rows) if not works else 1.0
    if pace is None:
        return None
    total, longest = 0.0, 0.0
    for row in rows:
        if row.state not in ("waiting", "running"):
            continue
        left = works.get(row.node.id, row.node.work) * pace
        if row.state == "running":
            most = row_time_left(row)
            if row.together:
                left = left if most is None else most
            else:
                left = max(left - row.seconds, 0.0)
                left = left if most is None else min(left, most) if left else most
        total, longest = total + left * _part(row), max(longest, left)
    return max(total / max(devices, 1), longest)


def _pace(rows: Iterable[Row]) -> float | None:
    """Seconds per unit of a node's work, from trials that ended by themselves or from epochs."""
    done, epochs = [], []
    for row in rows:
        if row.state == "done" and not row.reused and row.seconds > 0:
            done.append((row.seconds * _part(row), row.node.work))
        elif row.state == "running" and math.isfinite(row.seconds_per_epoch):
            epochs.append((row.seconds_per_epoch * row.epochs, row.node.work))
    known = done or epochs
    work = sum(work for _, work in known)
    return sum(seconds for seconds, _ in known) / work if work > 0 else None


def _part(row: Row) -> float:
    """A trial's part of the device time while it trains with others; 1 alone."""
    part = row.seconds_per_epoch / row.epoch_wall_s if row.epoch_wall_s else math.nan
    return part if math.isfinite(part) else 1.0 / max(len(row.together), 1)


def row_time_left(row: Row) -> float | None:
    """Seconds until a running trial's last epoch, should it run them all; None before the first."""
    wall = row.epoch_wall_s if math.isfinite(row.epoch_wall_s) else row.seconds_per_epoch
    if not math.isfinite(wall) or not row.epochs:
        return None
    return max(row.epochs - row.epoch, 0) * wall


def describe(row: Row) -> str:
    """One running trial in a few words."""
    text = f"{row.node.id} epoch {epoch_text(row)} score {score_text(row)}"
    if math.isfinite(row.speed):
        text += f" {row.speed:.0f} img/s"
    left = row_time_left(row)
    return text if left is None else f"{text} {duration(left)} left"


def others_text(names: Sequence[str]) -> str:
    """Those that a trial trains with: ``resnet18/share-frozen/seg and 2 more``."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def failure_text(row: Row) -> str:
    """Why a trial failed: ``resnet18/dual: data: no such picture``."""
    kind = f"{row.kind}: " if row.kind else ""
    return f"{row.node.id}: {kind}{row.reason.splitlines()[0] if row.reason else 'no reason given'}"


def retry_text(row: Row, state: SweepState) -> str:
    """When a trial is tried again and why: ``attempt 2 of 3 in 20 s: the worker died``."""
    left = row.not_before - state.clock()
    when = f"in {left:.0f} s" if left >= 1 else "as soon as there is room"
    if row.kind == "machine":
        text = f"attempt {row.attempts + 1} of {state.rules.machine_attempts} {when}"
    elif row.kind == "oom":
        how = "alone" if row.together else "with a whole device"
        text = f"once more {how} {when}"
    else:
        text = f"goes on {when}, not charged"
    return f"{text}: {row.reason.splitlines()[0]}" if row.reason else text


def epoch_text(row: Row) -> str:
    """``3/60``."""
    return f"{row.epoch}/{row.epochs}"


def score_text(row: Row) -> str:
    """The best score so far, ``-`` before the first epoch."""
    return "-" if math.isnan(row.score) else f"{row.score:.3f}"


def duration(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
