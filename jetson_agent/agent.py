"""The agent's work: what is there to time, time it, keep it, send it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from jetson_agent.attempt import NothingToTimeError, Workbench
from jetson_agent.catalog import Catalog
from jetson_agent.claims import Claim, held
from jetson_agent.errors import AuthError, ForbiddenError, NoDeviceError, ServerError
from jetson_agent.failures import ACTIONS, Failure
from jetson_agent.jobs import Bench, Candidate, Job, Plan, make_plan, read_candidates
from jetson_agent.journal import AT_WORK, Entry, Journal
from jetson_agent.locks import machine_lock
from jetson_agent.outbox import Outbox
from jetson_agent.protocol import BenchResult
from jetson_agent.registry import Registry
from jetson_agent.results import describe, logs_of, make_result, row_of
from jetson_agent.stopping import StopFlag
from jetson_agent.summary import Summary
from jetson_agent.timing import Stopped, Timing, agent_version

CLAIM_S = 900.0
SEEN_EVERY_S = 60.0
BACK_OFF_S = 30.0
LOCK_POLL_S = 1.0


@dataclass(kw_only=True)
class Agent:
    """The agent's collaborators and choices.

    `look` tells what times here now: it is asked before each job, since somebody may change the
    power mode or the software at any time. `name` is this agent in claims. `select` holds shell
    patterns of model names (none means all), `retry` verdicts whose timings are repeated, once in
    the life of this object. What another agent has is looked at again after `elsewhere_s`, and a
    job that failed after `back_off_s`, which doubles. `clock` is the wall clock. `catalog` is what
    a start without a server works from.
    """

    registry: Registry
    outbox: Outbox
    journal: Journal
    workbench: Workbench
    look: Callable[[], Bench]
    name: str
    say: Callable[[str], None]
    stopping: StopFlag
    select: Sequence[str] = ()
    retry: Sequence[str] = ()
    back_off_s: float = BACK_OFF_S
    elsewhere_s: float = float("inf")
    clock: Callable[[], float] = time.time
    catalog: Catalog | None = None
    summary: Summary = field(default_factory=lambda: Summary(device=""))
    candidates: list[Candidate] = field(default_factory=list)
    # Key -> verdict of what the server has; None until it was asked.
    known: dict[str, str] | None = None
    _repeated: set[str] = field(default_factory=set)
    _put_off: dict[str, float] = field(default_factory=dict)
    _seen: float = float("-inf")

    def once(self) -> Summary:
        """Time every architecture that is registered and not yet timed on this device."""
        self.summary = Summary(device=self.look().device.name)
        self.recover()
        with suppress(Stopped):
            self._try_to_send()
            self.refresh()
            self._do_all()
        self.summary.stopped = self.stopping.is_set()
        self.summary.waiting = len(self.outbox)
        return self.summary

    def _do_all(self) -> None:
        while not self.stopping.is_set():
            bench = self.look()
            plan = self.plan(bench)
            job, wait_s = self.next_job(plan)
            if job is None and wait_s == float("inf"):
                break
            if job is None:
                self.stopping.wait(wait_s)
                continue
            with machine_lock() as free:
                if free:
                    self._do_and_go_on(job, bench)
            if not free:
                self.stopping.wait(LOCK_POLL_S)
        if not self.summary.timed:
            self.say("nothing to do")

    def recover(self) -> None:
        """Take up what an earlier process left: nothing that was measured is lost."""
        if self.catalog is not None:
            self.candidates, _ = read_candidates(self.catalog.load(), self.select)
        self.spool()
        waiting = self.outbox.keys()
        for entry in self.journal.entries("SPOOLED"):
            if entry.key not in waiting:
                # It leaves the outbox only once the server has it.
                self.journal.reported(entry.key)
        for entry in self.journal.entries(*AT_WORK):
            self.say(f"{entry.what} was interrupted after {entry.state}: it is done again")
            self.journal.write(entry, state="DISCOVERED", interrupted=entry.interrupted + 1)

    def spool(self) -> None:
        """Put into the outbox what was measured and is not there: the disk was full, or a cut."""
        for entry in self.journal.entries("MEASURED"):
            self.outbox.put(BenchResult.from_json(entry.result))
            self.journal.write(entry, state="SPOOLED")

    def refresh(self) -> None:
        """Read what is registered, and what of it is timed.

        Raises:
            ServerError: the server cannot be asked; what was known before stays.
        """
        bench = self.look()
        with self.stopping.interruptible():
            versions = self.registry.ready_versions()
            self.known = self.registry.bench_keys(bench.device.name)
            self.show_life(bench)
        self.candidates, skipped = read_candidates(versions, self.select)
        if self.catalog is not None:
            self.catalog.save(candidate.version for candidate in self.candidates)
        for version, reason in skipped:
            row = {"model": version.name, "reason": reason}
            if row not in self.summary.skipped:
                self.summary.skipped.append(row)
                self.say(f"skipped {version.name}: {reason}")

    def plan(self, bench: Bench) -> Plan:
        """What is to be timed with `bench`, in order."""
        plan = make_plan(self.candidates, bench, self._done())
        now = {row["key"] for row in self.summary.timed}
        self.summary.already_timed = len(plan.already - now)
        lacking = dict(plan.lacking)
        if lacking != self.summary.lacking:
            self.summary.lacking = lacking
            counts = ", ".join(f"{name} ({count} versions)" for name, count in lacking.items())
            self.say(f"not timed here with backend {bench.settings.backend}: {counts}")
        return plan

    def next_job(self, plan: Plan, *, offline: bool = False) -> tuple[Job | None, float]:
        """The first job that may be done now; without one, the seconds until one may, or inf.

        Args:
            offline: Only what needs no download.
        """
        wait_s = float("inf")
        for job in plan.jobs:
            if self.workbench.blocked(job) or (offline and not self.workbench.is_here(job)):
                continue
            if (left_s := self._rests(job)) <= 0:
                return job, 0.0
            wait_s = min(wait_s, left_s)
        return None, wait_s

    def do(self, job: Job, bench: Bench) -> BenchResult | None:
        """Take a job through its states, from DISCOVERED to SPOOLED.

        Returns:
            None if there is nothing to report: refused, another agent's, or to be tried again.

        Raises:
            Stopped: the user asked to stop; the job is as if it had not been begun.
            ServerError: a file cannot be fetched; so is the job.
            NoDeviceError: nothing can be timed here now; so is the job.
        """
        entry = self.journal.get(job.key, job.what)
        if entry.state == "REPORTED":  # a timing that is repeated
            entry = Entry(key=job.key, what=job.what)
        entry = self.journal.write(entry, what=job.what, state="DISCOVERED")
        mine, claim = self._claim(job, bench)
        if not mine:
            self.journal.forget(job.key)
            return None
        self.journal.write(entry, state="CLAIMED")

        def note(state: Any) -> None:
            self.journal.write(self.journal.get(job.key), state=state)

        released = False
        try:
            with held(claim, SEEN_EVERY_S, lambda: self.show_life(bench)):
                timing, used = self.workbench.attempt(job, bench, self.registry, entry, note)
            entry = self.journal.get(job.key)
            if timing.failure is not None and timing.failure.kind == "no-device":
                # No fault of the model, and the next job would fare no better.
                raise NoDeviceError(f"{job.what}: {' '.join(timing.reasons)}")
            if timing.failure is not None and self._again(job, bench, entry, timing.failure):
                released = True
                return None
            timing = self._settled(timing, entry, bench)
            result = make_result(job, bench, timing, used)
            return self._keep(job, result, claim)
        except NothingToTimeError:
            self.journal.forget(job.key)
            released = True
            return None
        except Exception:
            # Once it is MEASURED nothing is taken back.
            entry = self.journal.get(job.key)
            if released := entry.state in AT_WORK:
                self.journal.write(entry, state="DISCOVERED")
            raise
        finally:
            self._show_refused()
            if released and claim is not None:
                with suppress(ServerError):
                    claim.release()

    def send(self) -> None:
        """Send what is kept, oldest first; what cannot be sent stays.

        Raises:
            ServerError: at least one could not be sent. One result that the server does not like
                is no reason to keep the others; two in a row are taken for a server that is away.
        """
        failed: ServerError | None = None
        for result in self.outbox.pending():
            try:
                with self.stopping.interruptible():
                    self.registry.report(result, logs_of(result))
            except (AuthError, ForbiddenError):
                raise
            except ServerError as error:
                if failed is not None:
                    raise
                failed = error
                continue
            self.outbox.sent(result)
            self.journal.reported(result.key)
            if self.known is not None:
                self.known[result.key] = result.verdict
            self.summary.sent += 1
        if failed is not None:
            raise failed

    def put_off(self, job: Job, seconds: float) -> None:
        """Leave a job alone for a while."""
        self._put_off[job.key] = time.monotonic() + seconds

    def show_life(self, bench: Bench) -> None:
        """Tell the server, now and then, that this agent lives and what it can do."""
        if time.monotonic() - self._seen < SEEN_EVERY_S:
            return
        facts = {
            "mode": bench.mode,
            "backend": bench.settings.backend,
            "runtime": bench.settings.runtime,
            "settings": bench.settings.text,
            "precisions": list(bench.can),
            "loads": list(bench.loads),
            "version": agent_version(),
        }
        self.registry.claims(bench.device.name).seen(self.name, facts)
        self._seen = time.monotonic()

    def _do_and_go_on(self, job: Job, bench: Bench) -> None:
        try:
            result = self.do(job, bench)
        except (AuthError, ForbiddenError):
            raise
        except ServerError as error:
            # As if refused: this pass does without it.
            row = {"model": job.newest.version.name, "reason": str(error)}
            self.summary.refused.append(row)
            self.say(f"refused {job.newest.version.name}: {error}")
            self.put_off(job, float("inf"))
            return
        if result is not None:
            self.say(f"[{len(self.summary.timed)}] {describe(result)}")
            self._try_to_send()

    def _try_to_send(self) -> None:
        try:
            self.send()
        except ServerError as error:
            self.say(f"{len(self.outbox)} results wait in {self.outbox.folder}: {error}")

    def _done(self) -> dict[str, str]:
        """Key -> verdict of what need not be timed, as far as can be known here and now."""
        known = self.known
        if known is None:
            known = {entry.key: entry.verdict for entry in self.journal.entries("REPORTED")}
        done = {k: v for k, v in known.items() if v not in self.retry or k in self._repeated}
        kept = {e.key: e.verdict for e in self.journal.entries("MEASURED", "SPOOLED")}
        return {**done, **dict.fromkeys(self.outbox.keys(), ""), **kept}

    def _rests(self, job: Job) -> float:
        """Seconds until the job may be tried; 0 or less means now."""
        entry = self.journal.get(job.key)
        left_s = entry.not_before - self.clock()
        # The wall clock may have jumped by years: nobody waits longer than was meant.
        if left_s > self._back_off(len(entry.failures)):
            left_s = 0.0
        return max(left_s, self._put_off.get(job.key, 0.0) - time.monotonic())

    def _back_off(self, failures: int) -> float:
        return self.back_off_s * 2.0 ** max(0, failures - 1)

    def _claim(self, job: Job, bench: Bench) -> tuple[bool, Claim | None]:
        """Whether the job is ours, and the claim, which is None where nobody can be asked."""
        try:
            with self.stopping.interruptible():
                claim = self.registry.claims(bench.device.name).take(job.key, self.name, CLAIM_S)
                # Another agent may have ended it since the list was read.
                self.known = self.registry.bench_keys(bench.device.name)
        except (AuthError, ForbiddenError):
            raise
        except ServerError as error:
            self.say(f"{job.what} is timed without a claim: {error}")
            return True, None
        if claim is not None and job.key not in self._done():
            return True, claim
        if claim is not None:
            with suppress(ServerError):
                claim.release()
        self._elsewhere(job)
        return False, None

    def _elsewhere(self, job: Job) -> None:
        self.say(f"{job.what}: another agent of this device has it")
        self.summary.elsewhere += 1
        self.put_off(job, self.elsewhere_s)

    def _again(self, job: Job, bench: Bench, entry: Entry, failure: Failure) -> bool:
        """Whether a job that failed is tried again, after what its failure asks for."""
        failures = [*entry.failures, failure.kind]
        if failures.count(failure.kind) >= ACTIONS[failure.kind].attempts:
            self.journal.write(entry, failures=failures)
            return False
        changes = self.workbench.apply(failure, entry, bench)
        wait_s = self._back_off(len(failures))
        self.journal.write(
            entry,
            state="DISCOVERED",
            failures=failures,
            not_before=self.clock() + wait_s,
            **changes,
        )
        self.summary.retried += 1
        first = failure.lines[0] if failure.lines else "it printed nothing"
        self.say(f"{job.what}: {failure.kind} ({first}); tried again in {wait_s:.0f} s")
        return True

    def _settled(self, timing: Timing, entry: Entry, bench: Bench) -> Timing:
        """A timing with its final verdict, and what should be known of the tries before it."""
        verdict, reasons = timing.verdict, list(timing.reasons)
        failure = timing.failure
        if failure is not None:
            verdict = ACTIONS[failure.kind].verdict
            if failure.node and failure.node not in " ".join(reasons):
                reasons.append(f"It is about node {failure.node}.")
        now = self.look()
        if (now.mode, now.settings.runtime) != (bench.mode, bench.settings.runtime):
            was = f"{bench.mode} with {bench.settings.runtime}"
            reasons.append(
                f"The board changed from {was} to {now.mode} with {now.settings.runtime} meanwhile."
            )
            verdict = "suspect" if verdict == "valid" else verdict
        certificate = {**timing.certificate, "verdict": verdict, "reasons": reasons}
        if tries := self.journal.get(entry.key).failures:
            certificate["failed_tries"] = tries
        return replace(timing, verdict=verdict, reasons=reasons, certificate=certificate)

    def _keep(self, job: Job, result: BenchResult, claim: Claim | None) -> BenchResult | None:
        """Put a result where it is safe, unless another agent has taken the job meanwhile."""
        entry = self.journal.write(
            self.journal.get(job.key),
            state="MEASURED",
            result=result.to_json(),
            verdict=result.verdict,
        )
        mine = True
        # Whoever cannot ask keeps the result: a key is stored once, whoever reports it.
        with suppress(ServerError, Stopped), self.stopping.interruptible():
            mine = claim is None or claim.still_mine()
        if not mine:
            self.journal.forget(job.key)
            self._elsewhere(job)
            return None
        self.outbox.put(result)
        self.journal.write(entry, state="SPOOLED")
        self._repeated.add(job.key)
        self.summary.timed.append(row_of(result))
        return result

    def _show_refused(self) -> None:
        for (name, _, _), reason in self.workbench.refused.items():
            row = {"model": name, "reason": reason}
            if row not in self.summary.refused:
                self.summary.refused.append(row)
