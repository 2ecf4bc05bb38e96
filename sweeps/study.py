"""A study: what a user asked for, made concrete and valid from birth; and the kinds of studies."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import yaml

from sharedenc.data.dataset import DataRules
from sharedenc.errors import SpecError, check_choice
from sharedenc.presets import DEFAULT_PRESET
from sharedenc.spec import BACKBONES, FREEZES, STRATEGIES, TASKS, Cell, Recipe, Scheduler
from sweeps.grid import full_grid, matching, select
from sweeps.searches import (
    LR_SEARCHES,
    SEARCH_SCHEDULERS,
    Search,
    by_scope,
    likely_first,
    scope,
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study, made concrete. Every field can stand in a study file under its own name.

    ``lr`` gives learning rates by backbone (``*`` for all others), ``lr_search`` says where the
    others come from: `published` (Table 3.5), `backbone` (one search for each backbone, on its
    baselines), `cell` (a search for each cell). Without it, backbones with a published rate use
    that and others are searched. ``search_cell`` searches one cell more. A search tries
    ``search_trials`` rates that are proposed within ``search_range``, or ``search_lrs``, under
    each of ``search_schedulers`` (by default the recipe's). ``seeds``: the first one trains the
    searches and the grid, all others are a stage of their own; in a file a single number N means
    0 to N - 1. ``axes`` are recipe settings with several values each (in a file: a list in place
    of a recipe setting's value). ``data`` is a path; without one a synthetic data set is drawn,
    if ``synthetic_images`` gives its size (training, validation, test). ``rules`` are fields of
    `DataRules` that replace those of the data set. ``int8``: exports have INT8 files too, made with
    ``int8_images`` photos of the training split, and all are scored on ``accuracy_images`` of the
    test split (None: all).
    """

    kind: str
    name: str | None = None
    data: str | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    preset: str = DEFAULT_PRESET
    recipe: Recipe = field(default_factory=Recipe)
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()
    strategies: tuple[str, ...] = STRATEGIES
    freeze: tuple[str, ...] = ()
    tasks: tuple[str, ...] = TASKS
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    lr: Mapping[str, float] = field(default_factory=dict)
    lr_search: str | None = None
    weights: str = "default"
    search_cell: str | None = None
    search_trials: int = 8
    search_range: tuple[float, ...] = (1e-5, 1e-2)
    search_lrs: tuple[float, ...] = ()
    search_schedulers: tuple[Scheduler, ...] = ()
    search_epochs: int | None = None
    search_rungs: tuple[int, ...] = ()
    search_factor: int = 2
    plugins: tuple[str, ...] = ()
    synthetic_images: tuple[int, ...] = ()
    agent: bool = False
    int8: bool = True
    int8_images: int = 64
    accuracy_images: int | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if self.name is not None and not re.fullmatch(r"\w[\w.\- ]*", self.name):
            raise SpecError(
                f"name={self.name!r} must begin with a letter or digit and hold letters, digits, "
                "spaces and _ . - only: folders are named after it"
            )
        for backbone, rate in self.lr.items():
            check_choice("lr: backbone", backbone, [*BACKBONES, "*"])
            if not 0 < rate < float("inf"):
                raise SpecError(f"lr: {backbone}={rate} must be a finite number above 0")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SpecError(f"seeds={list(self.seeds)} must be one or more different numbers")
        if self.synthetic_images and len(self.synthetic_images) != 3:
            raise SpecError("synthetic_images must be three numbers: training, validation, test")
        DataRules.from_dict(self.rules)
        _ = self.variants
        _check_search(self)

    @cached_property
    def grid(self) -> list[Cell]:
        """All cells of the chosen axes, before ``only``."""
        return full_grid(
            self.backbones or BACKBONES, self.strategies, self.freeze or FREEZES, self.tasks
        )

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells that get a final trial, sources included."""
        cells = KINDS[self.kind](self)
        if self.search_cell is not None:
            source = Cell.parse(self.search_cell).source
            cells = list(dict.fromkeys([*([source] if source else []), *cells]))
        return cells

    @cached_property
    def targets(self) -> dict[Cell, tuple[Cell, ...]]:
        """What kind `lr-search` searches, each with the cells that share its search."""
        return by_scope(matching(self.grid, self.only), one_by_one=self.lr_search == "cell")

    @cached_property
    def searches(self) -> list[Search]:
        """The learning-rate searches of this study, cell by cell."""
        asked = [*(self.targets if self.kind == "lr-search" else ()), *self.cells]
        if self.search_cell is not None:
            asked.append(Cell.parse(self.search_cell))
        scopes = dict.fromkeys(cells for cell in asked if (cells := scope(self, cell)))
        searched = [cell for cells in scopes for cell in cells]
        for cell in searched:
            if searched.count(cell) > 1:
                raise SpecError(
                    f"search_cell={cell.name} is searched already, with its backbone's other "
                    "baseline; leave search_cell out"
                )
        return [self._search(cell, cells) for cells in scopes for cell in cells]

    def _search(self, cell: Cell, cells: tuple[Cell, ...]) -> Search:
        lrs = likely_first(self.search_lrs, self.likely(cell.backbone)) if self.search_lrs else ()
        trials = len(lrs) or self.search_trials
        return Search(cell=cell, cells=cells, lrs=lrs, trials=trials)

    @cached_property
    def variants(self) -> list[tuple[dict[str, Any], Recipe]]:
        """Every combination of the axes' values, with its recipe; one without axes."""
        variants = []
        for values in itertools.product(*self.axes.values()):
            settings = dict(zip(self.axes, values, strict=True))
            recipe = Recipe.from_dict({**self.recipe.to_dict(), **settings})
            variants.append(({name: getattr(recipe, name) for name in settings}, recipe))
        if len({recipe for _, recipe in variants}) < len(variants) or not variants:
            raise SpecError(f"axes={dict(self.axes)} must have different values for each setting")
        return variants

    def given(self, backbone: str) -> float | None:
        """The learning rate that the user gave for a backbone."""
        return self.lr.get(backbone, self.lr.get("*"))

    def likely(self, backbone: str) -> float | None:
        """The rate that a search of this backbone should try first, if there is one."""
        return self.given(backbone) or BACKBONES[backbone].lr

    def rate(self, backbone: str) -> float:
        """The learning rate of a backbone's final trials where it is not searched.

        Raises:
            SpecError: none was given and none is published.
        """
        rate = self.likely(backbone)
        if rate is None:
            raise SpecError(
                f"backbone {backbone!r} has no published learning rate; give one with "
                f"--lr {backbone}=RATE, let this study search it with --lr-search backbone, or "
                f"search it alone with `sharedenc sweep lr-search --backbones {backbone}`"
            )
        return rate

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a study file holds them; `study_from` reads them again."""
        values: dict[str, Any] = _plain(asdict(self))
        return values

    def to_yaml(self) -> str:
        """The study file that says the same."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


SEARCH_DEFAULTS = {
    item.name: item.default
    for item in fields(Study)
    if item.name.startswith("search_") and item.name != "search_cell"
}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_search(study: Study) -> None:
    """Refuse search settings that are wrong, contradict each other or would do nothing."""
    if study.lr_search is not None:
        check_choice("lr_search", str(study.lr_search), LR_SEARCHES)
    for scheduler in study.search_schedulers:
        check_choice("search_schedulers", scheduler, SEARCH_SCHEDULERS)
    if study.search_cell is not None:
        Cell.parse(study.search_cell)
        if study.kind == "lr-search" or study.lr_search == "cell":
            raise SpecError(
                "search_cell adds a search to kind full-grid; kind lr-search searches what "
                "--backbones, --tasks and --only choose, and --lr-search cell every cell: leave "
                "search_cell out"
            )
    if study.kind == "lr-search" and study.lr_search == "published":
        raise SpecError("kind lr-search searches; lr_search=published is for kind full-grid")
    given = [name for name, usual in SEARCH_DEFAULTS.items() if getattr(study, name) != usual]
    if study.searches:
        _check_search_values(study)
    elif given:
        raise SpecError(
            f"{given[0]} is set, but this study searches nothing: ask for it with --lr-search "
            "backbone or cell, name a cell with --search-cell CELL, or take kind lr-search"
        )
    elif study.lr_search in ("backbone", "cell"):
        raise SpecError(
            f"lr_search={study.lr_search} has nothing to search: lr gives a rate for every chosen "
            "backbone; leave one of the two out"
        )
    for cell in study.cells:
        if not scope(study, cell):
            study.rate(cell.backbone)


def _check_search_values(study: Study) -> None:
    lrs, rungs, trials = study.search_lrs, study.search_rungs, study.search_trials
    if lrs and (len(set(lrs)) < max(2, len(lrs)) or not 0 < min(lrs) <= max(lrs) < float("inf")):
        raise SpecError(
            f"search_lrs={list(lrs)}: a learning-rate search needs two or more rates above 0, all "
            "different"
        )
    if lrs and trials != SEARCH_DEFAULTS["search_trials"]:
        raise SpecError(f"search_lrs names {len(lrs)} rates, so search_trials must be left out")
    if trials < 2:
        raise SpecError(f"search_trials={trials} must be at least 2")
    limits = study.search_range
    if len(limits) != 2 or not 0 < limits[0] < limits[1] < float("inf"):
        raise SpecError(
            f"search_range={list(limits)} must be two rates above 0, the lower one first"
        )
    if len(set(study.search_schedulers)) < len(study.search_schedulers):
        raise SpecError(f"search_schedulers={list(study.search_schedulers)} names one twice")
    if any(r < 1 for r in rungs) or list(rungs) != sorted(set(rungs)):
        raise SpecError(f"search_rungs={list(rungs)} must be rising epochs, 1 or more")
    if study.search_factor < 2:
        raise SpecError(f"search_factor={study.search_factor} must be at least 2")


def _grid_cells(study: Study) -> list[Cell]:
    cells = select(study.grid, study.only)
    if not cells:
        raise SpecError("the chosen backbones, strategies, freeze modes and tasks leave no cell")
    return cells


def _search_cells(study: Study) -> list[Cell]:
    """What the searched swaps start from; with more than one seed also what is searched."""
    if not study.targets:
        raise SpecError("the chosen backbones, strategies, freeze modes and tasks leave no cell")
    sources = [cell.source for cell in study.targets if cell.source is not None]
    return list(dict.fromkeys([*sources, *(study.targets if len(study.seeds) > 1 else ())]))


# Kind -> the cells that get a final trial.
KINDS: dict[str, Callable[[Study], list[Cell]]] = {
    "full-grid": _grid_cells,
    "lr-search": _search_cells,
}
