"""Who does which job, when several agents serve one device: leases on a ledger that all can read.

A ledger has entries that are written once, and notes that may be overwritten. Epoch `e` of a job
belongs to whom the entry ``claim.<key>.<e>`` names: the store lets one writer win. The entry holds
the first lease, so that there is no moment with a claim and no lease; renewals are notes. When a
lease is over by more than twice the clocks' skew, anybody may write the next epoch, and who
finds a higher epoch than its own has lost the job (the epoch is a fencing token).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from jetson_agent.errors import ServerError

# How far two agents' ideas of the time may be apart; both take it from the server, in whole seconds
# and half a request too late.
SKEW_S = 10.0
KEY_DIGITS = 40
# A renewal that is under way when a job ends is not waited for longer.
JOIN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a ledger says: entries that stay, and notes."""

    entries: Mapping[str, str]
    notes: Mapping[str, str]


class Ledger(Protocol):
    """Where claims are kept; errors are `jetson_agent.errors.ServerError`."""

    def read(self) -> Page: ...

    def write_once(self, name: str, value: str) -> bool:
        """Make an entry; False if it exists with another value."""

    def note(self, name: str, value: str) -> None:
        """Write a note over what was there."""

    def seen(self, agent: str, facts: Mapping[str, Any]) -> None:
        """Leave a sign of life, as `jetson_agent.protocol.Seen` says."""

    def now(self) -> float:
        """Seconds since 1970 by a clock that all agents share."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job in hand: renewed while it is worked on, asked `still_mine` before its report."""

    key: str
    epoch: int
    agent: str
    ttl_s: float
    ledger: Ledger = field(repr=False, compare=False)

    def renew(self) -> None:
        """Hold the job for `ttl_s` from now; twice in that time leaves room for a lost request."""
        self._lease(self.ledger.now() + self.ttl_s)

    def still_mine(self) -> bool:
        """Whether nobody has taken the job over; False means: drop what came of it."""
        return _latest(self.ledger.read(), self.key).epoch == self.epoch

    def release(self) -> None:
        """Let go of the job, done or not: others need not wait for the end of the lease."""
        self._lease(0.0)

    def _lease(self, until: float) -> None:
        self.ledger.note(_name("lease", self.key, self.epoch), json.dumps({"until": until}))


@dataclass(frozen=True)
class Claims:
    """The jobs of one device."""

    ledger: Ledger
    skew_s: float = SKEW_S

    def take(self, key: str, agent: str, ttl_s: float) -> Claim | None:
        """Claim a job for `ttl_s`; None if somebody else has it.

        Who got a claim asks `Registry.bench_keys` once more: the job may have been done between
        that question and this one. An agent that was cut off gets its own claim back.
        """
        last = _latest(self.ledger.read(), key)
        now = self.ledger.now()
        if last.agent == agent and last.until > now:
            claim = Claim(key=key, epoch=last.epoch, agent=agent, ttl_s=ttl_s, ledger=self.ledger)
            claim.renew()
            return claim
        if last.agent != agent and last.until + 2 * self.skew_s > now:
            return None
        epoch = last.epoch + 1
        value = json.dumps({"agent": agent, "until": now + ttl_s}, sort_keys=True)
        if not self.ledger.write_once(_name("claim", key, epoch), value):
            return None
        return Claim(key=key, epoch=epoch, agent=agent, ttl_s=ttl_s, ledger=self.ledger)

    def seen(self, agent: str, facts: Mapping[str, Any]) -> None:
        """Tell that `agent` lives; a sweep reads it with `jetson_agent.protocol.seen_agents`."""
        self.ledger.seen(agent, facts)


@contextmanager
def held(claim: Claim | None, every_s: float, also: Callable[[], None]) -> Iterator[None]:
    """Hold on to a claim while a block lasts: it is renewed, and `also` called, every so often.

    Whatever server errors there are: it may be back next time, and the result has a check of its
    own.
    """
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(every_s):
            with suppress(ServerError):
                also()
                if claim is not None:
                    claim.renew()

    thread = threading.Thread(target=renew, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(JOIN_S)


@dataclass(frozen=True)
class _Last:
    epoch: int = 0
    agent: str = ""
    until: float = float("-inf")


def _name(kind: str, key: str, epoch: int) -> str:
    return f"{kind}.{key[:KEY_DIGITS]}.{epoch}"


def _latest(page: Page, key: str) -> _Last:
    """The highest epoch of a job, who has it, and until when."""
    start = f"claim.{key[:KEY_DIGITS]}."
    epochs = [name[len(start) :] for name in page.entries if name.startswith(start)]
    epoch = max((int(text) for text in epochs if text.isdigit()), default=0)
    if not epoch:
        return _Last()
    claim = _read(page.entries[f"{start}{epoch}"])
    lease = _read(page.notes.get(_name("lease", key, epoch), ""))
    until = lease.get("until", claim.get("until"))
    # What nobody can read holds nobody up.
    if not isinstance(until, (int, float)):
        until = float("-inf")
    return _Last(epoch, str(claim.get("agent", "")), until)


def _read(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


@dataclass
class MemoryLedger:
    """In-memory twin for tests; `clock` gives the time."""

    clock: Callable[[], float] = time.time
    entries: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    agents: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self) -> Page:
        with self._lock:
            return Page(entries=dict(self.entries), notes=dict(self.notes))

    def write_once(self, name: str, value: str) -> bool:
        with self._lock:
            return self.entries.setdefault(name, value) == value

    def note(self, name: str, value: str) -> None:
        with self._lock:
            self.notes[name] = value

    def seen(self, agent: str, facts: Mapping[str, Any]) -> None:
        with self._lock:
            self.agents[agent] = dict(facts)

    def now(self) -> float:
        return self.clock()
