"""Energy from samples of power."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any


class PowerCurve:
    """Power over time as straight lines between samples.

    Args:
        samples: Time in s and power in W, in the order of time.
    """

    def __init__(self, samples: Sequence[tuple[float, float]]) -> None:
        self._times = [at_s for at_s, _ in samples]
        self._watts = [watts for _, watts in samples]
        pieces = [(b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(samples)]
        self._joules = list(accumulate(pieces, initial=0.0))

    @property
    def length_s(self) -> float:
        """Time from the first sample to the last."""
        return self._times[-1] - self._times[0] if self._times else 0.0

    def energy_j(self) -> float:
        """Energy from the first sample to the last, by the trapezoid rule."""
        return self._joules[-1]

    def busiest_j(self, length_s: float) -> float:
        """Energy of that stretch of `length_s` in which most was used.

        A timing is the longest and heaviest part of its process's life: what comes before it
        (loading) and after it (statistics) draws less, so the stretch lies within warm-up and
        timing, which draw the same.
        """
        if length_s >= self.length_s:
            return self.energy_j() * (length_s / self.length_s if self.length_s else 0.0)
        last = self._times[-1] - length_s
        starts = [at_s for at_s in self._times if at_s < last]
        return max(self._until(start + length_s) - self._until(start) for start in [*starts, last])

    def _until(self, at_s: float) -> float:
        """Energy from the first sample to `at_s`."""
        left = min(bisect_right(self._times, at_s), len(self._times) - 1) - 1
        span_s = self._times[left + 1] - self._times[left]
        part_s = at_s - self._times[left]
        slope = (self._watts[left + 1] - self._watts[left]) / span_s if span_s else 0.0
        return self._joules[left] + part_s * (self._watts[left] + slope * part_s / 2)


def mj_per_inference(conditions: Mapping[str, Any], queries: float) -> float | None:
    """Energy of one inference in mJ, of the whole board, idle power included.

    Args:
        conditions: As `jetson_agent.conditions.Watch.result` gives them for the timed seconds.
        queries: How many were served in these seconds.

    Returns:
        None without a power sensor.
    """
    energy_j = conditions.get("energy_j")
    return None if energy_j is None or queries <= 0 else energy_j / queries * 1000
