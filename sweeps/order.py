"""The scheduling policy, a pure function: (ready jobs, ranks, free machines) -> what starts now.

Priority is the upward rank: a job's own estimated work plus that of the longest chain that waits
for it, so that the critical path goes first; among equals the longest job goes first. Any ready
job that fits is started (no device idles while a job could use it), which keeps the makespan of
one-device jobs within total work / devices + critical path (Graham 1969).

`Frontier` keeps which jobs are ready, for the real sweep (`SweepState`) and the simulated one.

Source: Topcuoglu, Hariri & Wu, HEFT, IEEE TPDS 13(3), 2002.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

# Room for the rounding of fractions: far below Ray's own step of 1e-4.
EPSILON = 1e-9


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one trial occupies: CPU cores, GPUs and bytes of main memory."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0

    def beyond(self, other: Demand) -> Demand:
        """What this one takes more than another; nothing where it takes less."""
        return Demand(
            cpus=max(self.cpus - other.cpus, 0.0),
            gpus=max(self.gpus - other.gpus, 0.0),
            memory=max(self.memory - other.memory, 0),
        )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one machine offers, in the units of `Demand`; ``id`` is Ray's node id."""

    cpus: float
    gpus: float = 0.0
    memory: int = 0
    id: str = ""

    def holds(self, demand: Demand) -> bool:
        """Whether the demand fits into what is offered."""
        return (
            demand.cpus <= self.cpus + EPSILON
            and demand.gpus <= self.gpus + EPSILON
            and demand.memory <= self.memory
        )

    def without(self, demand: Demand) -> Machine:
        """What is left when the demand is served."""
        return Machine(
            cpus=self.cpus - demand.cpus,
            gpus=self.gpus - demand.gpus,
            memory=self.memory - demand.memory,
            id=self.id,
        )

    def having_back(self, demand: Demand) -> Machine:
        """What there is again when a trial of this demand has ended."""
        return Machine(
            cpus=self.cpus + demand.cpus,
            gpus=self.gpus + demand.gpus,
            memory=self.memory + demand.memory,
            id=self.id,
        )

    def times(self, demand: Demand) -> int:
        """How many trials of a demand the machine holds at once."""
        rooms = [self.cpus // demand.cpus] if demand.cpus else []
        rooms += [self.gpus // demand.gpus] if demand.gpus else []
        rooms += [self.memory // demand.memory] if demand.memory else []
        return int(min(rooms, default=0))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the policy knows of a node.

    ``needs`` must be done before it starts, ``after`` must have ended, however they did;
    ``work`` is the estimated duration in seconds.
    """

    id: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    work: float = 1.0
    demand: Demand = field(default_factory=Demand)


def plan(
    ready: Sequence[Job], ranks: Mapping[str, float], free: Sequence[Machine]
) -> list[tuple[str, int]]:
    """What to start now, most urgent first, each with the index of the machine that it goes to.

    ``free`` is what each machine has left. A job goes to the machine on which it leaves the
    least room (best fit), so that large holes stay whole for large jobs. Jobs of equal rank and
    work keep their order.
    """
    left = list(free)
    open_places = [i for i, machine in enumerate(left) if machine.cpus > EPSILON]
    starts: list[tuple[str, int]] = []
    too_large: Demand | None = None
    for job in sorted(ready, key=lambda job: (-ranks[job.id], -job.work)):
        if not open_places:
            break
        # What did not fit a moment ago does not fit now: rooms only shrink.
        if job.demand is too_large:
            continue
        fitting = [i for i in open_places if left[i].holds(job.demand)]
        if not fitting:
            too_large = job.demand
            continue
        best = min(fitting, key=lambda i: (left[i].gpus, left[i].memory, left[i].cpus))
        left[best] = left[best].without(job.demand)
        if left[best].cpus <= EPSILON:
            open_places.remove(best)
        starts.append((job.id, best))
    return starts


def upward_ranks(jobs: Iterable[Job]) -> dict[str, float]:
    """Work of the longest chain that starts with each job; both `needs` and `after` are links.

    Raises:
        ValueError: a need is unknown, or the needs form a circle.
    """
    return dict(Frontier(jobs).ranks)


@dataclass
class _Gate:
    """What a set of jobs waits for, together: all rates of a baseline, for instance."""

    before: frozenset[str]
    members: list[str] = field(default_factory=list)
    closed: int = 0


Phase = Literal["waiting", "started", "ended"]


class Frontier:
    """Which jobs are ready, kept up to date job by job.

    Jobs that wait for the same ones share a gate, so that 4,400 trials of which half wait for a
    hundred others cost little.

    Raises:
        ValueError: two jobs have one id, a need is unknown, or the needs form a circle.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs: dict[str, Job] = {}
        self._index: dict[str, int] = {}
        for job in jobs:
            if job.id in self._jobs:
                raise ValueError(f"two jobs are called {job.id}")
            self._index[job.id] = len(self._jobs)
            self._jobs[job.id] = job
        self._phase: dict[str, Phase] = dict.fromkeys(self._jobs, "waiting")
        # Gates that a job's being done (``needs``) or its end (``after``) helps to open.
        self._needed: dict[str, list[_Gate]] = {name: [] for name in self._jobs}
        self._awaited: dict[str, list[_Gate]] = {name: [] for name in self._jobs}
        self._gate: dict[str, _Gate] = {}
        self._build_gates()
        self._order = self._topological()
        self._demands = {job.demand for job in self._jobs.values()}
        self._ranks: dict[str, float] = {}
        self._left_s = sum(job.work for job in self._jobs.values())
        self._rank()
        self._sort()

    @property
    def ready(self) -> list[Job]:
        """Jobs that wait for nothing and are not started, the most urgent first."""
        return list(self._ready)

    @property
    def ranks(self) -> Mapping[str, float]:
        """Upward rank of every job, in seconds."""
        return self._ranks

    @property
    def left_s(self) -> float:
        """Estimated seconds of all jobs that wait, ready or not."""
        return self._left_s

    @property
    def longest_s(self) -> float:
        """Rank of the most urgent ready job: no chain of jobs that wait is longer; 0 without."""
        return self._ranks[self._ready[0].id] if self._ready else 0.0

    def work_s(self, name: str) -> float:
        """Estimated seconds of a job."""
        return self._jobs[name].work

    def urgency(self, name: str) -> tuple[float, float, int]:
        """What ready jobs are sorted by: the most urgent has the least."""
        return -self._ranks[name], -self._jobs[name].work, self._index[name]

    def tail_s(self, name: str) -> float:
        """Seconds of the longest chain that waits for a job's end."""
        return self._ranks[name] - self._jobs[name].work

    def is_ready(self, name: str) -> bool:
        """Whether a job waits for nothing and is not started."""
        return self._phase[name] == "waiting" and self._gate[name].closed == 0

    def head(self, count: int) -> list[Job]:
        """The ``count`` most urgent ready jobs of each demand, the most urgent first.

        On machines with at most ``count`` free slots `plan` starts the same jobs of them as of
        all, at a small part of the cost.
        """
        if len(self._demands) == 1:
            return self._ready[:count]
        taken: dict[Demand, int] = {}
        chosen = []
        for job in self._ready:
            number = taken.get(job.demand, 0)
            if number < count:
                taken[job.demand] = number + 1
                chosen.append(job)
        return chosen

    def start(self, name: str) -> None:
        """A ready job was started."""
        if not self.is_ready(name):
            raise ValueError(f"{name} cannot start: it is {self._phase[name]} or waits for others")
        self._remove(name)
        self._phase[name] = "started"
        self._left_s -= self._jobs[name].work

    def again(self, name: str) -> None:
        """A started job waits once more, to be tried again."""
        if self._phase[name] != "started":
            raise ValueError(f"{name} cannot wait again: it is {self._phase[name]}")
        self._phase[name] = "waiting"
        self._left_s += self._jobs[name].work
        self._insert(name)

    def end(self, name: str, *, done: bool) -> None:
        """A job ended, started or not (skipped, reused); what needs it runs only if it is done."""
        if self._phase[name] == "ended":
            raise ValueError(f"{name} has ended already")
        if self.is_ready(name):
            self._remove(name)
        if self._phase[name] == "waiting":
            self._left_s -= self._jobs[name].work
        self._phase[name] = "ended"
        opened = list(self._awaited[name])
        if done:
            opened += self._needed[name]
        for gate in opened:
            gate.closed -= 1
            if gate.closed == 0:
                for member in gate.members:
                    if self._phase[member] == "waiting":
                        self._insert(member)

    def reestimate(self, works: Mapping[str, float]) -> None:
        """Take new estimates in seconds, of any of the jobs; ranks and order follow."""
        for name, work in works.items():
            self._jobs[name] = replace(self._jobs[name], work=work)
        waiting = (job for job in self._jobs.values() if self._phase[job.id] == "waiting")
        self._left_s = sum(job.work for job in waiting)
        self._rank()
        self._sort()

    def _build_gates(self) -> None:
        gates: dict[tuple[tuple[str, ...], tuple[str, ...]], _Gate] = {}
        for job in self._jobs.values():
            gate = gates.get((job.needs, job.after))
            if gate is None:
                needs = dict.fromkeys(job.needs)
                after = [name for name in dict.fromkeys(job.after) if name not in needs]
                for name in (*needs, *after):
                    if name not in self._jobs:
                        raise ValueError(f"{job.id} needs {name}, which is not in the study")
                gate = _Gate(frozenset((*needs, *after)), closed=len(needs) + len(after))
                gates[job.needs, job.after] = gate
                for name in needs:
                    self._needed[name].append(gate)
                for name in after:
                    self._awaited[name].append(gate)
            gate.members.append(job.id)
            self._gate[job.id] = gate

    def _topological(self) -> list[_Gate]:
        """Gates, each before those that wait for its members."""
        gates = list({id(gate): gate for gate in self._gate.values()}.values())
        missing = {id(gate): len(gate.before) for gate in gates}
        order = [gate for gate in gates if not gate.before]
        for gate in order:
            for member in gate.members:
                for later in (*self._needed[member], *self._awaited[member]):
                    missing[id(later)] -= 1
                    if missing[id(later)] == 0:
                        order.append(later)
        if len(order) < len(gates):
            stuck = sorted({name for gate in gates if missing[id(gate)] for name in gate.members})
            raise ValueError(f"needs form a circle among {stuck}")
        return order

    def _rank(self) -> None:
        tails: dict[int, float] = {}
        for gate in reversed(self._order):
            longest = 0.0
            for name in gate.members:
                later = (*self._needed[name], *self._awaited[name])
                rank = self._jobs[name].work + max((tails[id(g)] for g in later), default=0.0)
                self._ranks[name] = rank
                longest = max(longest, rank)
            tails[id(gate)] = longest

    def _sort(self) -> None:
        names = [name for name in self._jobs if self.is_ready(name)]
        names.sort(key=self.urgency)
        self._keys = [self.urgency(name) for name in names]
        self._ready = [self._jobs[name] for name in names]

    def _insert(self, name: str) -> None:
        key = self.urgency(name)
        place = bisect_left(self._keys, key)
        self._keys.insert(place, key)
        self._ready.insert(place, self._jobs[name])

    def _remove(self, name: str) -> None:
        place = bisect_left(self._keys, self.urgency(name))
        del self._keys[place], self._ready[place]
