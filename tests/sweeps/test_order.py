"""The scheduling policy on a virtual clock."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.order import Demand, Job, Machine, plan, ready, upward_ranks


@st.composite
def graphs(draw: st.DrawFn) -> list[Job]:
    count = draw(st.integers(1, 14))
    jobs = []
    for i in range(count):
        needs = draw(st.sets(st.integers(0, i - 1), max_size=2)) if i else set()
        jobs.append(
            Job(
                id=str(i),
                needs=tuple(str(n) for n in sorted(needs)),
                work=draw(st.floats(0.5, 20)),
                demand=Demand(cpus=draw(st.integers(1, 2)), memory=draw(st.integers(1, 10))),
            )
        )
    return jobs


def simulate(jobs: list[Job], machines: list[Machine]) -> dict[str, tuple[float, float]]:
    """Run the policy on a virtual clock, checking its rules; (start, end) of every job."""
    ranks = upward_ranks(jobs)
    by_id = {job.id: job for job in jobs}
    free, done, spans = list(machines), set(), {}
    running: list[tuple[float, str, int]] = []
    now = 0.0
    while len(done) < len(jobs):
        for name, place in plan(jobs, ranks, done=done, started=set(spans), free=free):
            job = by_id[name]
            assert done.issuperset(job.needs), "started before its needs were done"
            assert free[place].holds(job.demand), "started where it does not fit"
            free[place] = free[place].without(job.demand)
            spans[name] = (now, now + job.work)
            heapq.heappush(running, (now + job.work, name, place))
        for job in ready(jobs, done, set(spans)):
            assert not any(machine.holds(job.demand) for machine in free), "a slot idles"
        now, name, place = heapq.heappop(running)
        done.add(name)
        demand = by_id[name].demand
        free[place] = free[place].without(Demand(cpus=-demand.cpus, memory=-demand.memory))
    return spans


@settings(max_examples=60, deadline=None)
@given(jobs=graphs(), count=st.integers(1, 3))
def test_nothing_starts_before_its_needs_and_no_slot_idles(jobs: list[Job], count: int) -> None:
    machines = [Machine(cpus=2, memory=12)] * count
    assert len(simulate(jobs, machines)) == len(jobs)


@settings(max_examples=60, deadline=None)
@given(jobs=graphs(), slots=st.integers(1, 4))
def test_the_makespan_keeps_grahams_bound(jobs: list[Job], slots: int) -> None:
    jobs = [Job(id=j.id, needs=j.needs, work=j.work) for j in jobs]
    spans = simulate(jobs, [Machine(cpus=slots)])
    bound = sum(j.work for j in jobs) / slots + max(upward_ranks(jobs).values())
    assert max(end for _, end in spans.values()) <= bound + 1e-6


def test_the_longest_remaining_path_goes_first() -> None:
    jobs = [
        Job(id="long", work=5),
        Job(id="head", work=2),
        Job(id="tail", work=4, needs=("head",)),
        Job(id="short", work=1),
    ]
    assert upward_ranks(jobs) == {"long": 5, "head": 6, "tail": 4, "short": 1}
    starts = plan(jobs, upward_ranks(jobs), done=set(), started=set(), free=[Machine(cpus=2)])
    assert [name for name, _ in starts] == ["head", "long"]


def test_equal_ranks_start_the_longest_job_first() -> None:
    jobs = [Job(id="a", work=1), Job(id="b", work=2, needs=("a",)), Job(id="c", work=3)]
    starts = plan(jobs, upward_ranks(jobs), done=set(), started=set(), free=[Machine(cpus=1)])
    assert starts == [("c", 0)]


def test_a_large_job_keeps_its_hole_on_the_larger_machine() -> None:
    jobs = [
        Job(id="small", work=9, demand=Demand(memory=4)),
        Job(id="large", work=1, demand=Demand(memory=10)),
    ]
    free = [Machine(cpus=4, memory=12), Machine(cpus=4, memory=5)]
    starts = plan(jobs, upward_ranks(jobs), done=set(), started=set(), free=free)
    assert starts == [("small", 1), ("large", 0)]


def test_circles_and_unknown_needs_are_refused() -> None:
    with pytest.raises(ValueError, match="circle among \\['a', 'b'\\]"):
        upward_ranks([Job(id="a", needs=("b",)), Job(id="b", needs=("a",))])
    with pytest.raises(ValueError, match="a needs x"):
        upward_ranks([Job(id="a", needs=("x",))])
