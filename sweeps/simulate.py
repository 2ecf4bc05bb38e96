"""A sweep on a virtual clock: the real policy, made-up trials, hours in milliseconds.

`simulate` runs `order.plan` over an `order.Frontier`, as `SweepState` does, with durations that
the policy knows or only estimates, machine faults and retries, slow trials and early stops.
`replay` drives the real `SweepState` with the events of a real sweep.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from sharedenc.errors import SpecError
from sharedenc.spec import Cell, Recipe
from sweeps.estimates import Estimates
from sweeps.faults import Rules, backoff
from sweeps.flops import training_gflop
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
    """A trial as it will really go: ``epochs`` of ``epoch_s`` seconds each."""

    id: str
    cell: Cell
    recipe: Recipe
    epochs: int
    epoch_s: float
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    demand: Demand = field(default_factory=Demand)
    ladder: Ladder | None = None

    @cached_property
    def seconds(self) -> float:
        """Duration without faults."""
        return self.epochs * self.epoch_s

    def job(self, work: float) -> Job:
        """What the policy sees."""
        return Job(id=self.id, needs=self.needs, after=self.after, work=work, demand=self.demand)


@dataclass(frozen=True, kw_only=True)
class Span:
    """One attempt: who, from when to when, on which machine, and whether it ended the trial."""

    id: str
    start: float
    end: float
    place: int
    final: bool = True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A simulated sweep. Times in seconds; ``bound``: max(critical path, work / devices)."""

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
                )
            )
    return made


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
) -> Outcome:
    """Run trials to their ends.

    Args:
        durations: ``known``: the policy is told how long each trial takes. ``estimated``: it has
            ``estimates`` (a model of operations, if not given) and learns from epochs and ends.
        works: Estimates in seconds by id that the policy is told instead, and keeps.
        rules: How often and after which wait a faulty attempt is repeated.
        seed: Of the faults.
    """
    if works is None and durations == "estimated":
        estimates = estimates or Estimates(trials, IMAGES, device="cuda")
        works = estimates.expected()
    elif works is None:
        works = {trial.id: trial.seconds for trial in trials}
    learner = estimates if durations == "estimated" else None
    return _Simulation(trials, machines, works, learner, chance, rules, seed).run()


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
        # Events: (time, number, kind, trial, machine); numbers keep equal times in order.
        self.events: list[tuple[float, int, str, str, int]] = []
        self.counter = 0
        self.started: dict[str, float] = {}
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
            for name, place in plan(ready, self.frontier.ranks, free) if ready else []:
                free[place] = free[place].without(self.trials[name].demand)
                room -= 1
                self._start(now, name, place)
            if not self.events:
                break
            now, _, kind, name, place = heapq.heappop(self.events)
            if kind == "again":
                self.backing_off.discard(name)
                continue
            free[place] = free[place].having_back(self.trials[name].demand)
            room += 1
            self._end(now, name, place, kind)
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
        return max(sum(_times(machine, demand) for machine in self.machines) for demand in demands)

    def _start(self, now: float, name: str, place: int) -> None:
        self.frontier.start(name)
        self.started[name] = now
        left = self.left[name]
        if self.random.random() < self.chance.failures:
            self._event(now + self.random.random() * left, "fault", name, place)
        else:
            self._event(now + left, "done", name, place)

    def _end(self, now: float, name: str, place: int, kind: str) -> None:
        start = self.started.pop(name)
        self.ends += 1
        if kind == "done":
            self.spans.append(Span(id=name, start=start, end=now, place=place))
            self.frontier.end(name, done=True)
            if self.estimates is not None:
                self._observe(name, self.trials[name].seconds)
                self.estimates.finished(name, self.trials[name].epochs)
        else:
            self._fault(now, name, place, start)
        if self.estimates is not None and self.ends >= self.ends_to_learn:
            self._learn(now)

    def _fault(self, now: float, name: str, place: int, start: float) -> None:
        kept = (now - start) // self.chance.checkpoint_s * self.chance.checkpoint_s
        self.left[name] -= kept
        self.faults[name] += 1
        final = self.faults[name] >= self.rules.machine_attempts
        self.spans.append(Span(id=name, start=start, end=now, place=place, final=final))
        if final:
            self.failed.append(name)
            self.frontier.end(name, done=False)
            return
        self.frontier.again(name)
        self.backing_off.add(name)
        self._event(now + backoff(self.faults[name] - 1, self.rules), "again", name, -1)

    def _learn(self, now: float) -> None:
        """Tell the epochs of what runs, and sort what waits by the new estimates.

        Not at every end: with thousands of trials a single one changes little.
        """
        assert self.estimates is not None
        for name, start in self.started.items():
            self._observe(name, self.trials[name].seconds - self.left[name] + now - start)
        moved = self.estimates.works()
        if moved:
            self.frontier.reestimate(moved)
        self.ends_to_learn = self.ends + max(1, min(self.ends, len(self.trials) // 30))

    def _observe(self, name: str, trained_s: float) -> None:
        trial = self.trials[name]
        epoch = int(trained_s / trial.epoch_s + 1e-9)
        if self.estimates is not None and epoch > 0:
            self.estimates.observe(name, epoch, trial.epoch_s)

    def _event(self, time: float, kind: str, name: str, place: int) -> None:
        self.counter += 1
        heapq.heappush(self.events, (time, self.counter, kind, name, place))


def _times(machine: Machine, demand: Demand) -> int:
    """How many trials of a demand a machine holds."""
    rooms = [machine.cpus // demand.cpus] if demand.cpus else []
    rooms += [machine.gpus // demand.gpus] if demand.gpus else []
    rooms += [machine.memory // demand.memory] if demand.memory else []
    return int(min(rooms, default=0))


def summary(
    trials: int,
    devices: int,
    *,
    seeds: int = 20,
    durations: Durations = "known",
    chance: Chance | None = None,
    per_node: int = GPUS_PER_NODE,
) -> dict[str, object]:
    """Means over seeds 0, 1, ...: `sharedenc sweep simulate --json`.

    ``bound_h``, ``makespan_h`` and ``ratio_to_bound`` are means, each with its ``_max``.
    """
    if seeds < 1:
        raise SpecError(f"seeds={seeds} must be at least 1")
    machines = gpus(devices, per_node)
    outcomes = [
        simulate(workload(trials, seed, chance), machines, durations=durations, chance=chance,
                 seed=seed)
        for seed in range(seeds)
    ]  # fmt: skip
    busy = [
        sum(span.end - span.start for span in o.spans) / (devices * o.makespan) for o in outcomes
    ]
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
    return row
