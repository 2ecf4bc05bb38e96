"""Which training curves a report shows, and how a long one is thinned. Nothing here reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sharedenc.report.collect import TrialRow

METRICS = ("train/loss", "val/loss", "val/mAP", "val/mIoU")
"""What a curve is shown of, where a trial has it."""
MOST_TRIALS, MOST_POINTS = 60, 200

Points = tuple[tuple[int, float], ...]
"""Epoch and value, by rising epoch."""


def representative(trials: Iterable[TrialRow]) -> list[TrialRow]:
    """One trial for each cell: the finished one with the best score, else the newest."""
    best: dict[str, TrialRow] = {}
    for row in trials:
        known = best.get(row.cell)
        if known is None or _rank(row) > _rank(known):
            best[row.cell] = row
    return list(best.values())


def _rank(row: TrialRow) -> tuple[bool, float, int]:
    done = row.state == "done"
    return (done, row.metrics.get("score", -math.inf) if done else 0.0, row.changed_ms)


def shown_trials(trials: Sequence[TrialRow]) -> tuple[list[TrialRow], list[str]]:
    """The trials whose curves are shown, and notes on what is left out."""
    trained = [row for row in trials if any(metric in row.metrics for metric in METRICS)]
    if len(trained) <= MOST_TRIALS:
        return trained, []
    chosen = representative(trained)
    notes = []
    if len(chosen) < len(trained):
        notes.append(
            f"Training curves: those of {len(chosen)} of {len(trained)} trials, one for each cell "
            "(the seed with the best score); the others are in MLflow."
        )
    return chosen, notes


def thinned(points: Iterable[tuple[int, float]], metric: str) -> Points:
    """At most 200 points, evenly spread; the first, the last and the best are among them.

    Of several values of one epoch the last counts; those that are not finite are left out.
    """
    whole = sorted({step: value for step, value in points if math.isfinite(value)}.items())
    if len(whole) <= MOST_POINTS:
        return tuple(whole)
    better = min if "loss" in metric else max
    best = better(range(len(whole)), key=lambda place: whole[place][1])
    gaps = MOST_POINTS - 2
    places = {round(k * (len(whole) - 1) / gaps) for k in range(gaps + 1)} | {best}
    return tuple(whole[place] for place in sorted(places))
