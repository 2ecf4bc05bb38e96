"""The server's idea of the time, which all agents share: boards without a battery wake in 1970."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from jetson_agent.credentials import CA_FILE, INSECURE, Server

EVERY_S = 600.0
TIMEOUT_S = 10.0


def steady_s() -> float:
    """Seconds since this machine started, asleep or not; nobody sets this clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ServerClock:
    """Seconds since 1970 by the server, asked once in ten minutes and counted on from there.

    Until a server has told the time, it is this machine's own.

    Args:
        ask: Gives the server's time, or None if it does not tell; does not raise.
        steady: A clock that runs evenly and that nobody sets.
    """

    def __init__(
        self,
        ask: Callable[[], float | None],
        *,
        steady: Callable[[], float] = steady_s,
        local: Callable[[], float] = time.time,
    ) -> None:
        self._ask = ask
        self._steady = steady
        self._local = local
        self._asked: float | None = None
        self._offset_s: float | None = None

    def now(self) -> float:
        """The time; half a request and half a second off at most."""
        before = self._steady()
        if self._asked is None or before - self._asked >= EVERY_S:
            self._asked = before
            told = self._ask()
            after = self._steady()
            # A late answer tells less than what is known already.
            if told is not None and (self._offset_s is None or after - before < 2.0):
                self._offset_s = told + 0.5 - (before + after) / 2
        if self._offset_s is None:
            return self._local()
        return self._steady() + self._offset_s

    def ahead_s(self) -> float | None:
        """By how much this machine's own clock is ahead of the server's; None if not known."""
        now = self.now()
        return None if self._offset_s is None else self._local() - now


def ask_server(server: Server) -> float | None:
    """The Date of any answer, a refusal too; so nothing needs to be said of who asks."""
    import os

    import requests

    insecure = os.environ.get(INSECURE, "").lower() in ("true", "1")
    verify: str | bool = os.environ.get(CA_FILE) or not insecure
    try:
        with requests.get(
            f"{server.uri.rstrip('/')}/health", timeout=TIMEOUT_S, verify=verify, stream=True
        ) as answer:
            return parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (requests.RequestException, OSError, KeyError, ValueError, TypeError):
        return None
