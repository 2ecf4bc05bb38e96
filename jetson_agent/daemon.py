"""`jetson-agent run`: poll, time, send, for ever; one thing at a time.

Nothing is sent while something is timed: the timing would see it. A server that is away costs
nothing but a request now and then; what is registered and downloaded is timed all the same.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jetson_agent.agent import LOCK_POLL_S, Agent
from jetson_agent.errors import (
    AgentError,
    AuthError,
    ForbiddenError,
    NoDeviceError,
    ServerError,
)
from jetson_agent.jobs import Bench, Job
from jetson_agent.link import Link, Pace
from jetson_agent.locks import machine_lock
from jetson_agent.notify import notify, watchdog_s
from jetson_agent.results import describe
from jetson_agent.timing import Stopped, agent_version

STATUS_FILE = "status.json"
# Boards without a battery wake in 1970; this code is not that old, and TLS certificates neither.
SANE_S = time.mktime((2024, 1, 1, 0, 0, 0, 0, 0, 0))
CLOCK_POLL_S = 5.0
FAULT_S = 30.0
ELSEWHERE_S = 60.0
# Patience of the watchdog: with a turn of the loop, with a server, with a preflight.
TURN_S, SERVER_S, PREFLIGHT_S = 60.0, 1800.0, 3600.0
STATUS_EVERY_S = 30.0
# A suspect timing is repeated; a comparison has three files.
REPEATS = 3 * 3
SHOWN = 20
IN_WORDS = {
    "away": "server away",
    "unauthorized": "server does not know this user (401)",
    "forbidden": "server does not allow this user to do that (403)",
}


@dataclass(kw_only=True)
class Daemon:
    """The loop around an `Agent`, whose server may be away, and whose clock may be wrong."""

    agent: Agent
    state: Path
    server: str
    pace: Pace = field(default_factory=Pace)
    clock: Callable[[], float] = time.time
    reading: Link = field(init=False)
    writing: Link = field(init=False)
    counts: Counter[str] = field(default_factory=Counter)
    doing: str = "starting"
    last_error: str = ""
    _bench: Bench | None = None
    _last_poll: float | None = None
    _told: str = ""
    # How often in a row the files of a job could not be had.
    _lacked: Counter[str] = field(default_factory=Counter)
    _written: float = float("-inf")
    # Until when the main thread may be silent, by the monotonic clock: the watchdog's patience.
    _patience: float = 0.0

    def __post_init__(self) -> None:
        self.agent.elsewhere_s = ELSEWHERE_S
        self.reading = Link(pace=self.pace)
        self.writing = Link(pace=self.pace)

    def run(self) -> None:
        """Work until `agent.stopping` is set."""
        stopping = self.agent.stopping
        with self._watchdog():
            self._show("starting")
            notify("READY=1")
            self.agent.recover()
            while not stopping.is_set():
                self._expect(0)
                try:
                    wait_s = self._turn()
                except Stopped:
                    break
                except AgentError as error:  # such as a backend that is being upgraded
                    self._error(str(error))
                    self._show(str(error))
                    # Each try takes a claim anew, and a GPU seldom comes back by itself.
                    gone = isinstance(error, NoDeviceError)
                    wait_s = self.pace.away_max_s if gone else FAULT_S
                except Exception as error:  # a fault of ours: told, and the daemon lives on
                    self._fault(error)
                    wait_s = FAULT_S
                self._expect(wait_s)
                stopping.wait(wait_s)
            notify("STOPPING=1")
            self._show("stopped")

    def _turn(self) -> float:
        """Do the next thing; returns the seconds until there may be another."""
        if self.clock() < SANE_S:
            year = time.gmtime(self.clock()).tm_year
            self._error(f"the clock says {year}: waiting until it is set (timedatectl)")
            self._show("waiting for the clock")
            return CLOCK_POLL_S
        self._send()
        self._poll()
        bench = self._bench = self.agent.look()
        plan = self.agent.plan(bench)
        self.counts["to do"] = len(plan.jobs)
        job, wait_s = self.agent.next_job(plan, offline=self.reading.state != "ok")
        if job is None:
            self._show("idle" if self.reading.state == "ok" else self._trouble())
            return min(wait_s, self._until_server())
        with machine_lock() as free:
            if free:
                self._do(job, bench)
                return 0.0
        self._show("waiting for another timing on this machine")
        return LOCK_POLL_S

    def _do(self, job: Job, bench: Bench) -> None:
        self._show(f"timing {job.what}")
        self._expect(_longest_s(bench))
        try:
            result = self.agent.do(job, bench)
        except (AuthError, ForbiddenError) as error:
            self._link_failed(self.reading, error)
            return
        except ServerError as error:
            # This file, or the whole server? The next poll tells; meanwhile others have a turn.
            self._error(f"{job.what}: {error}")
            self._lacked[job.key] += 1
            self.agent.put_off(job, self.pace.after(self._lacked[job.key]))
            self.reading.ask_now()
            return
        except AgentError:
            raise
        except Exception:
            # Whatever is wrong with this one must not keep the others from their turn.
            self.agent.put_off(job, self.pace.away_max_s)
            raise
        self._lacked.pop(job.key, None)
        if result is not None:
            self.counts[result.verdict] += 1
            self.agent.say(describe(result))
            # A pass has an end and a daemon has none: it need not remember all of it.
            del self.agent.summary.timed[:-SHOWN]

    def _send(self) -> None:
        self.agent.spool()
        if not len(self.agent.outbox) or self.writing.wait_s > 0:
            return
        self._expect(SERVER_S)
        sent = self.agent.summary.sent
        try:
            self.agent.send()
        except ServerError as error:
            self._link_failed(self.writing, error)
        else:
            self.writing.worked()
        self.counts["sent"] += self.agent.summary.sent - sent

    def _poll(self) -> None:
        if self.reading.wait_s > 0:
            return
        self._expect(SERVER_S)
        try:
            self.agent.refresh()
        except ServerError as error:
            self._link_failed(self.reading, error)
            return
        if self.reading.state != "ok":
            self.agent.say(f"server {self.server} answers")
            # What waits need not wait longer; a server that forbids writing is another matter.
            if self.writing.state == "away":
                self.writing.worked()
        self.reading.worked(self.pace.poll_s)
        self._last_poll = self.clock()
        self.counts["polls"] += 1

    def _until_server(self) -> float:
        wait_s = self.reading.wait_s
        return min(wait_s, self.writing.wait_s) if len(self.agent.outbox) else wait_s

    def _link_failed(self, link: Link, error: ServerError) -> None:
        before = link.state
        link.failed(error)
        if link.state != before:
            self.agent.say(f"{IN_WORDS[link.state]}: {error}")
        self._error(str(error), quiet=True)

    def _trouble(self) -> str:
        for link in (self.reading, self.writing):
            if link.state in IN_WORDS:
                return IN_WORDS[link.state]
        return "asking the server"

    def _fault(self, error: Exception) -> None:
        self._error(f"{type(error).__name__}: {error}")
        for line in traceback.format_exc().splitlines():
            self.agent.say(line)

    def _error(self, text: str, *, quiet: bool = False) -> None:
        if text != self.last_error:
            self.last_error = text
            if not quiet:
                self.agent.say(text)

    def _show(self, doing: str) -> None:
        """Say what goes on, to systemd and in the state folder, when it changes or is old."""
        changed, self.doing = doing != self.doing, doing
        trouble = self._trouble()
        text = doing if trouble in (doing, "asking the server") else f"{doing}; {trouble}"
        if text != self._told:
            self._told = text
            notify(f"STATUS={text}")
        if changed or time.monotonic() - self._written >= STATUS_EVERY_S:
            self._written = time.monotonic()
            path = self.state / STATUS_FILE
            part = path.with_name(f"{path.name}.part")
            # On a full disk there is nothing to read, and everything else goes on.
            with suppress(OSError):
                part.write_text(json.dumps(self.status(), indent=1) + "\n")
                part.replace(path)

    def status(self) -> dict[str, Any]:
        """What ``status.json`` says; times are seconds since 1970."""
        bench = self._bench
        waiting = self.agent.journal.entries("DISCOVERED")
        return {
            "pid": os.getpid(),
            "agent": self.agent.name,
            "version": agent_version(),
            "doing": self.doing,
            "updated": self.clock(),
            "device": bench and bench.device.name,
            "mode": bench and bench.mode,
            "backend": bench and bench.settings.backend,
            "runtime": bench and bench.settings.runtime,
            "server": {
                "uri": self.server,
                "state": self.reading.state,
                "writing": self.writing.state,
                "last_poll": self._last_poll,
                "error": self.reading.error or self.writing.error,
            },
            "waiting_to_be_sent": len(self.agent.outbox),
            "counts": dict(self.counts),
            "last_error": self.last_error,
            "refused": self.agent.summary.refused[-SHOWN:],
            "tried_again": [
                {"job": e.what, "failures": e.failures, "not_before": e.not_before}
                for e in waiting[-SHOWN:]
                if e.failures
            ],
        }

    def _expect(self, seconds: float) -> None:
        self._patience = time.monotonic() + seconds + TURN_S

    @contextmanager
    def _watchdog(self) -> Iterator[None]:
        """Tell systemd that we live, as long as the main thread is not overdue."""
        limit_s = watchdog_s()
        ended = threading.Event()

        def tell() -> None:
            while limit_s is not None and not ended.wait(limit_s / 3):
                if time.monotonic() <= self._patience:
                    notify("WATCHDOG=1")

        self._expect(0)
        thread = threading.Thread(target=tell, name="watchdog", daemon=True)
        if limit_s is not None:
            thread.start()
        try:
            yield
        finally:
            ended.set()


def _longest_s(bench: Bench) -> float:
    """A job takes no longer than this: each of its steps has a deadline."""
    s = bench.settings
    runs_s = (s.runs + 1) * s.run_deadline_s * REPEATS
    return PREFLIGHT_S + SERVER_S + s.builds * (s.build_deadline_s + runs_s)
