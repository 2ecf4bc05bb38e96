"""What a printed number may have been before it was rounded, and arithmetic on that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A number that is known to lie between ``low`` and ``high``; ``value`` is as printed."""

    low: float
    value: float
    high: float

    @classmethod
    def printed(cls, value: float, decimals: int) -> Interval:
        """A number rounded to so many decimals."""
        half = 0.5 * 10.0**-decimals
        return cls(value - half, value, value + half)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.value + other.value, self.high + other.high)

    def __sub__(self, other: Interval) -> Interval:
        return Interval(self.low - other.high, self.value - other.value, self.high - other.low)

    def over(self, other: Interval) -> Interval:
        """The quotient of two positive numbers."""
        return Interval(self.low / other.high, self.value / other.value, self.high / other.low)

    def scaled(self, factor: float) -> Interval:
        """Times a positive factor."""
        return Interval(self.low * factor, self.value * factor, self.high * factor)

    def less(self, value: float) -> Interval:
        """Minus an exact number."""
        return Interval(self.low - value, self.value - value, self.high - value)

    def meets(self, low: float, high: float) -> bool:
        """Whether it may be one of the numbers between two, both included."""
        # Far below any printed digit, and above what sums of floats are off by.
        slack = 1e-9
        return self.low <= high + slack and low <= self.high + slack


def change(of: Interval, base: Interval) -> Interval:
    """Relative change of two positive numbers in percent."""
    return of.over(base).less(1.0).scaled(100.0)


def mean(found: Sequence[Interval]) -> Interval:
    """Mean of at least one."""
    total = found[0]
    for each in found[1:]:
        total = total + each
    return total.scaled(1 / len(found))
