"""A study expanded into trials and what each of them needs first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sharedenc.errors import SpecError
from sharedenc.spec import BACKBONES, Cell, DeviceKind, Recipe, Task, Trial, resolve_numerics
from sweeps.brackets import Ladder
from sweeps.order import Demand, Job
from sweeps.resources import demand, work_seconds
from sweeps.studies import Study

SEARCH_STAGE = "lr-search"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the graph must know of data, weights and machines; nothing here needs torch.

    ``images`` counts training, validation and test images; ``weights`` holds the digest of each
    backbone's initial encoder.
    """

    data_name: str
    data_digest: str
    tasks: tuple[Task, ...]
    images: tuple[int, int, int]
    weights: Mapping[str, str]
    device_kind: DeviceKind
    torch_version: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """One trial of a study.

    ``id`` is its name in MLflow and unique in the study; ``needs`` are ids; ``group`` names the
    bracket of a search trial; ``blocked`` says why it cannot run at all.
    """

    id: str
    stage: str
    trial: Trial
    needs: tuple[str, ...] = ()
    group: str | None = None
    ladder: Ladder | None = None
    blocked: str | None = None
    work: float = 1.0
    demand: Demand = field(default_factory=Demand)

    @property
    def cell(self) -> Cell:
        """The cell that it trains."""
        return self.trial.cell

    @property
    def job(self) -> Job:
        """What the scheduling policy sees of it."""
        return Job(id=self.id, needs=self.needs, work=self.work, demand=self.demand)


def expand(study: Study, facts: Facts) -> list[Node]:
    """All trials of a study in the order of its cells, searches last.

    Raises:
        SpecError: a backbone has no learning rate, or nothing is left to train.
    """
    maker = _Maker(study, facts)
    nodes = [maker.final(cell, seed) for cell in study.cells for seed in study.seeds]
    known = {node.id for node in nodes}
    for search in study.searches:
        for lr in _likely_first(search.lrs, search.cell.backbone):
            nodes.append(maker.searched(search.cell, search.recipe, lr, search.ladder))
    missing = {need for node in nodes for need in node.needs} - known
    if missing:
        raise SpecError(f"the study lacks {', '.join(sorted(missing))}, which its swaps need")
    return nodes


@dataclass
class _Maker:
    study: Study
    facts: Facts

    def final(self, cell: Cell, seed: int) -> Node:
        trial = self._trial(cell, self.study.recipe, self.study.rate(cell.backbone), seed)
        return self._node(self._name(cell, seed), cell.strategy, trial)

    def searched(self, cell: Cell, recipe: Recipe, lr: float, ladder: Ladder) -> Node:
        trial = self._trial(cell, recipe, lr, self.study.seeds[0])
        return self._node(
            f"{cell} lr={short_rate(lr)}", SEARCH_STAGE, trial, group=cell.name, ladder=ladder
        )

    def _name(self, cell: Cell, seed: int) -> str:
        return cell.name if len(self.study.seeds) == 1 else f"{cell} seed={seed}"

    def _trial(self, cell: Cell, recipe: Recipe, lr: float, seed: int) -> Trial:
        facts = self.facts
        source, parent_key = cell.source, None
        if source is not None:
            rate = self.study.rate(cell.backbone)
            parent_key = self._trial(source, self.study.recipe, rate, seed).key
        return Trial(
            cell=cell,
            recipe=recipe,
            lr=lr,
            seed=seed,
            data_digest=facts.data_digest,
            weights_digest=facts.weights[cell.backbone],
            numerics=resolve_numerics(
                recipe, cell.backbone, facts.device_kind, facts.torch_version
            ),
            parent_key=parent_key,
        )

    def _node(
        self,
        name: str,
        stage: str,
        trial: Trial,
        group: str | None = None,
        ladder: Ladder | None = None,
    ) -> Node:
        cell, recipe = trial.cell, trial.recipe
        source = cell.source
        return Node(
            id=name,
            stage=stage,
            trial=trial,
            needs=() if source is None else (self._name(source, trial.seed),),
            group=group,
            ladder=ladder,
            blocked=self._blocked(cell),
            work=work_seconds(cell, recipe, self.facts.images),
            demand=demand(cell, recipe, trial.numerics),
        )

    def _blocked(self, cell: Cell) -> str | None:
        missing = [task for task in cell.tasks if task not in self.facts.tasks]
        if not missing:
            return None
        what = {"seg": "masks", "det": "boxes"}[missing[0]]
        return f"data set {self.facts.data_name!r} has no {what}, which {missing[0]} needs"


def _likely_first(lrs: Sequence[float], backbone: str) -> list[float]:
    """Rates nearest to the published one (else to their middle) first.

    A bracket cuts only against what it has seen, so good trials should come early.
    """
    middle = math.exp(sum(math.log(lr) for lr in lrs) / len(lrs))
    target = BACKBONES[backbone].lr or middle
    return sorted(lrs, key=lambda lr: abs(math.log(lr / target)))


def short_rate(lr: float) -> str:
    """A learning rate as people write it: ``2e-4``, ``1.6e-3``."""
    mantissa, _, exponent = f"{lr:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
