"""Ctrl-C and SIGTERM, also while code runs that swallows exceptions."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupts:
    """Turns both signals into KeyboardInterrupt while the block runs.

    Python raises it wherever the main thread happens to be; in a finaliser or in somebody's
    ``except`` that is nowhere. So the wish is also remembered, and `check`, called often, raises
    it again. A signal that was ignored before (``nohup``, a background job) stays ignored.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def check(self) -> None:
        """Raise KeyboardInterrupt when one was asked for since the last check."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        raise KeyboardInterrupt
