"""The cells of a sweep as a small grid of text: methods down, backbones across.

Each cell shows a mark for its state and its score; where that has no room, marks alone, one
backbone per line.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from sharedenc.spec import TASKS

if TYPE_CHECKING:
    from rich.text import Text

    from sharedenc.spec import Cell
    from sweeps.state import Row

Mark = str
"""A state as the display tells it: that of a row, or ``again`` for one that is tried again."""

# Of a cell's several trials (seeds, settings) the first of these that one of them has is shown.
ORDER: tuple[Mark, ...] = (
    "failed",
    "running",
    "again",
    "stopped",
    "skipped",
    "waiting",
    "done",
)
STYLES: Mapping[Mark, str] = {
    "done": "green",
    "running": "bold cyan",
    "again": "magenta",
    "waiting": "dim",
    "stopped": "yellow",
    "skipped": "yellow",
    "failed": "bold red",
}
MARKS: Mapping[Mark, str] = {
    "done": "✓",
    "running": "▶",
    "again": "↻",
    "waiting": "·",
    "stopped": "■",
    "skipped": "-",
    "failed": "✗",
}
ASCII_MARKS: Mapping[Mark, str] = {
    "done": "+",
    "running": ">",
    "again": "~",
    "waiting": ".",
    "stopped": "=",
    "skipped": "-",
    "failed": "x",
}
_STRATEGIES = ("baseline", "swap", "share", "dual")
_FREEZES = ("none", "frozen", "bias")
_LABEL = 13
_PAIR, _PAIR_MOST = 14, 24


def mark_of(row: Row) -> Mark:
    """The row's state, or ``again`` while it waits for another attempt."""
    tried = row.attempts > 0 or row.preemptions > 0
    return "again" if row.state == "waiting" and tried else row.state


@dataclass
class CellView:
    """All trials of one cell: how many have which mark, and their scores."""

    counts: Counter[Mark] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count one more trial."""
        self.counts[mark_of(row)] += 1
        if row.state not in ("failed", "skipped") and not math.isnan(row.score):
            self.scores.append(row.score)

    @property
    def mark(self) -> Mark:
        """What the cell is shown as."""
        return next(mark for mark in ORDER if self.counts[mark])

    def text(self, width: int, marks: Mapping[Mark, str]) -> str:
        """Mark, mean score, and how many of several trials are done, as far as there is room."""
        total = self.counts.total()
        score = short_score(fmean(self.scores)) if self.scores else ""
        count = f"{self.counts['done']}/{total}" if total > 1 else ""
        sign = marks[self.mark]
        whole = f"{sign}{score} {count}" if score and count else f"{sign}{score or count}"
        return whole if len(whole) <= width else f"{sign}{score or count}"[:width]


Grid = dict[str, dict[str, dict[str, CellView]]]
"""Backbone, method, task ("" for both) -> the cell's trials."""


def short_score(score: float) -> str:
    """Three decimals without the leading 0: ``.512``."""
    return f"{score:.3f}".removeprefix("0")


def method_of(cell: Cell) -> str:
    """The cell's strategy and freeze mode, as in its name: ``swap-bias``."""
    return cell.strategy if cell.freeze == "none" else f"{cell.strategy}-{cell.freeze}"


def collect(rows: Iterable[Row]) -> tuple[Grid, list[str]]:
    """Sort rows into a grid; also the methods in their usual order."""
    grid: Grid = {}
    methods: dict[str, tuple[int, int, str]] = {}
    for row in rows:
        cell = row.node.cell
        method = method_of(cell)
        tasks = grid.setdefault(cell.backbone, {}).setdefault(method, {})
        tasks.setdefault(cell.task or "", CellView()).add(row)
        freeze = _FREEZES.index(cell.freeze) if cell.freeze in _FREEZES else len(_FREEZES)
        methods[method] = (_STRATEGIES.index(cell.strategy), freeze, method)
    return grid, sorted(methods, key=methods.__getitem__)


def draw(
    grid: Grid, methods: Sequence[str], width: int, height: int, *, marks: Mapping[Mark, str]
) -> list[Text]:
    """Lines of at most ``width``, at most ``height`` of them; whole cells, never half of one."""
    per_band = max((width - _LABEL) // _PAIR, 0)
    names = list(grid)
    if per_band:
        bands = math.ceil(len(names) / per_band)
        per_band = math.ceil(len(names) / max(bands, 1))
        lines: list[Text] = []
        for start in range(0, len(names), max(per_band, 1)):
            lines += _band(grid, names[start : start + per_band], methods, width, marks)
        if len(lines) <= height:
            return lines
    return _compact(grid, methods, width, height, marks)


def _band(
    grid: Grid, names: Sequence[str], methods: Sequence[str], width: int, marks: Mapping[Mark, str]
) -> list[Text]:
    from rich.text import Text

    pair = min((width - _LABEL) // len(names), _PAIR_MOST)
    single = pair // 2
    titles = [wrapped(name, pair - 1) for name in names]
    lines = []
    for i in range(max(len(title) for title in titles)):
        parts = [(title[i] if i < len(title) else "").ljust(pair) for title in titles]
        lines.append(Text(" " * _LABEL + "".join(parts), style="bold"))
    heads = "".join("".join(task.ljust(single) for task in TASKS).ljust(pair) for _ in names)
    lines.append(Text(" " * _LABEL + heads, style="dim"))
    for method in methods:
        line = Text(fitted(method, _LABEL - 1).ljust(_LABEL))
        for name in names:
            cells = grid[name].get(method, {})
            if "" in cells:
                _put(line, cells[""], pair, marks)
            else:
                for task in TASKS:
                    _put(line, cells.get(task), single, marks)
                line.append(" " * (pair - len(TASKS) * single))
        lines.append(line)
    return lines


def _put(line: Text, cell: CellView | None, width: int, marks: Mapping[Mark, str]) -> None:
    if cell is None:
        line.append(" " * width)
    else:
        line.append(cell.text(width - 1, marks).ljust(width), style=STYLES[cell.mark])


def _compact(
    grid: Grid, methods: Sequence[str], width: int, height: int, marks: Mapping[Mark, str]
) -> list[Text]:
    """One line per backbone, only marks; of too many backbones those where most happens."""
    from rich.text import Text

    label = min(max((len(name) for name in grid), default=0), max(width // 3, 8)) + 1
    short = {method: _abbreviation(method) for method in methods}
    shown = list(methods)[: max((width - label) // 5, 1)]
    lines = [Text(" " * label + "".join(short[m].ljust(5) for m in shown), style="dim")]
    names = list(grid)
    if len(names) > height - 1:
        names.sort(key=lambda name: -_activity(grid[name]))
        names = names[: max(height - 2, 0)]
    for name in names:
        line = Text(fitted(name, label - 1).ljust(label))
        for method in shown:
            cells = grid[name].get(method, {})
            for cell in cells.values():
                line.append(marks[cell.mark], style=STYLES[cell.mark])
            line.append(" " * (5 - len(cells)))
        lines.append(line)
    rest = [name for name in grid if name not in set(names)]
    if rest:
        counts: Counter[Mark] = Counter()
        for name in rest:
            for cells in grid[name].values():
                for cell in cells.values():
                    counts += cell.counts
        words = ", ".join(f"{counts[mark]} {mark}" for mark in ORDER if counts[mark])
        lines.append(Text(fitted(f"and {len(rest)} more backbones: {words}", width), style="dim"))
    return lines[: max(height, 0)]


def _activity(cells: Mapping[str, Mapping[str, CellView]]) -> int:
    counts: Counter[Mark] = Counter()
    for tasks in cells.values():
        for cell in tasks.values():
            counts += cell.counts
    return 2 * (counts["running"] + counts["failed"]) + counts["again"]


def _abbreviation(method: str) -> str:
    strategy, _, freeze = method.partition("-")
    return strategy[:2] + freeze[:2] if freeze else strategy[:4]


def wrapped(name: str, width: int) -> list[str]:
    """A name on as many lines as it needs, broken after an underscore where there is one."""
    lines = []
    while len(name) > width:
        cut = name.rfind("_", 0, width) + 1 or width
        lines.append(name[:cut])
        name = name[cut:]
    return [*lines, name]


def fitted(text: str, width: int) -> str:
    """One line of at most ``width``, with dots where something is left out at its end."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def tail(name: str, width: int) -> str:
    """A name of at most ``width``; its end says more than its start."""
    return name if len(name) <= width else "…" + name[len(name) - max(width - 1, 0) :]
