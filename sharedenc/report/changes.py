"""Scores of a study's cells, and their changes against the same backbone's baseline.

Everything here is computed from the study's own runs; published numbers never enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sharedenc.report.collect import StudyRows, TrialRow
from sharedenc.report.published import published_backbones

NOT_IN_STUDY = "not in this study"

# Which task a test metric belongs to, by its first letters.
_SEG_METRICS = ("mIoU", "pixel_acc", "IoU_")
HEADLINE = {"seg": "mIoU", "det": "mAP"}


@dataclass(frozen=True)
class Figure:
    """One of our numbers: the mean of ``runs`` runs with its range, or why there is none.

    ``mark`` is a caveat that belongs beside the number (a suspect timing).
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    why: str = ""
    mark: str = ""

    @property
    def short(self) -> str:
        """The reason up to its first colon: ``failed`` of ``failed: loss is NaN``."""
        return self.why.split(":")[0]

    @classmethod
    def of(cls, values: Sequence[float], mark: str = "") -> Figure:
        """Mean and range of at least one value."""
        return cls(fmean(values), min(values), max(values), len(values), mark=mark)

    @classmethod
    def missing(cls, why: str) -> Figure:
        """No number, and the reason."""
        return cls(why=why)


@dataclass(frozen=True)
class Method:
    """A row of the study's overview: a strategy with a freeze mode."""

    strategy: str
    freeze: str = "none"

    @property
    def name(self) -> str:
        """As in a cell's name: ``swap-bias``."""
        return self.strategy if self.freeze == "none" else f"{self.strategy}-{self.freeze}"


METHODS: tuple[Method, ...] = (
    Method("baseline"),
    Method("swap", "frozen"),
    Method("swap", "bias"),
    Method("share", "frozen"),
    Method("share", "bias"),
    Method("dual"),
)


@dataclass(frozen=True)
class CellState:
    """How a cell ended; ``reason`` is empty for a finished one."""

    cell: str
    state: str
    kind: str
    reason: str


def task_of(metric: str) -> str:
    """The task that a test metric belongs to."""
    return "seg" if metric.startswith(_SEG_METRICS) else "det"


def relative_change(value: float, base: float) -> float:
    """Change in percent of the base, which must not be 0."""
    return 100.0 * (value / base - 1.0)


class Scores:
    """The study's final trials by cell."""

    def __init__(self, rows: StudyRows) -> None:
        self._cells: dict[tuple[str, str, str, str], list[TrialRow]] = {}
        for row in rows.final:
            self._cells.setdefault(row.place, []).append(row)
        mine = dict.fromkeys(row.backbone for row in rows.final)
        order = published_backbones()
        known = [name for name in order if name in mine]
        self.backbones = (*known, *(name for name in mine if name not in order))
        found = {(row.strategy, row.freeze): Method(row.strategy, row.freeze) for row in rows.final}
        self.methods = METHODS + tuple(m for m in found.values() if m not in METHODS)

    def rows(self, backbone: str, method: Method, task: str) -> list[TrialRow]:
        """The trials of a cell; a dual cell's serve both tasks."""
        place = (
            backbone,
            method.strategy,
            method.freeze,
            "" if method.strategy == "dual" else task,
        )
        return self._cells.get(place, [])

    def score(self, backbone: str, method: Method, metric: str) -> Figure:
        """Mean and range over the cell's seeds of a test metric, in the metric's own unit."""
        rows = self.rows(backbone, method, task_of(metric))
        return self._figure(rows, f"test/{metric}")

    def parameters(self, backbone: str, method: Method, task: str, part: str = "total") -> Figure:
        """Millions of parameters that the cell's networks have."""
        figure = self._figure(self.rows(backbone, method, task), f"params/{part}")
        return figure if figure.value is None else Figure.of([figure.value / 1e6])

    def change(self, backbone: str, method: Method, metric: str) -> Figure:
        """Change in percent of the mean against the mean of the backbone's own baseline.

        The range is that of the cell's runs against the baseline's mean.
        """
        score = self.score(backbone, method, metric)
        if score.value is None or score.low is None or score.high is None:
            return score
        base = self.score(backbone, METHODS[0], metric)
        if base.value is None:
            return Figure.missing(f"no baseline: {base.why}")
        if base.value == 0:
            return Figure.missing("the baseline scores 0")
        middle, low, high = (
            relative_change(value, base.value) for value in (score.value, score.low, score.high)
        )
        return Figure(middle, low, high, score.runs)

    def states(self) -> list[CellState]:
        """One state per cell; done if any of its trials is, else that of its newest trial."""
        states = []
        for rows in self._cells.values():
            row = max(rows, key=lambda row: (row.state == "done", row.changed_ms))
            reason = "" if row.state == "done" else row.reason
            states.append(CellState(row.cell, row.state, row.failure_kind, reason))
        return states

    @staticmethod
    def _figure(rows: Sequence[TrialRow], metric: str) -> Figure:
        if not rows:
            return Figure.missing(NOT_IN_STUDY)
        done = [row for row in rows if row.state == "done"]
        if not done:
            row = max(rows, key=lambda row: row.changed_ms)
            return Figure.missing(f"{row.state}: {row.reason}" if row.reason else row.state)
        # COCO's scorer says -1 where a figure is undefined.
        values = [row.metrics[metric] for row in done if row.metrics.get(metric, -1.0) >= 0]
        if not values:
            return Figure.missing("undefined: nothing in this data to score it on")
        return Figure.of(values)
