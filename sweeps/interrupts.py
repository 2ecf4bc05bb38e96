"""Ctrl-C and SIGTERM: the first one lets what runs save and stop, the second one stops at once."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

GRACE_S = 30.0
REASONS = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}


class Interrupts:
    """Turns both signals into KeyboardInterrupt while the block runs, or first into a drain.

    Python raises it wherever the main thread happens to be; in a finaliser or in somebody's
    ``except`` that is nowhere. So the wish is also remembered, and `check`, called often, raises
    it again. A signal that was ignored before (``nohup``, a background job) stays ignored.

    Args:
        grace_s: How long a drain may take before it becomes a KeyboardInterrupt.
        clock: Seconds.
    """

    def __init__(
        self, grace_s: float = GRACE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.grace_s = grace_s
        self._clock = clock
        self._asked = False
        self._drain: Callable[[str], None] | None = None
        self._reason = ""
        self._until = math.inf
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in REASONS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def draining(self, drain: Callable[[str], None]) -> Iterator[None]:
        """Inside, the first signal only makes the next `check` call ``drain`` with the reason.

        A second signal, or the end of the grace time, raises KeyboardInterrupt as outside.
        """
        self._drain = drain
        try:
            yield
        finally:
            self._drain, self._until = None, math.inf

    def check(self) -> None:
        """Drain, or raise KeyboardInterrupt, when one was asked for since the last check."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt
        if self._reason and self._drain is not None and math.isinf(self._until):
            self._until = self._clock() + self.grace_s
            self._drain(self._reason)
        if self._clock() >= self._until:
            self._until = math.inf
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._drain is not None and not self._reason:
            self._reason = REASONS[signal.Signals(number)]
            return
        self._asked = True
        raise KeyboardInterrupt
