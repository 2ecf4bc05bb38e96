"""What a learning-rate search tries: which cells share a search, its rates, recipes and rungs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from sharedenc.spec import BACKBONES, TASKS, Cell, Recipe, Scheduler
from sweeps.brackets import Ladder, default_rungs

if TYPE_CHECKING:
    from sweeps.studies import Study

LrSearch = Literal["published", "backbone", "cell"]
LR_SEARCHES: tuple[LrSearch, ...] = get_args(LrSearch)
SEARCH_SCHEDULERS: tuple[Scheduler, ...] = ("plateau", "cosine")

# Length of a cosine schedule where the study does not say. Its rate stays high until late, so
# over the 1000 epochs of the plateau recipe no trial would ever reach its low rates
# (methods 6.1).
COSINE_EPOCHS = 120


@dataclass(frozen=True, kw_only=True)
class Search:
    """One cell's part of a learning-rate search.

    ``cells`` are all cells that try the same proposals, this one among them: one rate is to
    serve them all. ``lrs`` are explicit rates, likely ones first; without them ``trials`` rates
    are proposed.
    """

    cell: Cell
    cells: tuple[Cell, ...]
    lrs: tuple[float, ...]
    trials: int


def scope(study: Study, cell: Cell) -> tuple[Cell, ...]:
    """The cells whose search decides a cell's learning rate; none when its rate is known."""
    if study.kind == "lr-search":
        return study.targets.get(cell, ())
    if cell.name == study.search_cell:
        return (cell,)
    if study.given(cell.backbone) is not None:
        return ()
    if study.lr_search == "cell":
        return (cell,)
    unknown = study.lr_search is None and BACKBONES[cell.backbone].lr is None
    return _baselines(study, cell.backbone) if study.lr_search == "backbone" or unknown else ()


def _baselines(study: Study, backbone: str) -> tuple[Cell, ...]:
    """The study's baselines of a backbone, or those of its tasks where it has none."""
    cells = [cell for cell in study.cells if cell.backbone == backbone]
    own = [cell for cell in cells if cell.strategy == "baseline"]
    return tuple(own) or tuple(
        Cell(strategy="baseline", backbone=backbone, task=task)
        for task in TASKS
        if any(task in cell.tasks for cell in cells)
    )


def by_scope(cells: Sequence[Cell], one_by_one: bool) -> dict[Cell, tuple[Cell, ...]]:
    """What kind `lr-search` searches among the chosen cells, and which of them share a search.

    These are the baselines, those of a backbone together; where only other cells are chosen, or
    ``one_by_one`` is asked for, each chosen cell by itself.
    """
    baselines = [cell for cell in cells if cell.strategy == "baseline"]
    if one_by_one or not baselines:
        return {cell: (cell,) for cell in cells}
    return {
        cell: tuple(other for other in baselines if other.backbone == cell.backbone)
        for cell in baselines
    }


def likely_first(lrs: Sequence[float], likely: float | None) -> tuple[float, ...]:
    """Rates nearest to a likely one (else to their middle) first.

    A bracket cuts only against what it has seen, so good trials should come early.
    """
    middle = math.exp(sum(math.log(lr) for lr in lrs) / len(lrs))
    return tuple(sorted(lrs, key=lambda lr: abs(math.log(lr / (likely or middle)))))


def under(recipe: Recipe, scheduler: Scheduler, search_epochs: int | None) -> Recipe:
    """A study's recipe with another scheduler, as final trials use it when that one has won.

    A cosine has a fixed budget and no early stopping, which would end it while its rate is still
    high: methods 6.1.
    """
    if scheduler == recipe.scheduler:
        return recipe
    if scheduler == "cosine":
        epochs = search_epochs or min(recipe.epochs, COSINE_EPOCHS)
        return replace(recipe, scheduler=scheduler, epochs=epochs, early_stop_patience=0)
    return replace(recipe, scheduler=scheduler)


def search_recipe(study: Study, recipe: Recipe, scheduler: Scheduler) -> Recipe:
    """The recipe of a search trial; it is that of the final trial, perhaps with fewer epochs."""
    changed = under(recipe, scheduler, study.search_epochs)
    return replace(changed, epochs=study.search_epochs or changed.epochs)


def ladder(study: Study, recipe: Recipe) -> Ladder:
    """Where the brackets of a search recipe thin out."""
    factor = study.search_factor
    rungs = study.search_rungs or default_rungs(
        recipe.epochs, factor, recipe.plateau_patience, recipe.scheduler
    )
    return Ladder(rungs=rungs, factor=factor)
