"""When a server may be asked again: never hammered, and not forgotten."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from jetson_agent.errors import AuthError, ForbiddenError, ServerError

LinkState = Literal["unknown", "ok", "away", "unauthorized", "forbidden"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds between questions; each is spread by `jitter`, so that boards do not come in step.

    From `away_s` the wait doubles up to `away_max_s` while the server is away; one that does not
    let us in is asked every `refused_s`.
    """

    poll_s: float = 30.0
    away_s: float = 5.0
    away_max_s: float = 300.0
    refused_s: float = 600.0
    jitter: float = 0.2

    def after(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, at least one."""
        # 2**10 is past any sensible ratio of the two, and keeps the power small.
        return min(self.away_s * 2.0 ** min(failures - 1, 10), self.away_max_s)

    def spread(self, seconds: float) -> float:
        return seconds * random.uniform(1 - self.jitter, 1 + self.jitter)


@dataclass(kw_only=True)
class Link:
    """What is known of the server, of one kind of request."""

    pace: Pace
    clock: Callable[[], float] = time.monotonic
    state: LinkState = "unknown"
    error: str = ""
    _failures: int = 0
    _next: float = field(default=float("-inf"))

    @property
    def wait_s(self) -> float:
        """Seconds until the server may be asked; 0 means now."""
        return max(0.0, self._next - self.clock())

    def ask_now(self) -> None:
        self._next = self.clock()

    def worked(self, wait_s: float = 0.0) -> None:
        self.state, self.error, self._failures = "ok", "", 0
        self._next = self.clock() + self.pace.spread(wait_s)

    def failed(self, error: ServerError) -> None:
        if isinstance(error, AuthError | ForbiddenError):
            self.state = "unauthorized" if isinstance(error, AuthError) else "forbidden"
            wait_s = self.pace.refused_s
        else:
            self.state = "away"
            wait_s = self.pace.after(self._failures + 1)
        self._failures += 1
        self.error = str(error)
        self._next = self.clock() + self.pace.spread(wait_s)
