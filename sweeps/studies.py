"""Study kinds and studies: what a user asked for, merged from preset, file and command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from sharedenc.data.dataset import DataRules
from sharedenc.errors import SpecError, check_choice, nearest
from sharedenc.presets import preset as find_preset
from sharedenc.spec import BACKBONES, FREEZES, STRATEGIES, TASKS, Cell, Recipe
from sweeps.brackets import Ladder
from sweeps.grid import full_grid, select

DEFAULT_SEARCH_LRS = (1e-4, 2e-4, 4e-4, 8e-4)


@dataclass(frozen=True, kw_only=True)
class Search:
    """A learning-rate search of one cell: a trial for each rate, thinned out by a bracket."""

    cell: Cell
    lrs: tuple[float, ...]
    recipe: Recipe
    ladder: Ladder


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study, made concrete. Every field can stand in a study file under its own name.

    ``lr`` gives learning rates by backbone (``*`` for all others); backbones without one use
    their published rate. ``search_cell`` adds a learning-rate search of that cell; kind
    `lr-search` searches every chosen baseline. ``data`` is a path; without one a synthetic data
    set is drawn, if ``synthetic_images`` gives its size (training, validation, test). ``rules``
    are fields of `DataRules` that replace those of the data set.
    """

    kind: str
    name: str | None = None
    data: str | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "thesis"
    recipe: Recipe = field(default_factory=Recipe)
    backbones: tuple[str, ...] = ()
    strategies: tuple[str, ...] = STRATEGIES
    freeze: tuple[str, ...] = ()
    tasks: tuple[str, ...] = TASKS
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    lr: Mapping[str, float] = field(default_factory=dict)
    weights: str = "default"
    search_cell: str | None = None
    search_lrs: tuple[float, ...] = DEFAULT_SEARCH_LRS
    search_epochs: int | None = None
    search_rungs: tuple[int, ...] = ()
    search_factor: int = 2
    plugins: tuple[str, ...] = ()
    synthetic_images: tuple[int, ...] = ()
    agent: bool = False

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if self.name is not None and not re.fullmatch(r"\w[\w.\- ]*", self.name):
            raise SpecError(
                f"name={self.name!r} must begin with a letter or digit and hold letters, digits, "
                "spaces and _ . - only: folders are named after it"
            )
        for backbone in self.lr:
            check_choice("lr: backbone", backbone, [*BACKBONES, "*"])
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SpecError(f"seeds={list(self.seeds)} must be one or more different numbers")
        if self.synthetic_images and len(self.synthetic_images) != 3:
            raise SpecError("synthetic_images must be three numbers: training, validation, test")
        if self.search_factor < 2:
            raise SpecError(f"search_factor={self.search_factor} must be at least 2")
        DataRules.from_dict(self.rules)
        self._check_search_cell()
        if self.kind == "lr-search" or self.search_cell is not None:
            if len(set(self.search_lrs)) < 2 or min(self.search_lrs) <= 0:
                raise SpecError("a learning-rate search needs two or more rates above 0")
            rungs = self.search_rungs
            if any(r < 1 for r in rungs) or list(rungs) != sorted(set(rungs)):
                raise SpecError(f"search_rungs={list(rungs)} must be rising epochs, 1 or more")

    def _check_search_cell(self) -> None:
        if self.search_cell is not None:
            Cell.parse(self.search_cell)
            if self.kind == "lr-search":
                raise SpecError(
                    "search_cell is for kind full-grid; lr-search searches every chosen baseline: "
                    "choose them with --backbones, --tasks or --only"
                )
        elif self.kind != "lr-search":
            given = [
                name for name, usual in SEARCH_DEFAULTS.items() if getattr(self, name) != usual
            ]
            if given:
                raise SpecError(
                    f"{given[0]} is set, but this study searches nothing: name a cell with "
                    "--search-cell CELL (in a study file: search_cell), or take kind lr-search"
                )

    @property
    def grid(self) -> list[Cell]:
        """All cells of the chosen axes, before ``only``."""
        return full_grid(
            self.backbones or BACKBONES, self.strategies, self.freeze or FREEZES, self.tasks
        )

    @property
    def cells(self) -> list[Cell]:
        """The cells that get a final trial, sources included."""
        cells = KINDS[self.kind](self)
        if self.search_cell is not None:
            source = Cell.parse(self.search_cell).source
            cells = list(dict.fromkeys([*([source] if source else []), *cells]))
        return cells

    @property
    def searches(self) -> list[Search]:
        """The learning-rate searches of this study."""
        if self.kind == "lr-search":
            baselines = [c for c in select(self.grid, self.only) if c.strategy == "baseline"]
            if not baselines:
                raise SpecError("lr-search searches baselines, and what was chosen has none")
            return [self._search(cell) for cell in baselines]
        return [] if self.search_cell is None else [self._search(Cell.parse(self.search_cell))]

    def _search(self, cell: Cell) -> Search:
        recipe = replace(self.recipe, epochs=self.search_epochs or self.recipe.epochs)
        rungs = self.search_rungs or default_rungs(recipe.epochs, self.search_factor)
        ladder = Ladder(rungs=rungs, factor=self.search_factor)
        return Search(cell=cell, lrs=self.search_lrs, recipe=recipe, ladder=ladder)

    def rate(self, backbone: str) -> float:
        """The learning rate of a backbone's final trials.

        Raises:
            SpecError: none was given and none is published.
        """
        rate = self.lr.get(backbone, self.lr.get("*", BACKBONES[backbone].lr))
        if rate is None:
            raise SpecError(
                f"backbone {backbone!r} has no published learning rate; give one with "
                f"--lr {backbone}=RATE, or search it with "
                f"`sharedenc sweep lr-search --backbones {backbone}`"
            )
        return rate

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a study file holds them; `study_from` reads them again."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def to_yaml(self) -> str:
        """The study file that says the same."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


SEARCH_DEFAULTS = {
    item.name: item.default
    for item in fields(Study)
    if item.name.startswith("search_") and item.name != "search_cell"
}


def _grid_cells(study: Study) -> list[Cell]:
    cells = select(study.grid, study.only)
    if not cells:
        raise SpecError("the chosen backbones, strategies, freeze modes and tasks leave no cell")
    return cells


def _no_cells(study: Study) -> list[Cell]:
    return []


# Kind -> the cells that get a final trial.
KINDS: dict[str, Callable[[Study], list[Cell]]] = {
    "full-grid": _grid_cells,
    "lr-search": _no_cells,
}


def default_rungs(epochs: int, factor: int) -> tuple[int, ...]:
    """Rungs for a budget: from 24 epochs on, or earlier when the budget is short.

    24 is the first epoch at which a plateau scheduler of patience 10 can have cut twice; ranking
    before that compares noise floors of constant rates.
    """
    rung = max(1, min(24, epochs // factor**2))
    rungs = []
    while rung < epochs:
        rungs.append(rung)
        rung *= factor
    return tuple(rungs)


def study_from(
    *layers: Mapping[str, Any], kind: str | None = None, preset: str | None = None
) -> Study:
    """Merge settings: defaults, then the preset, then each layer (later ones win).

    ``recipe``, ``lr`` and ``rules`` are merged by name, everything else is replaced. ``kind`` and
    ``preset`` win over what the layers say.

    Raises:
        SpecError: a setting is unknown (with the nearest name) or of a wrong type, or what is
            chosen leaves nothing to train.
    """
    names = {item.name for item in fields(Study)}
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    merged["kind"] = kind or merged.get("kind", "full-grid")
    merged["preset"] = preset or merged.get("preset", "thesis")
    base = find_preset(merged["preset"])
    recipe, rates, rules = dict(base.recipe), {}, {}
    for layer in layers:
        recipe.update(_mapping("recipe", layer.get("recipe", {})))
        rates.update(_mapping("lr", layer.get("lr", {})))
        rules.update(_mapping("rules", layer.get("rules", {})))
    merged = {**base.study, **merged, "recipe": Recipe.from_dict(recipe)}
    merged |= {"lr": rates, "rules": rules}
    for name in merged:
        if name not in names:
            raise SpecError(f"a study has no setting {name!r}.{nearest(name, names)}")
    values = {name: _as_field(name, value) for name, value in merged.items()}
    if "search_cell" in base.study and not any("search_cell" in layer for layer in layers):
        values = _without_lost_search(values, given={name for layer in layers for name in layer})
    study = Study(**values)
    # Both refuse what names or matches nothing.
    _ = study.cells, study.searches
    return study


def _without_lost_search(values: dict[str, Any], given: Set[str]) -> dict[str, Any]:
    """A preset's search goes with the cells that were chosen from its grid."""
    kept = {name: value for name, value in values.items() if name != "search_cell"}
    if values["kind"] == "lr-search":
        return kept
    plain = {k: v for k, v in kept.items() if k not in SEARCH_DEFAULTS}
    study = Study(**plain)
    if Cell.parse(values["search_cell"]) in select(study.grid, study.only):
        return values
    return plain | {name: kept[name] for name in SEARCH_DEFAULTS if name in given}


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(f"{name}={value!r} must be a mapping of names to values")
    return {str(key): item for key, item in value.items()}


def _as_field(name: str, value: Any) -> Any:
    """Values of a YAML file as the types of `Study`."""
    wrong = SpecError(f"study setting {name}={value!r} is not of the right type")
    try:
        if name in {"search_lrs", "lr"}:
            if isinstance(value, Mapping):
                return {key: float(rate) for key, rate in value.items()}
            return tuple(float(rate) for rate in value)
        if name in {"seeds", "search_rungs", "synthetic_images"}:
            return tuple(int(item) for item in value)
    except (TypeError, ValueError):
        raise wrong from None
    if name in {"backbones", "strategies", "freeze", "tasks", "only", "plugins"}:
        if isinstance(value, str) or not all(isinstance(item, str) for item in value):
            raise wrong
        return tuple(value)
    if name in {"search_epochs", "search_factor"} and value is not None:
        if not isinstance(value, int) or value < 1:
            raise wrong
    return value


def read_study_file(path: Path) -> dict[str, Any]:
    """Settings of a YAML study file.

    Raises:
        SpecError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SpecError(f"study file {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"study file {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise SpecError(f"study file {path} must be a mapping, such as `kind: full-grid`")
    return values
