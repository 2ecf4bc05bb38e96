"""Recipe settings as axes: which combinations make a difference to which cells.

``alpha: [1, 3]`` gives two trials of each dual cell and one of every other cell, which does not
use alpha. A swap differs wherever its source does, and a cell whose rate is searched wherever one
of the searched cells does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sharedenc.spec import Cell, Recipe
from sweeps.facts import Facts
from sweeps.searches import scope
from sweeps.study import Study


class Variants:
    """The combinations of a study's axes, by number, as each cell sees them."""

    def __init__(self, study: Study, facts: Facts) -> None:
        self._study = study
        self._facts = facts
        self._seen: dict[tuple[Cell, int], str] = {}
        self._labels: dict[Cell, list[tuple[int, tuple[str, ...]]]] = {}

    def recipe(self, variant: int) -> Recipe:
        """The recipe of a combination."""
        return self._study.variants[variant][1]

    def of(self, cell: Cell) -> list[tuple[int, tuple[str, ...]]]:
        """Numbers and labels (``alpha=3``) of the combinations that differ for a cell."""
        if cell not in self._labels:
            around = self._around(cell)
            numbers = dict.fromkeys(self.same(cell, n) for n in range(len(self._study.variants)))
            self._labels[cell] = [(n, self._label(around, n)) for n in numbers]
        return self._labels[cell]

    def label(self, cell: Cell, variant: int) -> tuple[str, ...]:
        """The label of the combination that is this one to a cell."""
        return dict(self.of(cell))[self.same(cell, variant)]

    def same(self, cell: Cell, variant: int) -> int:
        """The first combination that is the same as this one to a cell."""
        around = self._around(cell)
        wanted = self._view(around, variant)
        return next(n for n in range(variant + 1) if self._view(around, n) == wanted)

    def content(self, cell: Cell, recipe: Recipe) -> dict[str, Any]:
        """What a cell uses of a recipe (and all else that decides its result but the rate)."""
        parent = None
        if cell.source is not None:
            parent = self._facts.trial(cell.source, recipe, 1.0, 0)
        content = self._facts.trial(cell, recipe, 1.0, self._study.seeds[0], parent).content()
        return {name: value for name, value in content.items() if name not in ("lr", "parent")}

    def _around(self, cell: Cell) -> tuple[Cell, ...]:
        """The cells that decide a cell's result: its source, and what is searched for either."""
        cells = [cell] if cell.source is None else [cell, *self._around(cell.source)]
        for other in scope(self._study, cell):
            cells += [other] if other.source is None else [other, *self._around(other.source)]
        return tuple(dict.fromkeys(cells))

    def _view(self, cells: Sequence[Cell], variant: int) -> list[str]:
        return [self._used(cell, variant) for cell in cells]

    def _used(self, cell: Cell, variant: int) -> str:
        if (cell, variant) not in self._seen:
            content = self.content(cell, self.recipe(variant))
            self._seen[cell, variant] = json.dumps(content, sort_keys=True)
        return self._seen[cell, variant]

    def _label(self, cells: Sequence[Cell], variant: int) -> tuple[str, ...]:
        settings = self._study.variants[variant][0]
        return tuple(
            f"{axis}={value:g}" if isinstance(value, float) else f"{axis}={value}"
            for axis, value in settings.items()
            if self._matters(axis, cells, variant)
        )

    def _matters(self, axis: str, cells: Sequence[Cell], variant: int) -> bool:
        """Whether another value on this axis alone makes a difference to any of the cells."""
        here = self._study.variants[variant][0]
        return any(
            self._view(cells, n) != self._view(cells, variant)
            for n, (there, _) in enumerate(self._study.variants)
            if all(there[name] == here[name] for name in here if name != axis)
        )
