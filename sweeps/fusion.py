"""Which frozen trials start together over one encoder pass: a pure function, as `order.plan` is.

Trials of one `sharedenc.training.fusion.fusion_key` see the same pictures through the same
encoder. Together they make both once, and each its own head's part: that takes as long as the
longest shared part and all own parts one after the other. It saves device time, and each of them
ends later than it would alone. So it pays where trials wait for devices, and must not lengthen
the sweep where they do not; see `gather`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Fuse = Literal["auto", "off"]

# Ends are estimated, and the last of several ends later than each is expected to.
MARGIN = 1.5

# More heads than this on one encoder save little more, and one fault stops them all.
MOST_TOGETHER = 8

# Part of a frozen trial's time that goes into pictures and encoder, which trials share. Measured on
# a CPU: steps of two heads and of det and seg at four rates each, together against one after the
# other (`make bench`, R4 and R5), and whole trials of the first two. A GPU's part is not measured.
SHARED = {
    "resnet18": 0.87,
    "mobilenet_v3_large": 0.70,
    "efficientnet_v2_s": 0.90,
    "densenet121": 0.92,
}
# For a backbone from outside: as the smallest known one.
UNKNOWN_SHARED = min(SHARED.values())


def shared_part(backbone: str) -> float:
    """Part of a frozen trial's time, 0 to 1, that it can share with others."""
    return SHARED.get(backbone, UNKNOWN_SHARED)


def alone_s(together_s: float, shared: float, members: float) -> float:
    """Seconds that a trial needs alone, by its part of what ``members`` took together.

    A member's part is its own time and an equal part of the common one; over epochs that different
    numbers trained, ``members`` is their harmonic mean.
    """
    return together_s / (1.0 - shared + shared / members)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A trial that may train with others.

    ``key`` is its fusion key, None where it trains alone; ``work`` its expected seconds alone, of
    which ``shared`` (0 to 1) can be shared; ``tail`` the seconds of the longest chain that waits
    for its end.
    """

    id: str
    work: float
    key: str | None = None
    shared: float = 0.0
    tail: float = 0.0

    @property
    def common_s(self) -> float:
        """Seconds of what is made once for all."""
        return self.work * self.shared

    @property
    def own_s(self) -> float:
        """Seconds of what only this trial needs."""
        return self.work - self.common_s


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a sweep still has to do, everything that waits alone.

    ``work_s`` is the device time of all of it, of running trials too, ``chain_s`` that of its
    longest chain, ``slots`` how many trials run at once, ``free_s`` the seconds until one of those
    that run already leaves its slot.
    """

    work_s: float
    chain_s: float
    slots: int
    free_s: float = math.inf

    def others_s(self, saved_s: float, own_s: float) -> float:
        """Seconds that the other slots have to do beside a group that takes ``own_s``.

        No order of trials ends before the longest chain does, or all other work.
        """
        if self.slots <= 1:
            return math.inf
        return max(self.chain_s, (self.work_s - saved_s - own_s) / (self.slots - 1))


def ends(parts: Sequence[Part]) -> list[float]:
    """Seconds from a common start to the end of each part.

    Parts go through their epochs side by side, and an epoch's common seconds are the same for all,
    so that the one with the least of them ends first. What it leaves costs the others less.
    """
    return [
        part.common_s
        + sum(
            other.own_s * min(1.0, part.common_s / other.common_s)
            if other.common_s
            else other.own_s
            for other in parts
        )
        for part in parts
    ]


def seconds(parts: Sequence[Part]) -> float:
    """Device time of parts that train together: until the last of them ends."""
    return max((part.common_s for part in parts), default=0.0) + sum(p.own_s for p in parts)


def gather(
    starts: Sequence[Part],
    waiting: Iterable[Part],
    load: Load,
    *,
    fits: Callable[[Sequence[Part]], bool] = lambda parts: True,
    most: int = MOST_TOGETHER,
) -> list[list[Part]]:
    """Who trains with each of the trials that start now.

    Only trials that cannot start by themselves now are taken in, so that no slot idles for it. Each
    goes, the most urgent first, to the group of its key that ends first, as long as that does not
    put off the end of the sweep: every member's end (with a margin) and what waits for it come
    before the other slots are through with their work; or before the newcomer, and what waits for
    it, could have ended alone, in the slot that is free next.

    Args:
        starts: What starts now, one in each free slot.
        waiting: What is ready and finds no slot, the most urgent first.
        load: Of the whole sweep, everything alone.
        fits: Whether a group fits where its first member goes.
        most: Members of a group at most.

    Returns:
        A group for each of ``starts``, which it begins with.
    """
    groups = [[part] for part in starts]
    open_keys = {part.key for part in starts} - {None}
    saved = 0.0
    for part in waiting:
        if part.key not in open_keys or not part.shared:
            continue
        free = min([load.free_s, *map(seconds, groups)])
        best: tuple[float, float, list[Part]] | None = None
        for group in groups:
            if group[0].key != part.key or len(group) >= most:
                continue
            wider = [*group, part]
            took = seconds(wider)
            if best is not None and took >= best[0]:
                continue
            more = saved + seconds(group) + part.work - took
            tails = [(end, p.tail) for end, p in zip(ends(wider), wider, strict=True)]
            unhurried = load.others_s(more, took)
            early = (
                max(MARGIN * end + tail for end, tail in tails) <= unhurried
                or max(end + tail for end, tail in tails) <= free + part.work + part.tail
            )
            if early and fits(wider):
                best = (took, more, group)
        if best is not None:
            _, saved, group = best
            group.append(part)
    return groups
