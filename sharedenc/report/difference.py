"""Ours minus the published number, and whether that is more than the noise between seeds."""

from __future__ import annotations

import math

from sharedenc.report.changes import Figure
from sharedenc.report.statistics import t_quantile

NOT_PRINTED = "nothing is printed there"


def difference(ours: Figure, printed: float | None, decimals: int) -> Figure:
    """Ours minus the printed number; of percentages that is in percentage points.

    The printed number is one run. Its interval is therefore that of our mean less one further run
    (a 95 % prediction interval from the spread of our seeds, widened by half of the last of the
    printed ``decimals``); with one seed there is none, and nothing says whether the two differ.
    """
    if printed is None:
        return Figure.missing(NOT_PRINTED)
    if ours.value is None or not math.isfinite(ours.value):
        return Figure.missing(ours.why or "not a number")
    found = ours.value - printed
    half = _half_width(ours)
    if half is None:
        return Figure(found, runs=ours.runs, compared=True)
    half += 0.5 * 10.0**-decimals
    return Figure(found, None, found - half, found + half, ours.runs, compared=True)


def _half_width(ours: Figure) -> float | None:
    """Of the interval for one further run beside the mean of ours."""
    if ours.runs < 2:
        return None
    if ours.sd is not None:
        return t_quantile(ours.runs - 1) * ours.sd * math.sqrt(1 + 1 / ours.runs)
    if ours.low is not None and ours.high is not None:
        # The interval of a mean change is t * sd / sqrt(n).
        return (ours.high - ours.low) / 2 * math.sqrt(ours.runs + 1)
    return None
