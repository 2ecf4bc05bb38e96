"""Why a running trial must save and stop: its driver says so, its node goes away, or SIGTERM.

A `Stop` is asked before every training step, so that it only reads a string; a thread watches
the drain file and the driver's signal once a second.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

DRAIN_FILE = "SHAREDENC_DRAIN_FILE"
EVERY_S = 1.0
# How a reason begins that takes the trial from its machine; any other ends it for this invocation.
PREEMPTED = "preempted"

Ask = Callable[[], str]
"""Gives the reason to stop, empty to go on."""


def drain_file() -> Path:
    """The file whose existence says that this node goes away: SHAREDENC_DRAIN_FILE, or in /tmp."""
    named = os.environ.get(DRAIN_FILE)
    return Path(named or Path(tempfile.gettempdir()) / f"sharedenc-drain-{os.getuid()}")


class Stop:
    """The reason to stop of one trial; watches while the block runs.

    Args:
        drain: The drain file; None for this node's default.
        ask: Asks the driver, from a thread; may raise when the driver is away.
        every_s: Time between two looks.
    """

    def __init__(
        self, drain: Path | None = None, ask: Ask | None = None, every_s: float = EVERY_S
    ) -> None:
        self._drain = drain or drain_file()
        self._ask = ask
        self._every_s = every_s
        self._reason = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self) -> str:
        """The first reason that came; empty while the trial may go on."""
        return self._reason

    def because(self, reason: str) -> None:
        """Stop for this reason."""
        self._reason = self._reason or reason

    def look(self) -> None:
        """Look at the drain file and ask the driver, once."""
        if self._drain.exists():
            self.because(f"{PREEMPTED}: its node goes away ({self._drain} exists)")
        if self._ask is not None:
            try:
                self.because(self._ask())
            except Exception:
                # A driver that is gone is noticed by Ray, which ends this process.
                self._ask = None

    def __enter__(self) -> Stop:
        _current.append(self)
        self.look()
        self._thread = threading.Thread(target=self._watch, name="stop", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _current.remove(self)
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=10 * self._every_s)

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self.look()


# The trials that train in this process: one in a worker.
_current: list[Stop] = []


def save_on_sigterm() -> None:
    """Let SIGTERM stop the trial of this process, so that it saves; without one, as it was before.

    Does nothing outside the main thread, where Python takes no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)
    if getattr(before, "saves", False):
        return

    def on_sigterm(number: int, frame: FrameType | None) -> Any:
        for stop in _current:
            stop.because(f"{PREEMPTED}: its worker process got SIGTERM")
        if not _current and callable(before):
            return before(number, frame)
        return None

    on_sigterm.saves = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, on_sigterm)
