"""The scheduling policy, a pure function: (nodes, state) -> what to start next.

Priority is the upward rank: a node's own estimated work plus that of the longest chain that
waits for it, so that the critical path goes first; among equals the longest node goes first.
Any ready node that fits is started (no slot idles while a node could use it), which keeps the
makespan within total work / slots + critical path (Graham 1969).

Source: Topcuoglu, Hariri & Wu, HEFT, IEEE TPDS 13(3), 2002.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one trial occupies: CPU cores, GPUs and bytes of main memory."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one machine offers, in the units of `Demand`."""

    cpus: float
    gpus: float = 0.0
    memory: int = 0

    def holds(self, demand: Demand) -> bool:
        """Whether the demand fits into what is offered."""
        return (
            demand.cpus <= self.cpus + 1e-9
            and demand.gpus <= self.gpus + 1e-9
            and demand.memory <= self.memory
        )

    def without(self, demand: Demand) -> Machine:
        """What is left when the demand is served."""
        return Machine(
            cpus=self.cpus - demand.cpus,
            gpus=self.gpus - demand.gpus,
            memory=self.memory - demand.memory,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the policy knows of a node: what it needs first, its estimated work, its demand."""

    id: str
    needs: tuple[str, ...] = ()
    work: float = 1.0
    demand: Demand = field(default_factory=Demand)


def upward_ranks(jobs: Iterable[Job]) -> dict[str, float]:
    """Work of the longest chain that starts with each job.

    Raises:
        ValueError: a need is unknown, or the needs form a circle.
    """
    by_id = {job.id: job for job in jobs}
    followers: dict[str, list[str]] = {name: [] for name in by_id}
    missing = {name: 0 for name in by_id}
    for job in by_id.values():
        for need in job.needs:
            if need not in by_id:
                raise ValueError(f"{job.id} needs {need}, which is not in the study")
            followers[need].append(job.id)
            missing[need] += 1
    ranks: dict[str, float] = {}
    leaves = [name for name, count in missing.items() if count == 0]
    while leaves:
        name = leaves.pop()
        job = by_id[name]
        ranks[name] = job.work + max((ranks[f] for f in followers[name]), default=0.0)
        for need in job.needs:
            missing[need] -= 1
            if missing[need] == 0:
                leaves.append(need)
    if len(ranks) < len(by_id):
        raise ValueError(f"needs form a circle among {sorted(set(by_id) - set(ranks))}")
    return ranks


def ready(jobs: Iterable[Job], done: AbstractSet[str], started: AbstractSet[str]) -> list[Job]:
    """Jobs that wait for nothing and are not started; ``started`` holds everything ever started."""
    return [job for job in jobs if job.id not in started and done >= set(job.needs)]


def plan(
    jobs: Sequence[Job],
    ranks: Mapping[str, float],
    *,
    done: AbstractSet[str],
    started: AbstractSet[str],
    free: Sequence[Machine],
) -> list[tuple[str, int]]:
    """What to start now, most urgent first, each with the index of the machine that it goes to.

    ``free`` is what each machine has left. A job goes to the machine on which it leaves the
    least memory (best fit), so that large holes stay whole for large jobs.
    """
    left = list(free)
    starts: list[tuple[str, int]] = []
    for job in sorted(ready(jobs, done, started), key=lambda job: (-ranks[job.id], -job.work)):
        fitting = [i for i, machine in enumerate(left) if machine.holds(job.demand)]
        if fitting:
            best = min(fitting, key=lambda i: (left[i].memory, left[i].cpus))
            left[best] = left[best].without(job.demand)
            starts.append((job.id, best))
    return starts
