"""The scheduling policy on a virtual clock."""

from __future__ import annotations

import heapq
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.order import Demand, Frontier, Job, Machine, plan, upward_ranks


@st.composite
def graphs(draw: st.DrawFn) -> list[Job]:
    count = draw(st.integers(1, 14))
    jobs = []
    for i in range(count):
        before = draw(st.sets(st.integers(0, i - 1), max_size=4)) if i else set()
        needs = {n for n in before if draw(st.booleans())}
        jobs.append(
            Job(
                id=str(i),
                needs=tuple(str(n) for n in sorted(needs)),
                after=tuple(str(n) for n in sorted(before - needs)),
                work=draw(st.floats(0.5, 20)),
                demand=Demand(cpus=draw(st.integers(1, 2)), memory=draw(st.integers(1, 10))),
            )
        )
    return jobs


def ready_by_definition(jobs: list[Job], done: set[str], ended: set[str], started: set[str]):
    """Ids of the jobs that wait for nothing, straight from the words of the contract."""
    return {
        job.id
        for job in jobs
        if job.id not in started | ended and done >= set(job.needs) and ended >= set(job.after)
    }


def longest_chain(jobs: list[Job]) -> float:
    """Critical path by a second way: earliest possible ends, in study order."""
    ends: dict[str, float] = {}
    for job in jobs:
        ends[job.id] = job.work + max((ends[n] for n in (*job.needs, *job.after)), default=0.0)
    return max(ends.values())


def run(
    jobs: list[Job], machines: list[Machine], failing: frozenset[str] = frozenset()
) -> dict[str, tuple[float, float]]:
    """Run the policy on a virtual clock, checking its rules; (start, end) of every job."""
    frontier = Frontier(jobs)
    by_id = {job.id: job for job in jobs}
    free, done, ended, spans = list(machines), set(), set(), {}
    running: list[tuple[float, str, int]] = []
    now = 0.0
    while True:
        for name, place in plan(frontier.ready, frontier.ranks, free):
            job = by_id[name]
            assert done.issuperset(job.needs), "started before its needs were done"
            assert ended.issuperset(job.after), "started before what it comes after had ended"
            assert free[place].holds(job.demand), "started where it does not fit"
            free[place] = free[place].without(job.demand)
            frontier.start(name)
            spans[name] = (now, now + job.work)
            heapq.heappush(running, (now + job.work, name, place))
        waiting = ready_by_definition(jobs, done, ended, set(spans))
        assert waiting == {job.id for job in frontier.ready}
        for name in waiting:
            assert not any(machine.holds(by_id[name].demand) for machine in free), "a slot idles"
        if not running:
            return spans
        now, name, place = heapq.heappop(running)
        ended.add(name)
        if name not in failing:
            done.add(name)
        frontier.end(name, done=name not in failing)
        free[place] = free[place].having_back(by_id[name].demand)


@settings(max_examples=60, deadline=None)
@given(jobs=graphs(), count=st.integers(1, 3))
def test_nothing_starts_before_its_needs_and_no_slot_idles(jobs: list[Job], count: int) -> None:
    machines = [Machine(cpus=2, memory=12)] * count
    assert len(run(jobs, machines)) == len(jobs)


@settings(max_examples=60, deadline=None)
@given(jobs=graphs(), failing=st.frozensets(st.integers(0, 13), max_size=4))
def test_what_needs_a_failed_job_never_runs_and_the_rest_does(
    jobs: list[Job], failing: frozenset[int]
) -> None:
    failed = frozenset(str(i) for i in failing)
    lost: set[str] = set()  # never started: a need failed or never ran, or is waited for in vain
    for job in jobs:
        if set(job.needs) & (failed | lost) or set(job.after) & lost:
            lost.add(job.id)
    assert set(run(jobs, [Machine(cpus=2, memory=12)] * 2, failed)) == {
        job.id for job in jobs if job.id not in lost
    }


@settings(max_examples=60, deadline=None)
@given(jobs=graphs(), slots=st.integers(1, 4))
def test_the_makespan_keeps_grahams_bound(jobs: list[Job], slots: int) -> None:
    jobs = [replace(job, demand=Demand()) for job in jobs]
    spans = run(jobs, [Machine(cpus=slots)])
    bound = sum(job.work for job in jobs) / slots + longest_chain(jobs)
    assert max(end for _, end in spans.values()) <= bound + 1e-6


@settings(max_examples=60, deadline=None)
@given(jobs=graphs(), count=st.integers(1, 3))
def test_the_head_of_the_queue_is_planned_like_the_whole_queue(jobs: list[Job], count: int) -> None:
    frontier = Frontier(jobs)
    free = [Machine(cpus=2, memory=12)] * count
    whole = plan(frontier.ready, frontier.ranks, free)
    assert plan(frontier.head(2 * count), frontier.ranks, free) == whole
    assert plan(list(reversed(frontier.ready)), frontier.ranks, free)[:1] == whole[:1] or len(
        {(frontier.ranks[job.id], job.work) for job in frontier.ready}
    ) < len(frontier.ready)


def test_the_longest_remaining_path_goes_first() -> None:
    jobs = [
        Job(id="long", work=5),
        Job(id="head", work=2),
        Job(id="tail", work=4, needs=("head",)),
        Job(id="short", work=1),
    ]
    assert upward_ranks(jobs) == {"long": 5, "head": 6, "tail": 4, "short": 1}
    frontier = Frontier(jobs)
    starts = plan(frontier.ready, frontier.ranks, [Machine(cpus=2)])
    assert [name for name, _ in starts] == ["head", "long"]


def test_equal_ranks_start_the_longest_job_first_and_equal_jobs_keep_their_order() -> None:
    jobs = [Job(id="a", work=1), Job(id="b", work=2, needs=("a",)), Job(id="c", work=3)]
    frontier = Frontier(jobs)
    assert plan(frontier.ready, frontier.ranks, [Machine(cpus=1)]) == [("c", 0)]
    twins = Frontier([Job(id=name) for name in ("z", "y", "x")])
    assert [job.id for job in twins.ready] == ["z", "y", "x"]


def test_a_large_job_keeps_its_hole_on_the_larger_machine() -> None:
    jobs = [
        Job(id="small", work=9, demand=Demand(memory=4)),
        Job(id="large", work=1, demand=Demand(memory=10)),
    ]
    free = [Machine(cpus=4, memory=12), Machine(cpus=4, memory=5)]
    starts = plan(jobs, upward_ranks(jobs), free)
    assert starts == [("small", 1), ("large", 0)]


def test_a_job_comes_after_others_however_they_ended() -> None:
    frontier = Frontier(
        [
            Job(id="search 0"),
            Job(id="search 1"),
            Job(id="final", after=("search 0", "search 1")),
            Job(id="swap", needs=("final",)),
        ]
    )
    frontier.end("search 0", done=False)  # skipped before it started
    assert [job.id for job in frontier.ready] == ["search 1"]
    frontier.start("search 1")
    frontier.end("search 1", done=False)
    assert [job.id for job in frontier.ready] == ["final"]
    frontier.start("final")
    frontier.end("final", done=False)
    assert frontier.ready == []


def test_a_job_that_waits_again_takes_its_old_place() -> None:
    frontier = Frontier([Job(id="a", work=3), Job(id="b", work=2), Job(id="c", work=1)])
    frontier.start("b")
    frontier.again("b")
    assert [job.id for job in frontier.ready] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="b cannot wait again: it is waiting"):
        frontier.again("b")


def test_new_estimates_change_the_order() -> None:
    frontier = Frontier(
        [Job(id="a", work=3), Job(id="b", work=2), Job(id="c", work=2, needs=("b",))]
    )
    assert [job.id for job in frontier.ready] == ["b", "a"]
    frontier.reestimate({"c": 0.5})
    assert [job.id for job in frontier.ready] == ["a", "b"]
    assert frontier.ranks == {"a": 3, "b": 2.5, "c": 0.5}
    frontier.start("a")
    assert [job.id for job in frontier.ready] == ["b"]


def test_misuse_is_refused() -> None:
    frontier = Frontier([Job(id="a"), Job(id="b", needs=("a",))])
    with pytest.raises(ValueError, match="b cannot start: it is waiting or waits for others"):
        frontier.start("b")
    frontier.end("a", done=True)
    with pytest.raises(ValueError, match="a has ended already"):
        frontier.end("a", done=True)


def test_circles_unknown_needs_and_doubles_are_refused() -> None:
    with pytest.raises(ValueError, match="circle among \\['a', 'b'\\]"):
        upward_ranks([Job(id="a", needs=("b",)), Job(id="b", after=("a",))])
    with pytest.raises(ValueError, match="a needs x"):
        upward_ranks([Job(id="a", needs=("x",))])
    with pytest.raises(ValueError, match="two jobs are called a"):
        upward_ranks([Job(id="a"), Job(id="a")])
