"""Scores of a study's cells, and their changes against the same backbone's baseline.

Everything here is computed from the study's own runs; published numbers never enter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from sharedenc.report.collect import StudyRows, TrialRow
from sharedenc.report.published import published_backbones
from sharedenc.report.statistics import Difference, deviation, of_differences, paired

NOT_IN_STUDY = "not in this study"
UNPAIRED = "unpaired: no seed in common with the baseline, so the means are compared"
UNPAIRED_RECOVERY = (
    "unpaired: frozen, bias and baseline have no seed in common, so the means are compared"
)

# Which task a test metric belongs to, by its first letters.
_SEG_METRICS = ("mIoU", "pixel_acc", "IoU_")
HEADLINE = {"seg": "mIoU", "det": "mAP"}
# The scores of a cell that overviews show, 0 to 1.
SCORES = ("mIoU", "pixel_acc", "mAP", "mAP50")


@dataclass(frozen=True)
class Figure:
    """One of our numbers: a mean over ``runs`` seeds, or why there is none.

    Attributes:
        value: The number; of a comparison, the mean change over ``runs`` seeds that both sides
            have.
        sd: Standard deviation over the seeds, of a score with two or more.
        low: Lower end of a comparison's 95 % interval; with one seed there is none.
        high: Upper end, likewise.
        compared: Whether it compares two cells.
        why: The reason where there is no number.
        mark: A caveat that belongs beside the number (a suspect timing).
    """

    value: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    compared: bool = False
    why: str = ""
    mark: str = ""

    @property
    def short(self) -> str:
        """The reason up to its first colon: ``failed`` of ``failed: loss is NaN``."""
        return self.why.split(":")[0]

    @property
    def told(self) -> str:
        """What is to be said of it: why it is missing, or its caveat; empty for nothing."""
        return self.why or self.mark

    @property
    def apart(self) -> bool | None:
        """Whether a comparison's sides can be told apart; None where no interval says so."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return Difference(self.value, self.runs, self.low, self.high).apart

    @classmethod
    def of(cls, values: Sequence[float], mark: str = "") -> Figure:
        """Mean and standard deviation of at least one value."""
        return cls(fmean(values), deviation(values), runs=len(values), mark=mark)

    @classmethod
    def comparison(cls, found: Difference) -> Figure:
        """A paired difference, in the unit that it is shown in."""
        return cls(found.mean, None, found.low, found.high, found.pairs, compared=True)

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
class Leader:
    """The method with the highest mean of a backbone.

    Attributes:
        method: The one whose mean is the highest.
        score: Its score.
        ties: Methods whose paired differences to it leave 0 inside the interval.
        untested: Methods that share fewer than two seeds with it.
    """

    method: Method
    score: Figure
    ties: tuple[Method, ...]
    untested: tuple[Method, ...]

    @property
    def clear(self) -> bool:
        """Whether it can be told apart from every other method that has a score."""
        return not self.ties and not self.untested


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


def joined(texts: Iterable[str]) -> str:
    """Several reasons or caveats as one, each once; empty ones are left out."""
    return "; ".join(dict.fromkeys(text for text in texts if text))


def relative_change(value: float, base: float) -> float:
    """Change in percent of the base, which must not be 0."""
    return 100.0 * (value / base - 1.0)


def against_sum(first: Figure, second: Figure, one: Figure) -> Figure:
    """Percent by which one network differs from the sum of two."""
    if first.value is None or second.value is None or one.value is None:
        return Figure.missing(first.why or second.why or one.why)
    change = relative_change(one.value, first.value + second.value)
    return Figure.of([change], mark=joined(f.mark for f in (first, second, one)))


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
        """Mean and deviation over the cell's seeds of a test metric, in the metric's own unit."""
        rows = self.rows(backbone, method, task_of(metric))
        return self._figure(rows, f"test/{metric}")

    def by_seed(self, backbone: str, method: Method, metric: str) -> dict[int, float]:
        """A test metric of the cell's finished trials by seed."""
        return {
            row.seed: row.metrics[f"test/{metric}"]
            for row in self.rows(backbone, method, task_of(metric))
            if row.seed is not None and _is_scored(row, f"test/{metric}")
        }

    def parameters(self, backbone: str, method: Method, task: str, part: str = "total") -> Figure:
        """Millions of parameters that the cell's networks have."""
        figure = self._figure(self.rows(backbone, method, task), f"params/{part}")
        return figure if figure.value is None else Figure.of([figure.value / 1e6])

    def change(self, backbone: str, method: Method, metric: str) -> Figure:
        """Change in percent against the backbone's own baseline, paired by seed.

        The differences are taken seed by seed and given in percent of the baseline's mean over
        the same seeds, which counts as a constant.
        """
        score = self.score(backbone, method, metric)
        if score.value is None:
            return score
        base = self.score(backbone, METHODS[0], metric)
        if base.value is None:
            return Figure.missing(f"no baseline: {base.why}")
        if base.value == 0:
            return Figure.missing("the baseline scores 0")
        changes = self.changes_by_seed(backbone, method, metric)
        if not changes:
            change = relative_change(score.value, base.value)
            return Figure(change, compared=True, mark=UNPAIRED)
        return Figure.comparison(of_differences(list(changes.values())))

    def changes_by_seed(self, backbone: str, method: Method, metric: str) -> dict[int, float]:
        """Differences to the baseline in percent of its mean, for the seeds that both have."""
        mine, base = (self.by_seed(backbone, which, metric) for which in (method, METHODS[0]))
        seeds = sorted(mine.keys() & base.keys())
        scale = fmean(base[seed] for seed in seeds) if seeds else 0.0
        if scale == 0.0:
            return {}
        return {seed: 100.0 * (mine[seed] - base[seed]) / scale for seed in seeds}

    def recovery(self, backbone: str, strategy: str, metric: str) -> Figure:
        """What training the biases gives back of what freezing lost, in percentage points.

        The score with trained biases minus the one with a frozen encoder, paired by seed, in
        percent of the baseline's mean over the same seeds: the difference of the two changes.

        Args:
            strategy: One that has both freeze modes: ``swap`` or ``share``.
        """
        frozen, bias = Method(strategy, "frozen"), Method(strategy, "bias")
        values = []
        for method in (bias, frozen, METHODS[0]):
            score = self.score(backbone, method, metric)
            if score.value is None:
                return Figure.missing(f"no {method.name}: {score.why}")
            values.append(score.value)
        if values[2] == 0:
            return Figure.missing("the baseline scores 0")
        found = self.recovery_by_seed(backbone, strategy, metric)
        if not found:
            points = 100.0 * (values[0] - values[1]) / values[2]
            return Figure(points, compared=True, mark=UNPAIRED_RECOVERY)
        return Figure.comparison(of_differences(list(found.values())))

    def recovery_by_seed(self, backbone: str, strategy: str, metric: str) -> dict[int, float]:
        """Bias minus frozen in percent of the baseline's mean, for the seeds that all three have.

        Empty where they share no seed or the baseline scores 0.
        """
        bias, frozen, base = (
            self.by_seed(backbone, method, metric)
            for method in (Method(strategy, "bias"), Method(strategy, "frozen"), METHODS[0])
        )
        seeds = sorted(bias.keys() & frozen.keys() & base.keys())
        scale = fmean(base[seed] for seed in seeds) if seeds else 0.0
        if scale == 0.0:
            return {}
        return {seed: 100.0 * (bias[seed] - frozen[seed]) / scale for seed in seeds}

    def leader(self, backbone: str, metric: str) -> Leader | None:
        """The method with the highest mean and those it cannot be told apart from.

        Comparisons are pairwise at 95 % each, not corrected for their number. None when no method
        has a score.
        """
        scores = {method: self.score(backbone, method, metric) for method in self.methods}
        found = {method: score.value for method, score in scores.items() if score.value is not None}
        if not found:
            return None
        best = max(found, key=lambda method: found[method])
        mine = self.by_seed(backbone, best, metric)
        ties, untested = [], []
        for method in found:
            if method == best:
                continue
            difference = paired(mine, self.by_seed(backbone, method, metric))
            apart = None if difference is None else difference.apart
            if apart is None:
                untested.append(method)
            elif not apart:
                ties.append(method)
        return Leader(best, scores[best], tuple(ties), tuple(untested))

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
            return Figure.missing(row.ended)
        values = [row.metrics[metric] for row in done if _is_scored(row, metric)]
        if not values:
            # Of several seeds' reasons the newest trial's.
            newest = max(done, key=lambda row: row.changed_ms)
            return Figure.missing(why_unscored(newest, metric))
        reasons = [(row.seed, why_unscored(row, metric)) for row in done]
        lost = [f"seed {seed} ({why})" for seed, why in reasons if why]
        mark = f"without {len(lost)} of {len(done)} seeds: {', '.join(lost)}" if lost else ""
        return Figure.of(values, mark)


def _is_scored(row: TrialRow, metric: str) -> bool:
    """Whether a trial is done and has the metric as a number."""
    return row.state == "done" and not why_unscored(row, metric)


def why_unscored(row: TrialRow, metric: str) -> str:
    """Why a finished trial has no number for a metric; empty where it has one.

    COCO's scorer says -1 where a score is undefined; a diverged network can log NaN.
    """
    value = row.metrics.get(metric)
    if value is None:
        return f"missing: the run has no {metric}"
    if math.isnan(value):
        return f"NaN: the run's {metric} is not a number"
    if math.isinf(value):
        return f"infinite: the run's {metric} is {value}"
    undefined = value == -1 and metric.startswith(("test/", "val/"))
    return "undefined: nothing in this data to score it on" if undefined else ""
