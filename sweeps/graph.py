"""A study expanded into trials and what each of them needs first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sharedenc.errors import SpecError
from sharedenc.spec import Cell, Recipe, Scheduler, Trial, resolve_numerics
from sweeps.brackets import Ladder
from sweeps.facts import Facts
from sweeps.fusion import MOST_TOGETHER
from sweeps.order import Demand, Job
from sweeps.resolver import Resolver, nothing
from sweeps.resources import demand, work_seconds
from sweeps.rows import Unresolvable
from sweeps.searches import Search, ladder, scope, search_recipe
from sweeps.study import Study
from sweeps.variants import Variants

__all__ = [
    "SEARCH_STAGE",
    "SEEDS_STAGE",
    "Facts",
    "Node",
    "Resolver",
    "Unresolvable",
    "expand",
    "nothing",
    "short_rate",
]

SEARCH_STAGE = "lr-search"
SEEDS_STAGE = "seeds"


@dataclass(frozen=True, kw_only=True)
class Node:
    """One trial of a study, whose learning rate and parent may be unknown until it starts.

    ``id`` is its name in MLflow and unique in the study; ``needs`` are ids that must be done,
    ``after`` ids that must have ended, however they did. ``stage`` is `lr-search`, `seeds` for
    second and later seeds, else the strategy. Of a search trial, ``search`` is the digest of
    what is searched (the same in every study that asks for the same), ``number`` counts its
    trials from 0 and ``group`` names its bracket; a final trial has none of them, and takes its
    rate from the search trials in ``after``. ``blocked`` says why it cannot run at all. ``width``
    is how many trials of one frozen encoder its ``demand`` has memory for.
    """

    id: str
    stage: str
    cell: Cell
    recipe: Recipe
    seed: int
    trial: Trial | None
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    group: str | None = None
    search: str | None = None
    number: int | None = None
    ladder: Ladder | None = None
    blocked: str | None = None
    work: float = 1.0
    demand: Demand = field(default_factory=Demand)
    width: int = MOST_TOGETHER

    @property
    def job(self) -> Job:
        """What the scheduling policy sees of it."""
        return Job(
            id=self.id, needs=self.needs, after=self.after, work=self.work, demand=self.demand
        )


def expand(study: Study, facts: Facts) -> list[Node]:
    """All trials of a study: its cells with the first seed, then with the others, then searches.

    That is the order in which they are listed. Each starts when what itself waits for is there.

    Raises:
        SpecError: a backbone has no learning rate, or nothing is left to train.
    """
    maker = _Maker(study, facts)
    searched = _in_turns([node for search in study.searches for node in maker.searched(search)])
    finals = [
        node for seed in study.seeds for cell in study.cells for node in maker.finals(cell, seed)
    ]
    nodes = finals + searched
    missing = {need for node in nodes for need in node.needs} - {node.id for node in nodes}
    if missing:
        raise SpecError(f"the study lacks {', '.join(sorted(missing))}, which its swaps need")
    return nodes


def _in_turns(nodes: list[Node]) -> list[Node]:
    """Search by search, the cells of a search in turns: a proposal follows results of them all."""
    order: dict[str | None, int] = {}
    for node in nodes:
        order.setdefault(node.search, len(order))
    return sorted(nodes, key=lambda node: (order[node.search], node.number or 0))


@dataclass(frozen=True, kw_only=True)
class _What:
    """What a node trains: the number of its combination of axes says which source it has."""

    cell: Cell
    variant: int
    recipe: Recipe
    seed: int
    lr: float | None


class _Maker:
    def __init__(self, study: Study, facts: Facts) -> None:
        self._study = study
        self._facts = facts
        self._variants = Variants(study, facts)
        self._searches = {search.cell: search for search in study.searches}
        # Search trials by cell and number of the combination.
        self._trials: dict[tuple[Cell, int], list[str]] = {}

    def searched(self, search: Search) -> list[Node]:
        """The trials of a search, for each combination of the axes and each schedule."""
        nodes = []
        for variant, label in self._variants.of(search.cell):
            made = [
                node
                for scheduler in self._schedulers(variant)
                for node in self._bracket(search, variant, label, scheduler)
            ]
            self._trials[search.cell, variant] = [node.id for node in made]
            nodes += made
        return nodes

    def _bracket(
        self, search: Search, variant: int, label: tuple[str, ...], scheduler: Scheduler
    ) -> list[Node]:
        study, cell, seed = self._study, search.cell, self._study.seeds[0]
        usual = self._variants.recipe(variant)
        recipe = search_recipe(study, usual, scheduler)
        if scheduler != usual.scheduler:
            label = (*label, scheduler)
        name = self._name(cell, label, seed)
        rungs = ladder(study, recipe)
        digest = self._digest(search, variant, scheduler)
        after = [
            self._name(other, self._variants.label(other, variant), seed)
            for other in study.cells
            if _compares(cell, other)
        ]
        nodes = []
        for number in range(search.trials):
            lr = search.lrs[number] if search.lrs else None
            nodes.append(
                self._node(
                    f"{name} lr#{number}" if lr is None else f"{name} lr={short_rate(lr)}",
                    SEARCH_STAGE,
                    _What(cell=cell, variant=variant, recipe=recipe, seed=seed, lr=lr),
                    after=tuple(after),
                    group=name,
                    search=digest,
                    number=number,
                    ladder=rungs,
                )
            )
        return nodes

    def finals(self, cell: Cell, seed: int) -> list[Node]:
        """The trials of a cell with one seed, for each combination of the axes."""
        study, cells = self._study, scope(self._study, cell)
        nodes = []
        for variant, label in self._variants.of(cell):
            recipe = self._variants.recipe(variant)
            lr = None if cells else study.rate(cell.backbone)
            trials = [
                name
                for other in cells
                for name in self._trials[other, self._variants.same(other, variant)]
            ]
            nodes.append(
                self._node(
                    self._name(cell, label, seed),
                    cell.strategy if seed == study.seeds[0] else SEEDS_STAGE,
                    _What(cell=cell, variant=variant, recipe=recipe, seed=seed, lr=lr),
                    after=tuple(trials),
                )
            )
        return nodes

    def _node(self, name: str, stage: str, what: _What, **more: Any) -> Node:
        facts, cell, recipe = self._facts, what.cell, what.recipe
        source, parent = cell.source, self._source_trial(what)
        needs: tuple[str, ...] = ()
        trial = None
        if source is not None:
            needs = (self._name(source, self._variants.label(source, what.variant), what.seed),)
        if what.lr is not None and (source is None or parent is not None):
            trial = facts.trial(cell, recipe, what.lr, what.seed, parent)
        numerics = resolve_numerics(recipe, cell.backbone, facts.device_kind, facts.torch_version)
        return Node(
            id=name,
            stage=stage,
            cell=cell,
            recipe=recipe,
            seed=what.seed,
            trial=trial,
            needs=needs,
            blocked=facts.blocked(cell),
            work=work_seconds(cell, recipe, facts.images),
            demand=demand(cell, recipe, numerics),
            **more,
        )

    def _source_trial(self, what: _What) -> Trial | None:
        """The trial that a swap starts from, where its rate is known."""
        source = what.cell.source
        if source is None or scope(self._study, source):
            return None
        recipe = self._variants.recipe(self._variants.same(source, what.variant))
        return self._facts.trial(source, recipe, self._study.rate(source.backbone), what.seed)

    def _digest(self, search: Search, variant: int, scheduler: Scheduler) -> str:
        """Identifies a search: all that decides its proposals, results and their number aside."""
        study, seed = self._study, self._study.seeds[0]
        recipe = search_recipe(study, self._variants.recipe(variant), scheduler)
        cells: list[Mapping[str, Any]] = []
        for cell in search.cells:
            what = _What(cell=cell, variant=variant, recipe=recipe, seed=seed, lr=None)
            cells.append({**self._variants.content(cell, recipe), "from": self._origin(what)})
        content: dict[str, Any] = {"cells": cells}
        if search.lrs:
            content["rates"] = list(search.lrs)
        else:
            content["range"] = list(study.search_range)
            content["likely"] = study.likely(search.cell.backbone)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _origin(self, what: _What) -> list[str]:
        """What a searched swap starts from: a trial, or whatever some searches will find."""
        source, parent = what.cell.source, self._source_trial(what)
        if source is None or parent is not None:
            return [] if parent is None else [parent.key]
        first = self._searches[scope(self._study, source)[0]]
        variant = self._variants.same(source, what.variant)
        return [self._digest(first, variant, s) for s in self._schedulers(variant)]

    def _schedulers(self, variant: int) -> tuple[Scheduler, ...]:
        return self._study.search_schedulers or (self._variants.recipe(variant).scheduler,)

    def _name(self, cell: Cell, label: tuple[str, ...], seed: int) -> str:
        other = () if seed == self._study.seeds[0] else (f"seed={seed}",)
        return " ".join([cell.name, *label, *other])


def _compares(cell: Cell, other: Cell) -> bool:
    """Whether the rank of a searched dual is its change to that cell (methods 6.3)."""
    return (cell.strategy, other.strategy) == ("dual", "baseline") and (
        cell.backbone == other.backbone
    )


def short_rate(lr: float) -> str:
    """A learning rate as people write it: ``2e-4``, ``1.6e-3``."""
    mantissa, _, exponent = f"{lr:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
