"""A sweep on a virtual clock: the real policy, made-up trials, hours in milliseconds.

`simulate` runs `order.plan` over an `order.Frontier`, as `SweepState` does, with durations that
the policy knows or only estimates, machine faults and retries, slow trials and early stops; frozen
trials of one encoder train together as `fusion.gather` says, if asked for. `replay` drives the real
`SweepState` with the events of a real sweep.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from sharedenc.errors import SpecError
from sharedenc.spec import Cell, Recipe
from sweeps import fusion
from sweeps.demands import together
from sweeps.estimates import Estimates
from sweeps.faults import Rules, backoff
from sweeps.flops import training_gflop
from sweeps.fusion import MOST_TOGETHER, Fuse, Load, Part
from sweeps.grid import full_grid
from sweeps.order import Demand, Frontier, Job, Machine, plan, upward_ranks
from sweeps.replay import replay as replay

if TYPE_CHECKING:
    from sweeps.brackets import Ladder

Durations = Literal["known", "estimated"]

# The reference study's numbers of images: training, validation, test.
IMAGES = (90_515, 4_764, 4_031)

# What the made-up devices reach, in TFLOP/s; the policy is not told.
EFFECTIVE_TFLOPS = {
    "resnet18": 20.0,
    "mobilenet_v3_large": 3.0,
    "efficientnet_v2_s": 10.0,
    "densenet121": 10.0,
}
MEDIAN_EPOCHS, SIGMA_EPOCHS, FEWEST_EPOCHS = 60.0, 0.5, 20
EARLY_STOP_EPOCHS = 24
STRAGGLER = 2.0
CHECKPOINT_S = 600.0
GPUS_PER_NODE = 8


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What goes wrong: probabilities per attempt (failures) and per trial (the others).

    A failed attempt loses what it did since its last checkpoint; a straggler takes ``slow`` times
    as long; an early stop ends a trial after its first rung.
    """

    failures: float = 0.0
    stragglers: float = 0.0
    early_stops: float = 0.0
    slow: float = STRAGGLER
    checkpoint_s: float = CHECKPOINT_S

    def __post_init__(self) -> None:
        for name in ("failures", "stragglers", "early_stops"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SpecError(f"{name}={value} must be a probability, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Virtual:
    """A trial as it will really go: ``epochs`` of ``epoch_s`` seconds each.

    Trials of one ``fusion`` key may train together; ``shared`` is the part of an epoch, 0 to 1,
    that they then make once; of each, ``width`` are most in a group. ``asked`` are the bytes of
    memory that it wants itself, however its demand was fitted to machines; without, a group takes
    no more than its largest member.
    """

    id: str
    cell: Cell
    recipe: Recipe
    epochs: int
    epoch_s: float
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    demand: Demand = field(default_factory=Demand)
    ladder: Ladder | None = None
    fusion: str | None = None
    shared: float = 0.0
    width: int = MOST_TOGETHER
    asked: int = 0

    @cached_property
    def seconds(self) -> float:
        """Duration without faults."""
        return self.epochs * self.epoch_s

    def job(self, work: float) -> Job:
        """What the policy sees."""
        return Job(id=self.id, needs=self.needs, after=self.after, work=work, demand=self.demand)


@dataclass(frozen=True, kw_only=True)
class Span:
    """One attempt: who, from when to when, on which machine, and whether it ended the trial.

    ``group`` numbers what started together on one device, in the order of the starts.
    """

    id: str
    start: float
    end: float
    place: int
    final: bool = True
    group: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A simulated sweep. Times in seconds; ``bound``: max(critical path, work / devices).

    The bound is that of trials that train alone; with frozen trials together a sweep may end
    before it.
    """

    makespan: float
    bound: float
    spans: list[Span]
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Makespan over its lower bound, 1 or more without lost trials."""
        return self.makespan / self.bound if self.bound else 1.0

    @property
    def retries(self) -> int:
        """Attempts that a machine fault ended."""
        return sum(1 for span in self.spans if not span.final)

    @property
    def groups(self) -> list[list[Span]]:
        """Attempts by what occupied a device together."""
        found: dict[int, list[Span]] = {}
        for span in self.spans:
            found.setdefault(span.group, []).append(span)
        return list(found.values())

    @property
    def device_s(self) -> float:
        """Seconds for which devices were occupied, all of them together."""
        return sum(max(span.end for span in group) - group[0].start for group in self.groups)


def workload(trials: int, seed: int, chance: Chance | None = None) -> list[Virtual]:
    """The reference grid, each cell as often as needed: further learning rates and seeds.

    Operations x epochs / effective speed; epochs are lognormal (median 60, sigma 0.5, at least
    20). A swap starts when all rates of the baseline that it takes its encoder from have ended.

    Raises:
        SpecError: ``trials`` is less than 1.
    """
    if trials < 1:
        raise SpecError(f"trials={trials} must be at least 1")
    chance = chance or Chance()
    draw = random.Random(seed)
    cells = full_grid(EFFECTIVE_TFLOPS, freezes=("none", "frozen", "bias"))
    copies = [trials // len(cells) + (i < trials % len(cells)) for i in range(len(cells))]
    names = {
        cell: tuple(f"{cell} #{i}" for i in range(count))
        for cell, count in zip(cells, copies, strict=True)
    }
    recipe = Recipe()
    made = []
    for cell, copied in names.items():
        flop = training_gflop(cell) * 1e9 * IMAGES[0]
        epoch_s = flop / EFFECTIVE_TFLOPS[cell.backbone] / 1e12
        source = cell.source
        for name in copied:
            epochs = round(draw.lognormvariate(math.log(MEDIAN_EPOCHS), SIGMA_EPOCHS))
            slow = chance.slow if draw.random() < chance.stragglers else 1.0
            early = draw.random() < chance.early_stops
            made.append(
                Virtual(
                    id=name,
                    cell=cell,
                    recipe=recipe,
                    epochs=EARLY_STOP_EPOCHS if early else max(epochs, FEWEST_EPOCHS),
                    epoch_s=epoch_s * slow,
                    after=() if source is None else names[source],
                    demand=Demand(cpus=1, gpus=1),
                    fusion=_fusion_key(cell),
                    shared=fusion.shared_part(cell.backbone),
                )
            )
    return made


def _fusion_key(cell: Cell) -> str | None:
    """Copies of a frozen cell differ in their rates; cells of the pretrained encoder share it."""
    if cell.freeze != "frozen":
        return None
    return cell.name if cell.source is not None else f"{cell.backbone}/{cell.strategy}"


def gpus(count: int, per_node: int = GPUS_PER_NODE) -> list[Machine]:
    """Machines with ``count`` GPUs in all, and one core for each."""
    if count < 1:
        raise SpecError(f"gpus={count} must be at least 1")
    sizes = [per_node] * (count // per_node) + ([count % per_node] if count % per_node else [])
    return [Machine(cpus=size, gpus=size) for size in sizes]


def lower_bound(trials: Sequence[Virtual], devices: int) -> float:
    """No schedule ends earlier: the longest chain, or all work spread evenly over the devices."""
    chain = max(upward_ranks(trial.job(trial.seconds) for trial in trials).values())
    return max(chain, sum(trial.seconds for trial in trials) / devices)


def fused_bound(trials: Sequence[Virtual], devices: int) -> float:
    """No schedule ends earlier, whoever trains together: of each key the common part once."""
    chain = max(upward_ranks(trial.job(trial.seconds) for trial in trials).values())
    work, common = 0.0, dict[str, float]()
    for trial in trials:
        if trial.fusion is None:
            work += trial.seconds
            continue
        shared = trial.seconds * trial.shared
        work += trial.seconds - shared
        common[trial.fusion] = max(common.get(trial.fusion, 0.0), shared)
    return max(chain, (work + sum(common.values())) / devices)


def simulate(
    trials: Sequence[Virtual],
    machines: Sequence[Machine],
    *,
    durations: Durations = "known",
    estimates: Estimates | None = None,
    works: Mapping[str, float] | None = None,
    chance: Chance | None = None,
    rules: Rules | None = None,
    seed: int = 0,
    fuse: bool = False,
) -> Outcome:
    """Run trials to their ends.

    Args:
        durations: ``known``: the policy is told how long each trial takes. ``estimated``: it has
            ``estimates`` (a model of operations, if not given) and learns from epochs and ends.
        works: Estimates in seconds by id that the policy is told instead, and keeps.
        rules: How often and after which wait a faulty attempt is repeated.
        seed: Of the faults.
        fuse: Let frozen trials of one encoder train together.
    """
    if works is None and durations == "estimated":
        estimates = estimates or Estimates(trials, IMAGES, device="cuda")
        works = estimates.expected()
    elif works is None:
        works = {trial.id: trial.seconds for trial in trials}
    learner = estimates if durations == "estimated" else None
    return _Simulation(trials, machines, works, learner, chance, rules, seed, fuse).run()


class _Group:
    """Trials on one device: parts as they really are, and as the policy expects them to be."""

    def __init__(self, number: int, place: int, start: float, told: list[Part]) -> None:
        self.number, self.place, self.start = number, place, start
        self.running = [part.id for part in told]
        self.lost = False
        self.expected = dict(zip(self.running, fusion.ends(told), strict=True))
        self.tails = {part.id: part.tail for part in told}
        self.parts: dict[str, Part] = {}
        self.ends: dict[str, float] = {}

    def go(self, parts: list[Part]) -> None:
        """Say what its trials really have before them."""
        self.parts = {part.id: part for part in parts}
        self.ends = dict(zip(self.parts, fusion.ends(parts), strict=True))

    def left(self, now: float) -> tuple[float, float]:
        """What the policy expects: seconds to the end of the last, and of the longest chain."""
        spent = now - self.start
        left = [(max(self.expected[name] - spent, 0.0), self.tails[name]) for name in self.running]
        return max(left)[0], max(own + tail for own, tail in left)

    def trained(self, name: str, spent: float) -> float:
        """Seconds that a trial would have needed alone for what it did in ``spent`` together.

        Between two ends all go on evenly; an end is where they had done a whole part.
        """
        part = self.parts[name]
        if len(self.parts) == 1:
            return min(spent, part.work)
        marks = sorted((end, self.parts[n].common_s) for n, end in self.ends.items())
        before_t = before_x = 0.0
        for end, common in marks:
            if spent <= end:
                rate = (common - before_x) / (end - before_t) if end > before_t else 0.0
                return min((before_x + rate * (spent - before_t)) / part.shared, part.work)
            before_t, before_x = end, common
        return part.work


class _Simulation:
    def __init__(
        self,
        trials: Sequence[Virtual],
        machines: Sequence[Machine],
        works: Mapping[str, float],
        estimates: Estimates | None,
        chance: Chance | None,
        rules: Rules | None,
        seed: int,
        fuse: bool,
    ) -> None:
        self.trials = {trial.id: trial for trial in trials}
        self.machines = list(machines)
        self.estimates = estimates
        self.frontier = Frontier(trial.job(works[trial.id]) for trial in trials)
        self.chance, self.rules = chance or Chance(), rules or Rules()
        self.random = random.Random(seed)
        self.slots = self._slots()
        self.left = {trial.id: trial.seconds for trial in trials}
        self.faults = dict.fromkeys(self.trials, 0)
        # Events: (time, number, kind, trial, group); numbers keep equal times in order.
        self.events: list[tuple[float, int, str, str, _Group | None]] = []
        self.counter = 0
        self.running: dict[int, _Group] = {}
        self.groups = 0
        self.fuse = fuse
        self.by_key: dict[str, list[str]] = {}
        for trial in trials:
            if trial.fusion is not None:
                self.by_key.setdefault(trial.fusion, []).append(trial.id)
        self.backing_off: set[str] = set()
        self.spans: list[Span] = []
        self.failed: list[str] = []
        self.ends_to_learn = 1
        self.ends = 0

    def run(self) -> Outcome:
        free = list(self.machines)
        room = self.slots
        now = 0.0
        while True:
            ready = self.frontier.head(room + len(self.backing_off)) if room else []
            if self.backing_off:
                ready = [job for job in ready if job.id not in self.backing_off]
            starts = plan(ready, self.frontier.ranks, free) if ready else []
            groups = self._together(now, starts, free)
            for (_, place), parts in zip(starts, groups, strict=True):
                free[place] = free[place].without(self._demand(parts))
                room -= 1
                self._start(now, place, parts)
            if not self.events:
                break
            now, _, kind, name, group = heapq.heappop(self.events)
            if group is None:
                self.backing_off.discard(name)
                continue
            if group.lost:
                continue
            self._end(now, name, group, kind)
            if not group.running:
                demand = self._demand(list(group.parts.values()))
                free[group.place] = free[group.place].having_back(demand)
                room += 1
                del self.running[group.number]
            if self.estimates is not None and self.ends >= self.ends_to_learn:
                self._learn(now)
        ended = {span.id for span in self.spans if span.final}
        skipped = tuple(name for name in self.trials if name not in ended)
        makespan = max((span.end for span in self.spans), default=0.0)
        bound = lower_bound(list(self.trials.values()), self.slots)
        return Outcome(
            makespan=makespan,
            bound=bound,
            spans=self.spans,
            failed=tuple(self.failed),
            skipped=skipped,
        )

    def _slots(self) -> int:
        """Trials that fit at once: of the smallest demand."""
        demands = {trial.demand for trial in self.trials.values()}
        return max(sum(machine.times(demand) for machine in self.machines) for demand in demands)

    def _together(
        self, now: float, starts: Sequence[tuple[str, int]], free: Sequence[Machine]
    ) -> list[list[Part]]:
        """Who trains with each of what starts now, on machines that have ``free`` left."""
        parts = [self._part(name) for name, _ in starts]
        keys = {part.key for part in parts} - {None}
        if not keys:
            return [[part] for part in parts]
        first = {part.id for part in parts}
        waiting = [
            name
            for key in keys
            for name in self.by_key[str(key)]
            if name not in first and name not in self.backing_off and self.frontier.is_ready(name)
        ]
        if not waiting:
            return [[part] for part in parts]
        waiting.sort(key=self.frontier.urgency)
        running = [group.left(now) for group in self.running.values()]
        load = Load(
            work_s=self.frontier.left_s + sum(left for left, _ in running),
            chain_s=max(self.frontier.longest_s, max((c for _, c in running), default=0.0)),
            slots=self.slots,
            free_s=min((left for left, _ in running), default=math.inf),
        )
        spare, places = list(free), dict(starts)
        for name, place in starts:
            spare[place] = spare[place].without(self.trials[name].demand)

        def fits(group: Sequence[Part]) -> bool:
            wide = len(group) <= min(self.trials[part.id].width for part in group)
            return wide and spare[places[group[0].id]].holds(self._more(group))

        groups = fusion.gather(parts, [self._part(name) for name in waiting], load, fits=fits)
        for (_, place), group in zip(starts, groups, strict=True):
            # What one group on a machine has taken is not there for the next one.
            while len(group) > 1 and not spare[place].holds(self._more(group)):
                group.pop()
            spare[place] = spare[place].without(self._more(group))
        return groups

    def _demand(self, group: Sequence[Part]) -> Demand:
        """What trials occupy together, as in the real sweep."""
        trials = [self.trials[part.id] for part in group]
        if len(trials) == 1:
            return trials[0].demand
        asked = max(trial.asked for trial in trials)
        demand = together([trial.demand for trial in trials], asked)
        return demand if asked else replace(demand, memory=max(t.demand.memory for t in trials))

    def _more(self, group: Sequence[Part]) -> Demand:
        """What a group takes beyond its first member's demand."""
        return self._demand(group).beyond(self.trials[group[0].id].demand)

    def _part(self, name: str) -> Part:
        trial = self.trials[name]
        # After a fault a trial is tried alone.
        alone = not self.fuse or self.faults[name] > 0
        return Part(
            id=name,
            work=self.frontier.work_s(name),
            key=None if alone else trial.fusion,
            shared=trial.shared,
            tail=self.frontier.tail_s(name),
        )

    def _start(self, now: float, place: int, told: list[Part]) -> None:
        self.groups += 1
        group = self.running[self.groups] = _Group(self.groups, place, now, told)
        group.go([replace(part, work=self.left[part.id]) for part in told])
        for part in told:
            self.frontier.start(part.id)
        total = max(group.ends.values())
        fault = math.inf
        if self.random.random() < self.chance.failures:
            fault = self.random.random() * total
            self._event(now + fault, "fault", told[0].id, group)
        for name, end in group.ends.items():
            if end < fault:
                self._event(now + end, "done", name, group)

    def _end(self, now: float, name: str, group: _Group, kind: str) -> None:
        self.ends += 1
        if kind == "fault":
            group.lost = True
            for other in list(group.running):
                group.running.remove(other)
                self._fault(now, other, group)
            return
        group.running.remove(name)
        self._span(now, name, group)
        self.frontier.end(name, done=True)
        if self.estimates is not None:
            self._observe(name, self.trials[name].seconds)
            self.estimates.finished(name, self.trials[name].epochs)

    def _span(self, now: float, name: str, group: _Group, *, final: bool = True) -> None:
        self.spans.append(
            Span(
                id=name,
                start=group.start,
                end=now,
                place=group.place,
                final=final,
                group=group.number,
            )
        )

    def _fault(self, now: float, name: str, group: _Group) -> None:
        kept = (now - group.start) // self.chance.checkpoint_s * self.chance.checkpoint_s
        self.left[name] -= group.trained(name, kept)
        self.faults[name] += 1
        final = self.faults[name] >= self.rules.machine_attempts
        self._span(now, name, group, final=final)
        if final:
            self.failed.append(name)
            self.frontier.end(name, done=False)
            return
        self.frontier.again(name)
        self.backing_off.add(name)
        self._event(now + backoff(self.faults[name] - 1, self.rules), "again", name, None)

    def _learn(self, now: float) -> None:
        """Tell the epochs of what runs, and sort what waits by the new estimates.

        Not at every end: with thousands of trials a single one changes little.
        """
        assert self.estimates is not None
        for group in self.running.values():
            for name in group.running:
                done = self.trials[name].seconds - self.left[name]
                self._observe(name, done + group.trained(name, now - group.start))
        moved = self.estimates.works()
        if moved:
            self.frontier.reestimate(moved)
        self.ends_to_learn = self.ends + max(1, min(self.ends, len(self.trials) // 30))

    def _observe(self, name: str, trained_s: float) -> None:
        trial = self.trials[name]
        epoch = int(trained_s / trial.epoch_s + 1e-9)
        if self.estimates is not None and epoch > 0:
            self.estimates.observe(name, epoch, trial.epoch_s)

    def _event(self, time: float, kind: str, name: str, group: _Group | None) -> None:
        self.counter += 1
        heapq.heappush(self.events, (time, self.counter, kind, name, group))


def summary(
    trials: int,
    devices: int,
    *,
    seeds: int = 20,
    durations: Durations = "known",
    chance: Chance | None = None,
    per_node: int = GPUS_PER_NODE,
    fuse: Fuse = "auto",
) -> dict[str, object]:
    """Means over seeds 0, 1, ...: `sharedenc sweep simulate --json`.

    ``bound_h``, ``makespan_h`` and ``ratio_to_bound`` are of trials that train alone, means each
    with its ``_max``. Unless ``fuse`` is ``off``, ``fused_makespan_h`` is that of the same trials
    where frozen ones of an encoder may train together, ``fused_speedup`` how much sooner they all
    end (with its ``_min``), ``device_hours_saved`` the part of the device time, and ``groups`` the
    number of those with more than one member.
    """
    if seeds < 1:
        raise SpecError(f"seeds={seeds} must be at least 1")
    machines = gpus(devices, per_node)

    def run(fused: bool) -> list[Outcome]:
        return [
            simulate(workload(trials, seed, chance), machines, durations=durations, chance=chance,
                     seed=seed, fuse=fused)
            for seed in range(seeds)
        ]  # fmt: skip

    outcomes = run(False)
    busy = [outcome.device_s / (devices * outcome.makespan) for outcome in outcomes]
    values: Mapping[str, list[float]] = {
        "bound_h": [o.bound / 3600 for o in outcomes],
        "makespan_h": [o.makespan / 3600 for o in outcomes],
        "ratio_to_bound": [o.ratio for o in outcomes],
    }
    row: dict[str, object] = {"trials": trials, "devices": devices, "seeds": seeds}
    for name, numbers in values.items():
        row[name] = sum(numbers) / seeds
        row[f"{name}_max"] = max(numbers)
    row |= {
        "durations": durations,
        "busy": sum(busy) / seeds,
        "retries": sum(o.retries for o in outcomes) / seeds,
        "failed": sum(len(o.failed) for o in outcomes) / seeds,
        "skipped": sum(len(o.skipped) for o in outcomes) / seeds,
    }
    return row if fuse == "off" else row | _compared(outcomes, run(True))


def _compared(alone: Sequence[Outcome], fused: Sequence[Outcome]) -> dict[str, object]:
    """What training frozen trials together changes, sweep by sweep."""
    makespans = [o.makespan / 3600 for o in fused]
    speedups = [a.makespan / f.makespan for a, f in zip(alone, fused, strict=True)]
    saved = [1 - f.device_s / a.device_s for a, f in zip(alone, fused, strict=True)]
    groups = [sum(len(group) > 1 for group in o.groups) for o in fused]
    count = len(fused)
    return {
        "fused_makespan_h": sum(makespans) / count,
        "fused_makespan_h_max": max(makespans),
        "fused_speedup": sum(speedups) / count,
        "fused_speedup_min": min(speedups),
        "device_hours_saved": sum(saved) / count,
        "groups": sum(groups) / count,
    }
