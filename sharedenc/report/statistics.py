"""Statistics over seeds: mean, standard deviation, and paired differences with an interval.

Two cells are compared by the differences of trials with the same seed: what a seed does to both
(the order of the pictures, the first values of a head) then cancels. The interval is Student's,
which takes the differences as normal; with few seeds it is wide, and that is the truth about few
seeds. Pure functions of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its interval; ``low`` and ``high`` need two pairs.

    Attributes:
        mean: Mean difference, in the unit of the values.
        pairs: Seeds that both sides have.
        low: Lower end of the interval, None with one pair.
        high: Upper end, likewise.
    """

    mean: float
    pairs: int
    low: float | None = None
    high: float | None = None

    @property
    def apart(self) -> bool | None:
        """Whether the two sides can be told apart: 0 is outside; None when one pair cannot say."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 0.0 <= self.high

    def scaled(self, factor: float) -> Difference:
        """The same difference in another unit; ``factor`` is positive."""
        if self.low is None or self.high is None:
            return Difference(self.mean * factor, self.pairs)
        return Difference(self.mean * factor, self.pairs, self.low * factor, self.high * factor)


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divisor n - 1); None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Differences ``values - base`` over the seeds that both have; None when they share none.

    Args:
        values: Score by seed.
        base: The baseline's score by seed, in the same unit.
    """
    seeds = sorted(values.keys() & base.keys())
    if not seeds:
        return None
    return of_differences([values[seed] - base[seed] for seed in seeds])


def of_differences(differences: Sequence[float]) -> Difference:
    """Mean and two-sided 95 % interval of at least one difference: ``mean +- t * sd / sqrt(n)``."""
    mean, pairs = fmean(differences), len(differences)
    spread = deviation(differences)
    if spread is None:
        return Difference(mean, pairs)
    half = t_quantile(pairs - 1) * spread / math.sqrt(pairs)
    return Difference(mean, pairs, mean - half, mean + half)


@cache
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(-t <= T <= t) = ``confidence`` for a whole number of degrees of freedom."""
    if freedom < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"degrees of freedom {freedom} and confidence {confidence} have no t quantile; "
            "they must be at least 1 and between 0 and 1"
        )
    # The angle of `_within` is bounded where t is not, so it is the angle that is halved.
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= t) with ``t = sqrt(freedom) * tan(angle)``, as a finite series.

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(freedom // 2):
        total += term
        over, under = (2 * k + 2, 2 * k + 3) if odd else (2 * k + 1, 2 * k + 2)
        term *= cosine * cosine * over / under
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
