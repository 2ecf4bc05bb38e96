"""Which of several things are worth choosing: those that nothing else is better than."""

from __future__ import annotations

from collections.abc import Sequence


def on_front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Which points no other point dominates.

    One point dominates another if it is at most as large in every number and smaller in one, so
    that of equal points all stay.

    Args:
        costs: Per point the numbers that are to be small; what is to be large comes negated.
    """
    order = sorted(range(len(costs)), key=lambda at: tuple(costs[at]))
    front: list[int] = []
    # A point comes after all that dominate it, and what dominates is dominated by the front.
    for at in order:
        if not any(_dominates(costs[other], costs[at]) for other in front):
            front.append(at)
    found = set(front)
    return [at in found for at in range(len(costs))]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return tuple(one) != tuple(other) and all(a <= b for a, b in zip(one, other, strict=True))
