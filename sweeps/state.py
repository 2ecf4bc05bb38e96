"""Where a sweep stands: the one place that decides what starts, what is cut, what comes again.

Every launcher drives this object and nothing else; it knows neither Ray nor MLflow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedenc.spec import State
from sweeps.brackets import Bracket
from sweeps.cuts import Cuts
from sweeps.demands import Demands, words
from sweeps.faults import Faults, HoldBack, Rules, smaller_batch
from sweeps.fusion import Load, Part, alone_s, gather, shared_part
from sweeps.groups import Group, Groups, slots
from sweeps.growth import Growth
from sweeps.mates import part
from sweeps.order import Demand, Frontier, Job, Machine, plan
from sweeps.rows import (
    ENDED,
    Estimates,
    Listener,
    Resolve,
    Row,
    Settled,
    Unresolvable,
    as_given,
)

if TYPE_CHECKING:
    from sweeps.events import EventLog, EventName
    from sweeps.graph import Node
    from sweeps.mates import Mates

__all__ = [
    "Estimates",
    "Listener",
    "Resolve",
    "Row",
    "Settled",
    "SweepState",
    "Unresolvable",
    "as_given",
]


class SweepState:
    """Rows of a study and the decisions on them.

    Args:
        nodes: The trials; their demands are fitted to ``machines``.
        machines: What each machine offers.
        resolve: Makes a node's trial when what it needs has ended; may raise `Unresolvable`.
        settled: What the ledger knows of a row whose trial is known; None: it has to run.
        rules: Retries, limits, holding back.
        listener: Called with `start`, `epoch`, `end` or `again` and the row, after each change.
        note: Called with one line that concerns the whole sweep.
        log: Gets every event.
        estimates: Learns durations while the sweep runs.
        clock: Seconds; a virtual one in simulations.
        elastic: The cluster can grow: machines that no trial fits are no error, and trials do not
            train together for want of machines that may be about to come.
        mates: Says which trials could train together; None: each trains alone.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        machines: Sequence[Machine],
        *,
        resolve: Resolve = as_given,
        settled: Callable[[Row], Settled | None] = lambda row: None,
        rules: Rules | None = None,
        listener: Listener | None = None,
        note: Callable[[str], None] | None = None,
        log: EventLog | None = None,
        estimates: Estimates | None = None,
        clock: Callable[[], float] = time.monotonic,
        elastic: bool = False,
        mates: Mates | None = None,
    ) -> None:
        self.rules = rules or Rules()
        self.clock = clock
        self.elastic = elastic
        self.draining = ""
        self.exhausted = ""
        self.rows = {
            node.id: Row(node=node, trial=node.trial, epochs=node.recipe.epochs, clock=clock)
            for node in nodes
        }
        self._resolve, self._settled = resolve, settled
        self._listen = listener or (lambda event, row: None)
        self._note = note or (lambda text: None)
        self._log = log
        self._estimates = estimates
        self._frontier = Frontier(node.job for node in nodes)
        self._needed_by: dict[str, list[str]] = {node.id: [] for node in nodes}
        for node in nodes:
            for need in node.needs:
                self._needed_by[need].append(node.id)
        self._cuts = Cuts()
        self._faults = {node.id: Faults() for node in nodes}
        self._hold = HoldBack()
        self._withheld: dict[str, str] = {}
        self._looked_up: set[str] = set()
        self._demands = Demands(nodes)
        self._keys: dict[str, str] = {}
        self._running: dict[str, Row] = {}
        self._nothing_until = -math.inf
        self._begun = False
        self._mates = mates
        self._alone: set[str] = set()
        self._groups = Groups(machines)
        self._room = self._groups.room
        self._lonely_since = math.nan
        self._growth = Growth(elastic, self.rules.machine_wait_s, clock)
        self._fit(strict=False)

    # What a launcher and a display ask.

    @property
    def machines(self) -> list[Machine]:
        """What each machine offers."""
        return self._room.machines

    @property
    def brackets(self) -> Mapping[str, Bracket]:
        """The brackets of search trials, by group."""
        return self._cuts.brackets

    @property
    def running(self) -> list[Row]:
        """Trials that train now."""
        return list(self._running.values())

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing more will start."""
        if self._running:
            return False
        return self.stopping != "" or all(row.state in ENDED for row in self.rows.values())

    @property
    def stopping(self) -> str:
        """Why nothing more is started although trials wait; empty while it goes on."""
        return self.draining or self.exhausted

    @property
    def wanted(self) -> list[Demand]:
        """What everything that runs or could start now asks for together."""
        waiting = [] if self.stopping else [job.id for job in self._candidates()]
        if self.rules.max_concurrent is not None:
            waiting = waiting[: max(self.rules.max_concurrent - len(self._groups), 0)]
        running = [group.demand for group in self._groups.all]
        return running + [self._demands[name] for name in waiting]

    def demand(self, name: str) -> Demand:
        """What a trial occupies, fitted to the machines."""
        return self._demands[name]

    def group(self, name: str) -> Group:
        """The group in which a running trial trains; most are alone in it."""
        return self._groups[name]

    def runs_with_others(self, name: str) -> bool:
        """Whether others train on in the group of a running trial."""
        return name in self._running and len(self._groups[name].running) > 1

    @property
    def gpu_hours(self) -> float:
        """Device hours so far; on machines without GPUs, hours of trials and groups of them."""
        return self._groups.device_s(self.clock()) / 3600

    # What a launcher tells.

    def begin(self) -> None:
        """Close what is settled already and what cannot run; `next` does it when nobody has.

        Raises:
            SpecError: no machine can hold a trial that is to run, and none will come.
        """
        if self._begun:
            return
        self._begun = True
        if self._log is not None:
            self._log.machines(self.machines, elastic=self.elastic)
        for row in self.rows.values():
            if row.trial is not None and row.state == "waiting":
                self._take_over(row)
        for row in self.rows.values():
            if row.node.blocked is not None and row.state == "waiting":
                self._close(row, "skipped", row.node.blocked)
        self._settle_ready()
        # What is done already, and needed a larger machine, is no reason to refuse these.
        self._fit(strict=not self.elastic)
        self._look_for_growth()

    def next(self) -> Row | None:
        """Start the most urgent trial that may run and fits; None when there is none now.

        Others may start with it: `group` has them all.
        """
        self.begin()
        self._check_budget()
        if self.stopping or (self._running and self.clock() < self._nothing_until):
            return None
        self._settle_ready()
        limit = self.rules.max_concurrent
        places = None if limit is None else limit - len(self._groups)
        if places is not None and places <= 0:
            return None
        while True:
            candidates = self._candidates()
            starts = plan(candidates, self._frontier.ranks, self._room.free)[:places]
            if not starts:
                self._check_lonely(candidates)
                # Until something happens, or a back-off is over, the answer stays the same.
                self._nothing_until = self._next_attempt()
                return None
            name, place = starts[0]
            row = self.rows[name]
            if self._resolved(row) and self._twin(row) is None:
                return self._start(self._companions(starts, candidates), place)

    def epoch(self, name: str, report: Mapping[str, Any]) -> bool:
        """Record an epoch; True when the trial's bracket cuts it here.

        ``report`` holds ``epoch, epochs, score, rank, seconds, images_per_s``; ``rank`` is what a
        bracket compares, without it the score.
        """
        row = self.rows[name]
        if row.state != "running":
            return False
        epoch, score = int(report["epoch"]), float(report["score"])
        row.epoch, row.epochs = epoch, int(report.get("epochs", row.epochs))
        row.speed = float(report.get("images_per_s", row.speed))
        if math.isfinite(score):
            row.score = score if math.isnan(row.score) else max(row.score, score)
        seconds = float(report.get("seconds", math.nan))
        if math.isfinite(seconds):
            row.seconds_per_epoch = seconds
            self._time_epochs(self._groups[name])
        if self._hold.epoch(row.kind_of_trial):
            self._say(f"{name} has finished an epoch: its siblings go on")
        cut = self._cuts.epoch(row, epoch, float(report.get("rank", score)))
        if cut:
            row.reason = cut
        took = None if math.isnan(seconds) else seconds
        self._tell("epoch", row, seconds=took, members=report.get("members", 1), cut=bool(cut))
        self._learn(row, seconds, int(report.get("members", 1)))
        return bool(cut)

    def end(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Record how an attempt ended: for good, or to be tried again later."""
        row = self.rows[name]
        if row.state != "running":
            return
        row.kind = outcome.get("kind") or ""
        row.traceback = outcome.get("traceback") or ""
        row.result = outcome.get("result") or {}
        score = row.result.get("score")
        if score is not None and math.isfinite(score):
            row.score = score
        state, reason = outcome["state"], outcome.get("reason") or ""
        if state == "done":
            self._cuts.finish(row)
            self._close(row, "done", reason)
        elif row.reason:
            self._close(row, "stopped", row.reason)  # its bracket has cut it
        elif self.draining:
            self._close(row, "stopped", self.draining)
        elif state == "stopped":
            self._close(row, "stopped", reason)
        else:
            self._fault(row, outcome)
        self._settle_ready()
        self._look_for_growth()

    def drain(self, reason: str) -> None:
        """Start nothing more; the launcher tells what runs to save and stop."""
        if not self.draining:
            self.draining = reason
            self._say(f"stopping: {reason}")

    def interrupt(self, reason: str) -> None:
        """Mark what trains now as stopped, at once; what waits goes on waiting."""
        self.drain(reason)
        for row in self.running:
            self._close(row, "stopped", reason)

    def withhold(self, reasons: Mapping[str, str]) -> None:
        """Start none of these until the next call; ``reasons`` says what each waits for, by id."""
        if dict(reasons) == self._withheld:
            return
        self._withheld = dict(reasons)
        self._nothing_until = -math.inf
        self._look_for_growth()
        if self._log is not None:
            self._log.withheld(reasons)

    def skip(self, name: str, reason: str) -> None:
        """Close a trial that waits, and what needs it."""
        if self.rows[name].state == "waiting":
            self._close(self.rows[name], "skipped", reason)

    def set_machines(self, machines: Sequence[Machine]) -> None:
        """Machines came or went; what runs on those that are gone will be told as ended."""
        if list(machines) == self.machines:
            return
        self._room.set(machines)
        self._nothing_until = -math.inf
        self._fit(strict=False)  # others may come
        self._look_for_growth(changed=True)
        if self._log is not None:
            self._log.machines(machines, elastic=self.elastic)

    def waiting_for(self, name: str) -> str:
        """What a waiting trial waits for, and why; empty for any other."""
        row = self.rows[name]
        if row.state != "waiting":
            return ""
        if row.node.blocked is not None:
            return row.node.blocked
        missing = [need for need in row.node.needs if self.rows[need].state != "done"]
        missing += [other for other in row.node.after if self.rows[other].state not in ENDED]
        if missing:
            first = ", ".join(f"{other} ({self.rows[other].state})" for other in missing[:2])
            return f"{first} and {len(missing) - 2} more" if len(missing) > 2 else first
        if self.stopping:
            return self.stopping
        if name in self._withheld:
            return self._withheld[name]
        if row.kind_of_trial in self._hold.held:
            return self._hold.held[row.kind_of_trial]
        left = row.not_before - self.clock()
        if left > 0:
            return f"its next attempt in {left:.0f} s, after: {row.reason}"
        twin = self._twin(row)
        if twin is not None:
            return f"{twin.node.id} (running), which trains the same"
        limit = self.rules.max_concurrent
        if limit is not None and len(self._groups) >= limit:
            return f"one of {limit} trials to end (--max-concurrent)"
        demand = self._demands[name]
        if not self._room.could_hold(demand):
            return f"a machine with {words(demand)}"
        return f"room on a machine: {words(demand)}"

    # Decisions.

    def _companions(
        self, starts: Sequence[tuple[str, int]], candidates: Sequence[Job]
    ) -> list[Part]:
        """The first of ``starts``, and who trains with it: of what could not start now alone."""
        first = self._part(starts[0][0])
        if self._mates is None or first.key is None:
            return [first]
        key, places = first.key, dict(starts)
        same = [part for part in (self._part(job.id) for job in candidates) if part.key == key]
        leads = sorted((p for p in same if p.id in places), key=lambda part: part.id != first.id)
        willing = self._mates.willing(
            [self.rows[part.id].node for part in leads],
            [self.rows[part.id].node for part in same if part.id not in places],
            self.rows,
        )
        names = {node.id for node in willing}
        spare = list(self._room.free)
        for name, place in starts:
            spare[place] = spare[place].without(self._demands[name])

        def fits(group: Sequence[Part]) -> bool:
            members = [part.id for part in group]
            more = self._demands.together(members).beyond(self._demands[members[0]])
            wide = len(members) <= self._demands.width(members)
            return wide and spare[places[members[0]]].holds(more)

        mates = [part for part in same if part.id in names]
        group = gather(leads, mates, self._load(candidates), fits=fits)[0]
        return self._resolve_mates(group)

    def _resolve_mates(self, group: Sequence[Part]) -> list[Part]:
        """Those of a group that really have to run, each key once."""
        keys = {self._key(self.rows[group[0].id])}
        found = [group[0]]
        for mate in group[1:]:
            row = self.rows[mate.id]
            if row.state != "waiting" or not self._resolved(row):
                continue
            if self._twin(row) is None and self._key(row) not in keys:
                keys.add(self._key(row))
                found.append(mate)
        return found

    def _part(self, name: str) -> Part:
        node = self.rows[name].node
        key = None
        if self._mates is not None and name not in self._alone:
            key = self._mates.key(node, self.rows)
        work, tail = self._frontier.work_s(name), self._frontier.tail_s(name)
        return part(node, work=work, tail=tail, key=key)

    def _load(self, candidates: Sequence[Job]) -> Load:
        """What is still to be done, everything that waits alone."""
        running = self._groups.left(self.clock())
        demands = {self._demands[job.id] for job in candidates}
        places = slots(self.machines, demands, self.rules.max_concurrent)
        free_s = min((left for left, _ in running), default=math.inf)
        if self._growth.expected:
            places, free_s = max(places, len(self.wanted)), 0.0
        return Load(
            work_s=self._frontier.left_s + sum(left for left, _ in running),
            chain_s=max([self._frontier.longest_s, *(chain for _, chain in running)]),
            slots=places,
            free_s=free_s,
        )

    def _start(self, parts: Sequence[Part], place: int) -> Row:
        names = [part.id for part in parts]
        demand = self._demands.together(names)
        group = self._groups.start(parts, place, demand, self.clock())
        self._lonely_since = math.nan
        for name in names:
            self._frontier.start(name)
            row = self._running[name] = self.rows[name]
            row.machine = group.machine.id
            row.seconds_per_epoch = row.epoch_wall_s = math.nan
            row.together = group.members if len(names) > 1 else ()
            row.state, row.reason, row.kind, row.traceback = "running", "", "", ""
            row.earlier = row.seconds
            row.started, row.ended = self.clock(), math.nan
            row.attempts += 1
            self._cuts.remember(row)
            if row.history:
                row.epoch = max(row.epoch, row.history[-1][0])
        for name in names:
            row = self.rows[name]
            more = {"together": list(row.together)} if row.together else {}
            self._tell("start", row, machine=row.machine, demand=vars(demand), **more)
        self._look_for_growth()
        return self.rows[names[0]]

    def _fault(self, row: Row, outcome: Mapping[str, Any]) -> None:
        faults = self._faults[row.node.id]
        together = len(row.together) > 1
        if together and outcome.get("kind") in ("machine", "oom"):
            self._alone.add(row.node.id)
        retry = faults.judge(outcome, row.epoch, self.rules, together=together)
        reason = outcome.get("reason") or "no reason given"
        if retry is None:
            reason = faults.last_reason(outcome)
            if row.kind == "oom" and "batch" not in reason and row.trial is not None:
                batch = smaller_batch(row.trial, max((m.memory for m in self.machines), default=0))
                reason += f"; try a batch size of {batch}"
            self._close(row, "failed", reason)
            kind = row.kind_of_trial
            if self.rules.hold_back and self._hold.failure(kind, row.node.id, outcome, row.epoch):
                self._say(f"{self._hold.held[kind]}; trials of {'/'.join(kind)} wait")
            self._drop_held()
            return
        if not retry.charged:
            row.attempts -= 1
            row.preemptions += 1
        row.not_before = self.clock() + retry.delay_s
        self._leave(row, "waiting", self.exhausted or reason)
        if retry.whole:
            self._demands.enlarge(row.node.id, self.machines)
        self._frontier.again(row.node.id)
        self._tell("again", row, delay=retry.delay_s)

    def _close(self, row: Row, state: State, reason: str) -> None:
        was_running = row.state == "running"
        self._leave(row, state, reason)
        self._frontier.end(row.node.id, done=state == "done")
        if was_running and self._estimates is not None:
            self._estimates.finished(row.node.id, row.epoch, by_itself=state == "done")
            self._reestimate()
        self._tell("end", row, reused=row.reused)
        if state != "done" and not (state == "stopped" and self.draining):
            for name in self._needed_by[row.node.id]:
                if self.rows[name].state == "waiting":
                    why = f"needs {row.node.id}, which {_ended(state)}"
                    self._close(self.rows[name], "skipped", why)
        if was_running:
            self._drop_held()

    def _leave(self, row: Row, state: State, reason: str) -> None:
        if row.state == "running":
            row.ended = self.clock()
            del self._running[row.node.id]
            self._time_epochs(self._groups.leave(row.node.id, self.clock()))
        row.state, row.reason = state, reason

    def _drop_held(self) -> None:
        """Skip held siblings when none of their kind is left that could prove the code."""
        for kind in list(self._hold.held):
            if any(row.kind_of_trial == kind for row in self._running.values()):
                continue
            for row in self.rows.values():
                if row.state == "waiting" and row.kind_of_trial == kind:
                    self._close(row, "skipped", self._hold.held[kind])

    def _candidates(self) -> list[Job]:
        now = self.clock()
        return [
            replace(job, demand=self._demands[job.id])
            for job in self._frontier.ready
            if (row := self.rows[job.id]).not_before <= now
            and row.kind_of_trial not in self._hold.held
            and job.id not in self._withheld
            and self._twin(row) is None
        ]

    def _next_attempt(self) -> float:
        """When the next back-off is over; infinite when nothing waits for that."""
        now = self.clock()
        times = (self.rows[job.id].not_before for job in self._frontier.ready)
        return min((time for time in times if time > now), default=math.inf)

    def _twin(self, row: Row) -> Row | None:
        """A running trial with the same key: both would write one folder."""
        key = self._key(row)
        if key is None:
            return None
        return next((r for r in self._running.values() if self._key(r) == key), None)

    def _key(self, row: Row) -> str | None:
        if row.trial is None:
            return None
        name = row.node.id
        if name not in self._keys:
            self._keys[name] = row.trial.key
        return self._keys[name]

    # What is known already.

    def _settle_ready(self) -> None:
        """Take over what is settled; a search trial is made only when it starts."""
        again = True
        while again and not self.stopping:
            again = False
            for job in self._frontier.ready:
                row = self.rows[job.id]
                if row.node.search is None and row.state == "waiting":
                    again = not self._resolved(row) or again

    def _resolved(self, row: Row) -> bool:
        """Whether the row has a trial that must run; else it has been closed."""
        if row.trial is None:
            try:
                row.trial = self._resolve(row.node, self.rows)
            except Unresolvable as error:
                self._close(row, "skipped", str(error))
                return False
        return not self._take_over(row)

    def _take_over(self, row: Row) -> bool:
        name = row.node.id
        if name in self._looked_up:
            return False
        self._looked_up.add(name)
        found = self._settled(row)
        if found is None:
            return False
        row.take_over(found)
        self._cuts.remember(row, finished=found.state == "done")
        self._close(row, found.state, found.reason)
        return True

    # Estimates.

    def _time_epochs(self, group: Group) -> None:
        """An epoch of a group lasts as long as the parts of its members together."""
        rows = [self.rows[name] for name in group.running]
        wall = sum(row.seconds_per_epoch for row in rows)
        if math.isfinite(wall):
            for row in rows:
                row.epoch_wall_s = wall

    def _learn(self, row: Row, seconds: float, members: int) -> None:
        if self._estimates is not None and math.isfinite(seconds):
            shared = shared_part(row.node.cell.backbone)
            self._estimates.epoch(row, alone_s(seconds, shared, members))
            self._reestimate()

    def _reestimate(self) -> None:
        works = self._estimates.works() if self._estimates is not None else {}
        if works:
            self._frontier.reestimate(works)

    # Limits and machines.

    def _check_budget(self) -> None:
        limit = self.rules.max_gpu_hours
        if limit is None or self.stopping or self.gpu_hours < limit:
            return
        waiting = [row for row in self.rows.values() if row.state == "waiting"]
        if waiting:
            self.exhausted = f"budget of {limit:g} GPU hours reached"
            self._say(f"{self.exhausted}: {len(waiting)} trials are not started")
            for row in waiting:
                row.reason = self.exhausted

    def _check_lonely(self, candidates: Iterable[Job]) -> None:
        """Give up on trials that no machine can hold any more, after a while without any work."""
        stuck = [job.id for job in candidates if not self._room.could_hold(job.demand)]
        if self.elastic or self._running or not stuck:
            self._lonely_since = math.nan
            return
        if math.isnan(self._lonely_since):
            self._lonely_since = self.clock()
            self._say(f"{stuck[0]} waits for a machine with {words(self._demands[stuck[0]])}")
        if self.clock() - self._lonely_since < self.rules.machine_wait_s:
            return
        for name in stuck:
            why = f"no machine with {words(self._demands[name])} is left"
            self._close(self.rows[name], "skipped", why)

    def _look_for_growth(self, *, changed: bool = False) -> None:
        """Note whether a cluster that can grow has a reason to; at events that a log has."""
        if self._mates is None or not self._growth.can_grow:
            return
        held, most = self._hold.held, self.rules.max_concurrent
        wanted = [group.demand for group in self._groups.all] + [
            self._demands[job.id]
            for job in self._frontier.ready
            if job.id not in self._withheld and self.rows[job.id].kind_of_trial not in held
        ]
        self._growth.look(
            len(wanted[:most]), slots(self.machines, set(wanted), most), changed=changed
        )

    def _fit(self, *, strict: bool) -> None:
        """Fit the demands of what has not started to the machines there are."""
        waiting = [
            name
            for name, row in self.rows.items()
            if row.state == "waiting" and row.node.blocked is None
        ]
        self._demands.fit(waiting, self.machines, strict=strict)

    def _say(self, text: str) -> None:
        self._note(text)
        if self._log is not None:
            self._log.note(text)

    def _tell(self, event: EventName, row: Row, **more: Any) -> None:
        self._nothing_until = -math.inf
        if self._log is not None:
            self._log.row(event, row, **more)
        self._listen(event, row)


def _ended(state: State) -> str:
    return {"failed": "failed", "skipped": "was skipped", "stopped": "was stopped"}.get(
        state, f"is {state}"
    )
