"""A latency budget: what can be part of no deployment that meets it is not trained.

Latency does not depend on the weights, so the untrained graphs are exported and timed first. While
a board works on that, the trials that nothing is known of are withheld; those that are decided go
on. Here are the rules; `sweeps.budget_watch` asks the server.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jetson_agent.protocol import PRECISIONS
from sharedenc.errors import SpecError, check_choice
from sharedenc.spec import Cell, Graph
from sweeps.graph import Node

STATS = ("p50", "p90", "p95", "p99", "mean", "max")
GRAPHS: tuple[Graph, ...] = ("seg", "det", "dual")

Decision = Literal["keep", "skip", "unknown"]
Serving = Literal["pair", "shared"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """At most ``limit_ms`` for both tasks on one image.

    ``mode`` is the board's power mode and clock policy as its timings name it; empty: the one that
    was timed last. ``wait_s`` bounds how long trials are withheld for figures.
    """

    limit_ms: float
    device: str
    precision: str = "int8"
    stat: str = "p99"
    mode: str = ""
    wait_s: float = 3600.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit_ms) and self.limit_ms > 0):
            raise SpecError(f"--latency-budget-ms {self.limit_ms:g} is no time: give one above 0.")
        if not self.device:
            raise SpecError(
                "a latency budget is one of a board: name it as its agent does, with --device NAME "
                "(`sharedenc timings list` and `jetson-agent doctor` tell the names)."
            )
        check_choice("--precision", self.precision, PRECISIONS)
        check_choice("--latency-stat", self.stat, STATS)

    @property
    def what(self) -> str:
        """The figure in words, such as ``p99 of single, int8, on agx-orin-64gb``."""
        return f"{self.stat} of single, {self.precision}, on {self.device}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a board says of one graph: ``ms``, or why that graph cannot run there at all."""

    ms: float = math.nan
    unsupported: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Judged:
    """Whether a cell is trained, and the sentence that says why."""

    decision: Decision
    why: str = ""


Figures = Mapping[tuple[str, str], Figure]
"""By backbone and graph; what is not there is not known yet."""


def served_by(cell: Cell) -> Serving:
    """How a deployment with this cell's network serves both tasks.

    One pass through a shared encoder (a dual network, or heads on one frozen encoder), or two
    passes: two baselines, and pairs whose encoders differ in their biases.
    """
    return "shared" if cell.strategy == "dual" or cell.freeze == "frozen" else "pair"


def judge_serving(backbone: str, serving: Serving, figures: Figures, budget: Budget) -> Judged:
    """Whether one way of serving both tasks meets the budget."""
    graphs = ("dual",) if serving == "shared" else ("seg", "det")
    known = [figures.get((backbone, graph)) for graph in graphs]
    name = f"one shared {backbone}" if serving == "shared" else f"two separate {backbone}"
    for graph, figure in zip(graphs, known, strict=True):
        if figure is not None and figure.unsupported:
            return Judged("skip", f"{backbone} {graph} cannot run: {figure.unsupported}")
    # What is known already may be too much by itself.
    told = [figure for figure in known if figure is not None]
    timed = [figure for figure in told if not math.isnan(figure.ms)]
    total = math.fsum(figure.ms for figure in timed)
    if total > budget.limit_ms:
        marks = "".join(f" ({figure.mark})" for figure in timed if figure.mark)
        return Judged(
            "skip",
            f"{name} take{'s' * (serving == 'shared')} {total:.3g} ms{marks} of "
            f"{budget.limit_ms:g} ms ({budget.what})",
        )
    if len(timed) < len(told):
        whys = dict.fromkeys(f.mark for f in told if f.mark and math.isnan(f.ms))
        why = "".join(f" ({mark})" for mark in whys)
        return Judged("keep", f"no {budget.stat} of {name}: it cannot be judged{why}")
    if len(told) < len(graphs):
        return Judged("unknown", f"the timing of {name} on {budget.device}")
    return Judged("keep", f"{name}: {total:.3g} ms of {budget.limit_ms:g} ms")


def judge(
    nodes: Sequence[Node], figures: Figures, budget: Budget, image_px: int
) -> dict[str, Judged]:
    """Decide every node of a study, by id.

    Args:
        image_px: Size of the images that ``figures`` were measured with; a node of another size
            cannot be judged, and stays.

    A node stays if its own deployment may meet the budget, or if a node that stays needs it: a
    baseline that is too slow itself still feeds the swaps, and a search its cells.
    """
    own = {node.id: _own(node, figures, budget, image_px) for node in nodes}
    users: dict[str, list[str]] = {node.id: [] for node in nodes}
    for node in nodes:
        for other in (*node.needs, *node.after):
            users[other].append(node.id)
    searching = {node.id for node in nodes if node.search is not None}
    decided: dict[str, Judged] = {}
    for name in _users_first(nodes, users):
        used = [decided[user] for user in users[name]]
        options = used if name in searching and used else [own[name], *used]
        decided[name] = _best(options)
    return decided


def _own(node: Node, figures: Figures, budget: Budget, image_px: int) -> Judged:
    if node.recipe.image_px != image_px:
        return Judged("keep", f"nothing was timed with images of {node.recipe.image_px} px")
    return judge_serving(node.cell.backbone, served_by(node.cell), figures, budget)


def _best(options: Sequence[Judged]) -> Judged:
    """One reason to stay is enough; one that may come is worth waiting for."""
    order: tuple[Decision, ...] = ("keep", "unknown", "skip")
    return min(options, key=lambda judged: order.index(judged.decision))


def _users_first(nodes: Iterable[Node], users: Mapping[str, Sequence[str]]) -> list[str]:
    """Ids, each after everything that uses it; the graph has no cycles."""
    done: dict[str, None] = {}
    for node in nodes:
        stack = [node.id]
        while stack:
            name = stack[-1]
            missing = [user for user in users[name] if user not in done]
            if missing:
                stack += missing
            else:
                done.setdefault(stack.pop())
    return list(done)
