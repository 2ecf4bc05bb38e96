"""A sweep in the middle of its run, written down row by row, for what displays show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sharedenc.spec import Cell, Numerics, Recipe, Trial
from sweeps.faults import Rules
from sweeps.graph import SEARCH_STAGE, Node
from sweeps.order import Machine
from sweeps.resources import GIB
from sweeps.state import SweepState

BACKBONES = ("resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121")
PAIRS = (
    ("baseline", "none"),
    ("swap", "frozen"),
    ("swap", "bias"),
    ("share", "frozen"),
    ("share", "bias"),
)
NUMERICS = Numerics(
    device="cpu",
    precision="float32",
    memory_format="channels_last",
    tf32=False,
    cpu_threads=1,
    sample_path="fast",
    torch="2.14",
)
RECIPE = Recipe(epochs=60, batch_size=1)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def cells_of(backbones: Iterable[str] = BACKBONES) -> Iterator[Cell]:
    """Eleven cells per backbone, as in the thesis."""
    for backbone in backbones:
        for strategy, freeze in PAIRS:
            for task in ("det", "seg"):
                # Literals of the axes, which mypy cannot see in a tuple.
                axes: dict[str, Any] = {"strategy": strategy, "freeze": freeze, "task": task}
                yield Cell(backbone=backbone, **axes)
        yield Cell(strategy="dual", backbone=backbone)


def node(cell: Cell, seed: int = 0, *, lr: float = 1e-3, name: str = "", **more: Any) -> Node:
    """One trial of a cell."""
    trial = Trial(
        cell=cell,
        recipe=RECIPE,
        lr=lr,
        seed=seed,
        data_digest="d" * 64,
        weights_digest="none",
        numerics=NUMERICS,
        parent_key="p" * 64 if cell.source else None,
    )
    more.setdefault("stage", cell.strategy)
    return Node(
        id=name or cell.name, cell=cell, recipe=RECIPE, seed=seed, trial=trial, work=100.0, **more
    )


def search(cell: Cell, rates: Sequence[float]) -> list[Node]:
    """The search trials of one cell."""
    return [
        node(
            cell,
            lr=rate,
            name=f"{cell.name} search {number}",
            stage=SEARCH_STAGE,
            search=f"search of {cell.name}",
            number=number,
        )
        for number, rate in enumerate(rates)
    ]


def grid(backbones: Iterable[str] = BACKBONES, seeds: int = 1) -> list[Node]:
    """Every cell with every seed; a swap needs the baseline of its seed."""
    nodes = []
    for cell in cells_of(backbones):
        for seed in range(seeds):
            tail = f" seed={seed}" if seeds > 1 else ""
            needs = (f"{cell.source.name}{tail}",) if cell.source else ()
            nodes.append(node(cell, seed, name=f"{cell.name}{tail}", needs=needs))
    return nodes


def sweep(nodes: Sequence[Node], cpus: int = 2, clock: Clock | None = None) -> SweepState:
    """A state on one machine, with as many trials running as it has cores."""
    state = SweepState(
        nodes,
        [Machine(cpus=cpus, memory=4096 * GIB)],
        rules=Rules(backoff_s=20.0),
        clock=clock or Clock(),
    )
    start(state)
    return state


def start(state: SweepState) -> None:
    """Start all that can."""
    while state.next() is not None:
        pass


def report(state: SweepState, name: str, epoch: int, score: float, **more: Any) -> None:
    """One epoch of a running trial: 2.5 s at 660 images a second."""
    values = {"epochs": 60, "seconds": 2.5, "images_per_s": 660.0, **more}
    state.epoch(name, {"epoch": epoch, "score": score, **values})


def finish(state: SweepState, name: str, score: float) -> None:
    """End a running trial and start the next."""
    state.end(name, {"state": "done", "result": {"score": score}})
    start(state)


def whole_grid(clock: Clock | None = None) -> tuple[SweepState, dict[str, float]]:
    """All 44 cells done, each with a score of its own; and those scores."""
    state, scores = sweep(grid(), cpus=4, clock=clock), {}
    while not state.finished:
        name = state.running[0].node.id
        scores[name] = round(0.1 + 0.011 * len(scores), 3)
        finish(state, name, scores[name])
    return state, scores
