"""Whether a cluster that can grow is about to: then trials need not share the machines of now."""

from __future__ import annotations

import math
from collections.abc import Callable


class Growth:
    """Expects machines while more is wanted than there are, and not for ever.

    No cluster says how far it can grow. One that has gone without what was wanted for a while has
    its full size.

    Args:
        can_grow: Whether anything is to be expected at all.
        wait_s: For how long, after more came to be wanted or the machines changed.
        clock: Seconds.
    """

    def __init__(self, can_grow: bool, wait_s: float, clock: Callable[[], float]) -> None:
        self.can_grow = can_grow
        self._wait_s = wait_s
        self._clock = clock
        self._short_since = math.nan

    @property
    def expected(self) -> bool:
        """Whether a slot comes for each trial that waits for one."""
        return self._clock() - self._short_since < self._wait_s

    def look(self, wanted: int, held: int, *, changed: bool = False) -> None:
        """Note how many slots are wanted and there; ``changed``: machines came or went."""
        if wanted <= held:
            self._short_since = math.nan
        elif changed or math.isnan(self._short_since):
            self._short_since = self._clock()
