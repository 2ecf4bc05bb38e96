"""How many processes load a trial's batches: as few as keep its steps from waiting, by measurement.

The number changes no batch (`sharedenc.data.batch`), so it may change while a trial runs.
"""

from __future__ import annotations

import math
from statistics import median

PROBES = 4
"""Batches that are made in the trial's own process first; the first of them is warm-up."""
START_S = 0.1
"""What it takes to start and end a loader process in every epoch: measured 0.10 s, of two 0.19."""
MOST_IDLE = 0.02
"""Part of its time that a step may wait for data."""


def processes_needed(made_s: float, kept_s: float, batches: int, most: int) -> int:
    """The fewest processes that make batches as fast as they are used.

    Args:
        made_s: Seconds in which one process makes a batch.
        kept_s: Seconds for which a step keeps one.
        batches: Still to come in this epoch.
        most: Never more than this.

    Returns:
        0 when the trial's own process loses less by making the batches itself than it takes to
        start another.
    """
    if most < 1 or made_s * batches <= max(START_S, MOST_IDLE * kept_s * batches):
        return 0
    if kept_s <= 0:
        return most
    return min(most, math.ceil(made_s / (kept_s * (1 + MOST_IDLE))))


class Loaders:
    """Measures one loop over batches, epoch after epoch, and says how many processes it needs.

    Training and validation take different steps, so that each has one of its own.
    """

    def __init__(self, most: int) -> None:
        """
        Args:
            most: The trial's share of the machine's cores that is free for loading.
        """
        self.most = most
        self._made_s: list[float] = []
        self._kept_s: list[float] = []

    @property
    def probes(self) -> int:
        """How many batches are to be made in the trial's own process before anything is known."""
        return 0 if self.most < 1 or self._made_s else PROBES

    def note(self, made_s: float, kept_s: float) -> None:
        """Take note of a batch: how long it took to make, and how long the step kept it."""
        self._made_s.append(made_s)
        self._kept_s.append(kept_s)

    def count(self, batches: int) -> int:
        """Processes for the next so many batches, by the batches noted since this was asked last.

        The first is left out where there are more: it waits for disks, caches and kernels.
        """
        first = 1 if len(self._made_s) > 1 else 0
        made_s, kept_s = self._made_s[first:], self._kept_s[first:]
        self._made_s, self._kept_s = self._made_s[-1:], self._kept_s[-1:]
        if not made_s:
            return 0
        return processes_needed(median(made_s), median(kept_s), batches, self.most)
