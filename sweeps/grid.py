"""Which cells a study has, and which parts of it a user can pick."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from sharedenc.errors import SpecError, check_choice, nearest
from sharedenc.spec import BACKBONES, FREEZES, STRATEGIES, TASKS, Cell, Strategy

# The reference grid: the freeze modes of each strategy.
GRID_FREEZES: dict[Strategy, tuple[str, ...]] = {
    "baseline": ("none",),
    "swap": ("frozen", "bias"),
    "share": ("frozen", "bias"),
    "dual": ("none",),
}


def full_grid(
    backbones: Iterable[str] | None = None,
    strategies: Iterable[str] = STRATEGIES,
    freezes: Iterable[str] | None = None,
    tasks: Iterable[str] = TASKS,
) -> list[Cell]:
    """Every cell of the grid with these values, backbone by backbone, without pulling anything in.

    With all defaults these are 11 cells for each backbone. A `dual` cell needs both tasks.

    Raises:
        SpecError: a value is unknown (with the nearest name).
    """
    backbones = list(BACKBONES) if backbones is None else list(backbones)
    freezes = list(FREEZES) if freezes is None else list(freezes)
    strategies, tasks = list(strategies), list(tasks)
    for field, values, allowed in (
        ("backbone", backbones, list(BACKBONES)),
        ("strategy", strategies, list(STRATEGIES)),
        ("freeze", freezes, list(FREEZES)),
        ("task", tasks, list(TASKS)),
    ):
        for value in values:
            check_choice(field, value, allowed)
    cells = []
    for backbone in dict.fromkeys(backbones):
        for strategy in STRATEGIES:
            for freeze in GRID_FREEZES[strategy]:
                if strategy in strategies and freeze in freezes:
                    cells += _of_tasks(backbone, strategy, freeze, tasks)
    return cells


def _of_tasks(backbone: str, strategy: Strategy, freeze: str, tasks: Sequence[str]) -> list[Cell]:
    if strategy == "dual":
        whole = set(TASKS) <= set(tasks)
        return [Cell(strategy="dual", backbone=backbone, freeze=freeze)] if whole else []
    return [
        Cell(strategy=strategy, backbone=backbone, freeze=freeze, task=task)
        for task in TASKS
        if task in tasks
    ]


def matching(cells: Iterable[Cell], patterns: Sequence[str] = ()) -> list[Cell]:
    """The cells that match any of ``patterns``, all of them without patterns.

    A pattern is a cell's name with shell wildcards (``resnet18/*``, ``*/swap-*/seg``).

    Raises:
        SpecError: a pattern matches no cell.
    """
    cells = list(cells)
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            hint = nearest(pattern, [cell.name for cell in cells])
            backbone = pattern.partition("/")[0]
            if backbone not in BACKBONES and not set("*?[") & set(backbone):
                hint = f" There is no backbone {backbone!r}.{nearest(backbone, BACKBONES)}"
            raise SpecError(f"{pattern!r} matches none of the study's {len(cells)} cells.{hint}")
    return [
        cell
        for cell in cells
        if not patterns or any(fnmatchcase(cell.name, pattern) for pattern in patterns)
    ]


def select(cells: Iterable[Cell], patterns: Sequence[str] = ()) -> list[Cell]:
    """Keep the cells that match any of ``patterns`` and add the baselines that swaps need.

    Each cell comes once, a source before the first cell that needs it.

    Raises:
        SpecError: a pattern matches no cell.
    """
    complete: dict[Cell, None] = {}
    for cell in matching(cells, patterns):
        if cell.source is not None:
            complete.setdefault(cell.source)
        complete.setdefault(cell)
    return list(complete)
