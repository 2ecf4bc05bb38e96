"""The wish to stop: set by a signal, seen by whoever waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jetson_agent.proc import kill_groups
from jetson_agent.timing import Stopped

SLICE_S = 1.0


class _Interrupt(BaseException):
    """Raised by the signal handler; no library catches it as if it were an error of its own."""


class StopFlag(threading.Event):
    """An event that may be set by a signal handler at any moment.

    A handler runs in the main thread, between two of its instructions. If that thread is just
    entering `wait` of a plain event, `set` waits for a lock that its own thread holds: for ever.
    With a lock that may be taken twice it does not, but may be noticed late: so nobody waits
    longer than a second at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cond = threading.Condition(threading.RLock())
        self._interruptible = False

    def wait(self, timeout: float | None = None) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left_s = SLICE_S if end is None else min(SLICE_S, end - time.monotonic())
            if left_s <= 0:
                break
            super().wait(left_s)
        return self.is_set()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A part of the main thread's work that a signal cuts off: waiting for a server.

        Raises:
            Stopped: the flag was set, before or meanwhile.
        """
        if self.is_set():
            raise Stopped
        self._interruptible = True
        try:
            yield
        except _Interrupt:
            raise Stopped from None
        finally:
            self._interruptible = False

    def interrupt(self) -> None:
        """Set the flag from a signal handler."""
        self.set()
        if self._interruptible:
            self._interruptible = False
            raise _Interrupt


@contextmanager
def signals_set(stopping: StopFlag) -> Iterator[list[int]]:
    """SIGINT and SIGTERM only set `stopping`; the second one ends this process at once.

    The list tells which came. Old handlers come back.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            kill_groups()
            os._exit(128 + number)
        stopping.interrupt()

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
