"""What a study will cost, before anything runs: hours with a range, disk, board time.

Expected hours are those that the scheduler works with. The range holds what is uncertain: the
seconds of an epoch (by how it was measured), the typical number of epochs until early stopping,
and how far single trials lie from it. Wall time is a simulated sweep on the machines at hand, and
so is which frozen trials train together; what that saves is off the hours.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from sharedenc.spec import Cell
from sweeps import fusion
from sweeps.estimates import Estimates, Measurement, kind_of
from sweeps.fusion import Part, shared_part
from sweeps.order import Demand, Machine
from sweeps.simulate import Outcome, Virtual, simulate

if TYPE_CHECKING:
    from sweeps.graph import Node
    from sweeps.state import Settled

GIB = 2**30
DRAWS = 200
WALL_DRAWS = 5
LOW, HIGH = 0.1, 0.9

MEASURED = "epochs measured in earlier runs"
PROBE = "a probe of {steps} steps per backbone on this device"
MODEL = "the FLOP model"

# Millions of parameters of encoder and both heads (21 classes); for a backbone from outside, as
# many as the largest.
PARAMETERS = {
    "resnet18": 12.0,
    "mobilenet_v3_large": 4.3,
    "efficientnet_v2_s": 22.2,
    "densenet121": 9.3,
}
# A state holds network, best network and two moments of what trains; two states are kept.
STATES = 2
PICTURES_BYTES = 2**20
# An export with its reference inputs and outputs, over the size of the network.
EXPORT = 1.3

# Graphs that a study registers per backbone (`sharedenc.export.registry.OF_A_STUDY`), timed at
# fp32, fp16 and int8: building and timing one engine takes minutes on a board. An assumption.
EXPORTED = {"baseline": 1, "dual": 2}
BOARD_PRECISIONS = 3
BOARD_MINUTES = 6.0


class Probed(Protocol):
    """What checking a cell on the device gave; the preflight's `Checked` has it."""

    @property
    def cell(self) -> str: ...
    @property
    def step_s(self) -> float | None: ...
    @property
    def val_s_per_image(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class Range:
    """Nine of ten outcomes are expected to lie above ``low``, nine of ten below ``high``."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CellPrice:
    """One cell: its trials, how many of them are there already, and why the others are not."""

    cell: str
    trials: int
    state: str
    reused: bool
    reused_trials: int
    why_not: str
    gpu_hours: float


@dataclass(frozen=True, kw_only=True)
class StagePrice:
    """One stage (`lr-search`, `seeds` or a strategy)."""

    stage: str
    trials: int
    reused: int
    gpu_hours: float


@dataclass(frozen=True, kw_only=True)
class Together:
    """Which trials would train together over one frozen encoder, and what that saves.

    ``groups`` holds their names; the hours saved are of devices (else of trials) and of wall time.
    """

    groups: list[list[str]]
    saved_hours: float
    saved_wall_hours: float

    @property
    def trials(self) -> int:
        """Trials that train with others."""
        return sum(len(group) for group in self.groups)


@dataclass(frozen=True, kw_only=True)
class Price:
    """The whole plan. Device hours; on machines without GPUs, hours of trials."""

    study: str
    cells: list[CellPrice]
    stages: list[StagePrice]
    trials: int
    reused: int
    blocked: int
    gpu_hours: Range
    wall_hours: float
    devices: int
    on_gpus: bool
    disk_gib: float
    board_hours: float
    exports: int
    together: Together
    rests_on: str

    def to_dict(self) -> dict[str, Any]:
        """What `sweep KIND --plan --json` prints."""
        return asdict(self)


def price(
    study: str,
    nodes: Sequence[Node],
    states: Mapping[str, Settled],
    estimates: Estimates,
    machines: Sequence[Machine],
    *,
    measured: Sequence[Measurement] = (),
    probe: Sequence[Probed] = (),
    probe_steps: int = 0,
    why_not: Mapping[str, str] | None = None,
    demands: Mapping[str, Demand] | None = None,
    pack_bytes: int = 0,
    timed: int = 0,
    keys: Mapping[str, str] | None = None,
) -> Price:
    """Price a study.

    Args:
        nodes: All its trials.
        states: What the ledger found for trials that have ended already, by node id.
        estimates: Made from the same ``measured`` and ``probe``.
        machines: What there is to run on.
        measured, probe: What the estimates were made from, for `rests_on`.
        why_not: Why a trial is not reused, by node id.
        demands: What trials occupy, fitted to the machines, by id [default: what nodes say].
        pack_bytes: Size of the data's pack.
        timed: Architecture and precision pairs that have a timing of the board already.
        keys: By node id, equal for trials that may train together; see `mates.likely_keys`.
    """
    todo, blocked = to_run(nodes, states)
    demands = demands or {node.id: node.demand for node in nodes}
    won = _winners(nodes)
    seconds = {node.id: _seconds(node, estimates, won) for node in todo}
    keys = {name: key for name, key in (keys or {}).items() if name not in won}
    walls = _Walls(todo, machines, demands, seconds, keys)
    groups = walls.groups()
    less = {
        name: part
        for members in groups
        for part in [_part_of(members, seconds, {node.id: node for node in todo})]
        for name in members
    }
    alone = {node.id: _device(demands[node.id]) * seconds[node.id] / 3600 for node in todo}
    hours = {name: value * less.get(name, 1.0) for name, value in alone.items()}
    exports = sum(EXPORTED.get(cell.strategy, 0) for cell in {node.cell for node in nodes})
    timings = max(exports * BOARD_PRECISIONS - timed, 0)
    draws = _drawn(todo, estimates, seconds, won)
    runs_on, wall = walls.mean(draws, fuse=True)
    together = Together(
        groups=groups,
        saved_hours=sum(alone.values()) - sum(hours.values()),
        saved_wall_hours=(walls.mean(draws, fuse=False)[1] - wall) / 3600 if groups else 0.0,
    )
    return Price(
        study=study,
        cells=_cells(nodes, states, blocked, hours, why_not or {}),
        stages=_stages(nodes, states, hours),
        trials=len(nodes),
        reused=sum(1 for node in nodes if node.id in states),
        blocked=len(blocked),
        gpu_hours=_range(todo, estimates, demands, won, sum(hours.values()), less),
        wall_hours=wall / 3600,
        devices=runs_on,
        on_gpus=any(demands[node.id].gpus for node in nodes),
        disk_gib=(sum(_bytes(node) for node in todo) + pack_bytes) / GIB,
        board_hours=timings * BOARD_MINUTES / 60,
        exports=exports,
        together=together,
        rests_on=_rests_on(todo, measured, probe, probe_steps),
    )


def with_works(nodes: Sequence[Node], estimates: Estimates) -> list[Node]:
    """Nodes with their expected durations: what the scheduler starts from."""
    works = estimates.expected()
    return [replace(node, work=works[node.id]) for node in nodes]


def to_run(
    nodes: Sequence[Node], states: Mapping[str, Settled]
) -> tuple[list[Node], dict[str, str]]:
    """Nodes that will run, and why others cannot: blocked, or what they need is."""
    blocked: dict[str, str] = {}
    left = list(nodes)
    while True:
        more = {
            node.id: node.blocked or f"needs {next(n for n in node.needs if n in blocked)}"
            for node in left
            if node.id not in blocked
            and (node.blocked is not None or any(need in blocked for need in node.needs))
        }
        if not more:
            break
        blocked |= more
    return [n for n in nodes if n.id not in blocked and n.id not in states], blocked


def _winners(nodes: Sequence[Node]) -> set[str]:
    """Final trials of cells that are searched with the same recipe and seed.

    The search's winner has their key: it is them, and they are only tested.
    """
    searched = {(n.cell, n.recipe, n.seed) for n in nodes if n.group is not None}
    return {n.id for n in nodes if n.group is None and (n.cell, n.recipe, n.seed) in searched}


def _device(demand: Demand) -> float:
    return demand.gpus or 1.0


def _seconds(node: Node, estimates: Estimates, won: set[str]) -> float:
    return estimates.outside_epochs(node) if node.id in won else estimates.seconds(node)


def _range(
    todo: Sequence[Node],
    estimates: Estimates,
    demands: Mapping[str, Demand],
    won: set[str],
    expected: float,
    less: Mapping[str, float],
) -> Range:
    if not todo:
        return Range(low=0.0, expected=0.0, high=0.0)
    draw = random.Random(0)
    backbones = sorted({node.cell.backbone for node in todo})
    sigma = {cell: estimates.pace_sigma(cell) for cell in {node.cell for node in todo}}
    fixed = {node.id: estimates.outside_epochs(node) for node in todo}
    epoch_s = {
        node.id: estimates.seconds_per_epoch(node.cell, node.recipe)
        for node in todo
        if node.id not in won
    }
    totals = []
    for _ in range(DRAWS):
        # Half of an error in speed is common to all backbones (the device), half is its own.
        common, typical = draw.gauss(0, 1), draw.gauss(0, 1)
        pace = {name: (common + draw.gauss(0, 1)) / 2**0.5 for name in backbones}
        total = 0.0
        for node in todo:
            seconds = fixed[node.id]
            if node.id not in won:
                epochs = estimates.draw_epochs(node, typical, draw.gauss(0, 1))
                factor = math.exp(sigma[node.cell] * pace[node.cell.backbone])
                seconds += epochs * epoch_s[node.id] * factor
            total += _device(demands[node.id]) * seconds * less.get(node.id, 1.0) / 3600
        totals.append(total)
    totals.sort()
    low, high = totals[int(LOW * DRAWS)], totals[int(HIGH * DRAWS)]
    return Range(low=min(low, expected), expected=expected, high=max(high, expected))


def _part_of(
    members: Sequence[str], seconds: Mapping[str, float], nodes: Mapping[str, Node]
) -> float:
    """What is left of the device time of trials when they train together."""
    parts = [
        Part(id=name, work=seconds[name], shared=shared_part(nodes[name].cell.backbone))
        for name in members
    ]
    return fusion.seconds(parts) / sum(part.work for part in parts)


def _drawn(
    todo: Sequence[Node], estimates: Estimates, seconds: Mapping[str, float], won: set[str]
) -> list[dict[str, float]]:
    """Seconds of every trial, by id, for several drawn numbers of epochs."""
    draw = random.Random(0)
    draws = []
    for _ in range(WALL_DRAWS):
        drawn = dict(seconds)
        for node in todo:
            if node.id not in won:
                epochs = estimates.draw_epochs(node, 0.0, draw.gauss(0, 1))
                epoch_s = estimates.seconds_per_epoch(node.cell, node.recipe)
                drawn[node.id] = epochs * epoch_s + estimates.outside_epochs(node)
        draws.append(drawn)
    return draws


@dataclass(frozen=True)
class _Walls:
    """Simulated sweeps of what is to run; the policy is told ``works``."""

    todo: Sequence[Node]
    machines: Sequence[Machine]
    demands: Mapping[str, Demand]
    works: Mapping[str, float]
    keys: Mapping[str, str]

    def groups(self) -> list[list[str]]:
        """Names of what trains together when all last as long as expected."""
        if not self.todo or not self.keys:
            return []
        outcome = self._simulate(self.works, fuse=True)
        return [[span.id for span in group] for group in outcome.groups if len(group) > 1]

    def mean(self, draws: Sequence[Mapping[str, float]], *, fuse: bool) -> tuple[int, float]:
        """Devices used at once at most, and mean seconds of wall time."""
        if not self.todo:
            return 0, 0.0
        outcomes = [self._simulate(seconds, fuse=fuse) for seconds in draws]
        spans = [
            [(group[0].start, max(span.end for span in group)) for group in outcome.groups]
            for outcome in outcomes
        ]
        wall = sum(outcome.makespan for outcome in outcomes) / len(outcomes)
        return max(map(_at_once, spans)), wall

    def _simulate(self, seconds: Mapping[str, float], *, fuse: bool) -> Outcome:
        ids = {node.id for node in self.todo}
        trials = [
            Virtual(
                id=node.id,
                cell=node.cell,
                recipe=node.recipe,
                epochs=1,
                epoch_s=seconds[node.id],
                needs=tuple(name for name in node.needs if name in ids),
                after=tuple(name for name in node.after if name in ids),
                demand=self.demands[node.id],
                fusion=self.keys.get(node.id),
                shared=shared_part(node.cell.backbone),
                width=node.width,
                asked=node.demand.memory,
            )
            for node in self.todo
        ]
        return simulate(trials, self.machines, works=self.works, fuse=fuse)


def _at_once(spans: Sequence[tuple[float, float]]) -> int:
    """Most spans that overlap."""
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def _bytes(node: Node) -> float:
    """What a trial leaves on the disk: states, best network, pictures, exports."""
    network = PARAMETERS.get(node.cell.backbone, max(PARAMETERS.values())) * 1e6 * 4
    moments = {"frozen": 0.1, "bias": 0.15}.get(node.cell.freeze, 2.0)
    size = STATES * network * (1 + moments) + network
    if node.group is None:
        size += network + PICTURES_BYTES + EXPORT * network * EXPORTED.get(node.cell.strategy, 0)
    return size


def _cells(
    nodes: Sequence[Node],
    states: Mapping[str, Settled],
    blocked: Mapping[str, str],
    hours: Mapping[str, float],
    why_not: Mapping[str, str],
) -> list[CellPrice]:
    by_cell: dict[str, list[Node]] = {}
    for node in nodes:
        by_cell.setdefault(node.cell.name, []).append(node)
    rows = []
    for cell, members in by_cell.items():
        open_nodes = [node for node in members if node.id not in states]
        reasons = [blocked.get(n.id) or why_not.get(n.id, "") for n in open_nodes]
        rows.append(
            CellPrice(
                cell=cell,
                trials=len(members),
                state=_state(members, states, blocked),
                reused=not open_nodes,
                reused_trials=len(members) - len(open_nodes),
                why_not=next((reason for reason in reasons if reason), ""),
                gpu_hours=sum(hours.get(node.id, 0.0) for node in members),
            )
        )
    return rows


def _state(
    members: Sequence[Node], states: Mapping[str, Settled], blocked: Mapping[str, str]
) -> str:
    open_ids = [node.id for node in members if node.id not in states]
    if open_ids:
        return "skipped" if all(name in blocked for name in open_ids) else "waiting"
    ended = {states[node.id].state for node in members}
    return "done" if "done" in ended else ended.pop()


def _stages(
    nodes: Sequence[Node], states: Mapping[str, Settled], hours: Mapping[str, float]
) -> list[StagePrice]:
    trials = Counter(node.stage for node in nodes)
    reused = Counter(node.stage for node in nodes if node.id in states)
    cost: dict[str, float] = {}
    for node in nodes:
        cost[node.stage] = cost.get(node.stage, 0.0) + hours.get(node.id, 0.0)
    return [
        StagePrice(stage=name, trials=count, reused=reused[name], gpu_hours=cost[name])
        for name, count in trials.items()
    ]


def _rests_on(
    todo: Sequence[Node], measured: Sequence[Measurement], probe: Sequence[Probed], steps: int
) -> str:
    """What the hours rest on, with the backbones where it is not the same for all."""
    seen = {row.cell.backbone for row in measured if row.seconds_per_epoch > 0}
    tried = {Cell.parse(row.cell).backbone for row in probe if row.step_s is not None}
    by_source: dict[str, list[str]] = {}
    for backbone in dict.fromkeys(kind_of(node.cell)[0] for node in todo):
        source = MODEL
        if backbone in seen:
            source = MEASURED
        elif backbone in tried:
            source = PROBE.format(steps=steps)
        by_source.setdefault(source, []).append(backbone)
    if len(by_source) <= 1:
        return next(iter(by_source), "nothing to run")
    return "; ".join(f"{source} ({', '.join(names)})" for source, names in by_source.items())
