"""Quantities of a backbone that claims compare, seed by seed, and how a reader sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from sharedenc.errors import SharedencError
from sharedenc.report.changes import METHODS, Figure, Method
from sharedenc.report.statistics import paired
from sharedenc.report.table_spec import Facts
from sharedenc.report.tables import CLASSES_OF_5_1

Unit = Literal["percent", "share", "points", "score", "million"]
Basis = Literal["scores", "timings", "counts"]
_FORMATS: dict[Unit, str] = {
    "percent": "{:+.2f} %",
    "share": "{:.2f} %",
    "points": "{:+.2f} points",
    "score": "{:+.4f}",
    "million": "{:+.2f} million",
}


@dataclass(frozen=True)
class Sample:
    """A quantity of one backbone: its value and, where seeds gave it, the value of each seed."""

    value: float | None = None
    by_seed: Mapping[int, float] = field(default_factory=dict)
    why: str = ""
    basis: Basis = "scores"


Quantity = Callable[[Facts, str], Sample]


def change(method: Method, metric: str) -> Quantity:
    """The change against the backbone's baseline in percent."""

    def quantity(facts: Facts, backbone: str) -> Sample:
        figure = facts.scores.change(backbone, method, metric)
        by_seed = facts.scores.changes_by_seed(backbone, method, metric)
        return Sample(figure.value, by_seed, figure.why)

    return quantity


def score(method: Method, metric: str) -> Quantity:
    """A test score, 0 to 1."""

    def quantity(facts: Facts, backbone: str) -> Sample:
        figure = facts.scores.score(backbone, method, metric)
        return Sample(figure.value, facts.scores.by_seed(backbone, method, metric), figure.why)

    return quantity


def recovery(strategy: str, metric: str) -> Quantity:
    """What trained biases give back, in percentage points of the baseline."""

    def quantity(facts: Facts, backbone: str) -> Sample:
        figure = facts.scores.recovery(backbone, strategy, metric)
        by_seed = facts.scores.recovery_by_seed(backbone, strategy, metric)
        return Sample(figure.value, by_seed, figure.why)

    return quantity


def parameters(method: Method, task: str) -> Quantity:
    """Millions of parameters of the trained network; counted, so the same for every seed."""

    def quantity(facts: Facts, backbone: str) -> Sample:
        figure = facts.scores.parameters(backbone, method, task)
        return Sample(figure.value, why=figure.why, basis="counts")

    return quantity


def saved(facts: Facts, backbone: str) -> Sample:
    """Percent of the parameters of two networks that one dual network saves."""
    found = [
        parameters(method, task)(facts, backbone)
        for method, task in ((METHODS[0], "det"), (METHODS[0], "seg"), (Method("dual"), ""))
    ]
    det, seg, dual = (sample.value for sample in found)
    if det is None or seg is None or dual is None:
        return Sample(why=next(sample.why for sample in found if sample.why), basis="counts")
    return Sample(100.0 * (1.0 - dual / (det + seg)), basis="counts")


def saved_of_three_classes(facts: Facts, backbone: str) -> Sample:
    """The same, counted with the heads of 3 classes that the reference study counted."""
    try:
        det, seg, dual = (
            facts.count(backbone, graph, CLASSES_OF_5_1) for graph in ("det", "seg", "dual")
        )
    except SharedencError as error:
        return Sample(why=f"cannot be built here: {error}", basis="counts")
    return Sample(100.0 * (1.0 - dual / (det + seg)), basis="counts")


def difference(first: Sample, second: Sample) -> Figure:
    """First minus second, paired by the seeds that both have; means where they share none."""
    if first.value is None or second.value is None:
        return Figure.missing(first.why or second.why)
    found = paired(first.by_seed, second.by_seed)
    if found is None:
        return Figure(first.value - second.value, compared=True)
    return Figure.comparison(found)


def amount(figure: Figure, unit: Unit) -> str:
    """A number with its unit and interval; ``≈`` where it cannot be told from 0."""
    if figure.value is None:
        return figure.why
    text = _FORMATS[unit].format(figure.value)
    if figure.low is not None and figure.high is not None:
        ends = [_FORMATS[unit].format(end).split(" ")[0] for end in (figure.low, figure.high)]
        text += f" [{', '.join(ends)}]"
    return f"≈ {text}" if figure.apart is False else text


def between(unit: Unit) -> Unit:
    """What the difference of two numbers is in."""
    return "points" if unit == "percent" else unit


def number(value: float, unit: Unit) -> str:
    """A value; a sign stands where it is a change."""
    text = _FORMATS[unit].format(value)
    return text if unit in ("percent", "points") else text.removeprefix("+")


def negative(figure: Figure) -> Figure:
    """The same comparison with its sides exchanged."""
    if figure.value is None:
        return figure
    low, high = figure.low, figure.high
    return replace(
        figure,
        value=-figure.value,
        low=None if high is None else -high,
        high=None if low is None else -low,
    )
