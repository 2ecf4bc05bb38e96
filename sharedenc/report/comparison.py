"""Two studies side by side: what changed, cell by cell. Pure, from rows that are at hand.

Scores are compared where both cells were scored on the same data with the same classes, paired by
seed; elsewhere both stand there and no difference is computed. Latencies are compared where the
same architecture was timed in the same setup.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sharedenc.report.changes import (
    NOT_IN_STUDY,
    SCORES,
    Figure,
    Method,
    Scores,
    relative_change,
    task_of,
)
from sharedenc.report.collect import ExportRow, StudyRows, TimingRow, TrialRow
from sharedenc.report.published import published_backbones
from sharedenc.report.statistics import paired
from sharedenc.report.tables import is_synthetic
from sharedenc.report.timing_tables import GRAPHS, timed_figure

Where = Literal["both", "only A", "only B"]
NOT_COMPARABLE = "not comparable"
UNPAIRED = "unpaired: no seed in common, so the means are compared"
_LATENCY = "latency_ms/p50"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two studies.

    Attributes:
        states: Cells by the state that they ended in.
        trials: Trials that fill the tables.
        left_out: Trials that fill none.
        synthetic: The data set was drawn by this package: its figures are no results.
    """

    study: str
    data: str
    data_digest: str
    classes: tuple[str, ...]
    states: Mapping[str, int]
    trials: int
    left_out: int
    synthetic: bool


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Something that was set differently; "" where one side does not have it."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A number of both sides, and B less A: in the number's unit, of latencies in percent of A."""

    name: str
    a: Figure
    b: Figure
    difference: Figure

    @property
    def changed(self) -> bool:
        """Whether the two differ at all, in what they are or in why they are missing."""
        return (self.a.value, self.a.why) != (self.b.value, self.b.why)


@dataclass(frozen=True, kw_only=True)
class CellPair:
    """A cell in both studies, or in one of them.

    Attributes:
        state_a: How it ended in A, with the reason; empty where A does not have it.
        state_b: Likewise in B.
        comparable: Whether both were scored on the same data with the same classes.
        settings: What was set differently, all of it.
    """

    cell: str
    where: Where
    state_a: str
    state_b: str
    comparable: bool
    scores: tuple[Pair, ...]
    settings: tuple[Setting, ...]

    @property
    def changed(self) -> bool:
        """Whether anything of the cell differs."""
        return (
            self.where != "both"
            or self.state_a != self.state_b
            or bool(self.settings)
            or any(pair.changed for pair in self.scores)
        )


@dataclass(frozen=True, kw_only=True)
class TimingPair:
    """A graph's median latency in one setup and precision, in both studies or in one."""

    backbone: str
    graph: str
    setup: str
    precision: str
    where: Where
    latency: Pair


@dataclass(frozen=True, kw_only=True)
class ExportPair:
    """A registered graph of a cell: model and version, and the scores of its files."""

    backbone: str
    graph: str
    cell: str
    where: Where
    model_a: str
    model_b: str
    scores: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two studies: ``settings`` are those that differ alike in every cell that is done in both."""

    a: Side
    b: Side
    same_data: bool
    settings: tuple[Setting, ...]
    cells: tuple[CellPair, ...]
    timings: tuple[TimingPair, ...]
    exports: tuple[ExportPair, ...]

    @property
    def changed(self) -> bool:
        """Whether anything differs but the names."""
        return (
            not self.same_data
            or any(cell.changed for cell in self.cells)
            or any(pair.latency.changed or pair.where != "both" for pair in self.timings)
            or any(
                pair.where != "both" or any(score.changed for score in pair.scores)
                for pair in self.exports
            )
        )

    @property
    def seeds(self) -> int:
        """The number of seeds that every score and difference rests on, 0 where they differ."""
        figures = [f for c in self.cells for p in c.scores for f in (p.a, p.b, p.difference)]
        runs = {figure.runs for figure in figures if figure.value is not None}
        return runs.pop() if len(runs) == 1 else 0

    def own_settings(self, cell: CellPair) -> list[Setting]:
        """What differs in a cell beyond what differs in all."""
        return [setting for setting in cell.settings if setting not in self.settings]


def compare(a: StudyRows, b: StudyRows) -> Comparison:
    """Put two studies side by side; differences are B less A."""
    cells = _cells(a, b)
    both = [cell for cell in cells if cell.state_a == cell.state_b == "done"]
    common = [s for s in both[0].settings if all(s in c.settings for c in both)] if both else []
    same_data = (a.data_digest, a.classes) == (b.data_digest, b.classes)
    return Comparison(
        a=_side(a),
        b=_side(b),
        same_data=same_data,
        settings=tuple(common),
        cells=tuple(cells),
        timings=tuple(_timings(a.timings, b.timings)),
        exports=tuple(_exports(a.exports, b.exports, same_data)),
    )


def _side(rows: StudyRows) -> Side:
    states = Counter(state.state for state in Scores(rows).states())
    return Side(
        study=rows.study,
        data=rows.data,
        data_digest=rows.data_digest,
        classes=rows.classes,
        states=dict(states.most_common()),
        trials=len(rows.final),
        left_out=len(rows.left_out),
        synthetic=is_synthetic(rows),
    )


def _where(in_a: object, in_b: object) -> Where:
    if in_a and in_b:
        return "both"
    return "only A" if in_a else "only B"


def _cells(a: StudyRows, b: StudyRows) -> list[CellPair]:
    scores = (Scores(a), Scores(b))
    by_cell: tuple[dict[str, list[TrialRow]], ...] = ({}, {})
    for found, rows in zip(by_cell, (a, b), strict=True):
        for row in rows.final:
            found.setdefault(row.cell, []).append(row)
    states = [{state.cell: state for state in mine.states()} for mine in scores]
    places = {row.cell: row.place for rows in (a.final, b.final) for row in rows}
    backbones = list(dict.fromkeys([*scores[0].backbones, *scores[1].backbones]))
    known = [*published_backbones(), *backbones]
    methods = list(dict.fromkeys([*scores[0].methods, *scores[1].methods]))

    def order(cell: str) -> tuple[int, int, str]:
        backbone, strategy, freeze, task = places[cell]
        return known.index(backbone), methods.index(Method(strategy, freeze)), task

    pairs = []
    for cell in sorted(places, key=order):
        mine, theirs = by_cell[0].get(cell, []), by_cell[1].get(cell, [])
        ended = [
            "" if state is None else f"{state.state}: {state.reason}".removesuffix(": ")
            for state in (states[0].get(cell), states[1].get(cell))
        ]
        comparable = bool(mine and theirs) and _scored_on(mine) == _scored_on(theirs)
        pairs.append(
            CellPair(
                cell=cell,
                where=_where(mine, theirs),
                state_a=ended[0],
                state_b=ended[1],
                comparable=comparable,
                scores=tuple(_scores(scores, (mine or theirs)[0], comparable)),
                settings=tuple(_settings(mine, theirs)) if mine and theirs else (),
            )
        )
    return pairs


def _scored_on(rows: Sequence[TrialRow]) -> set[tuple[str, tuple[str, ...]]]:
    """Data digests and class lists of a cell's trials; of its finished ones where it has any."""
    done = [row for row in rows if row.state == "done"] or rows
    return {(row.data_digest, row.classes) for row in done}


def _scores(scores: tuple[Scores, Scores], row: TrialRow, comparable: bool) -> list[Pair]:
    """The headline metrics of the cell's tasks."""
    method = Method(row.strategy, row.freeze)
    found = []
    for metric in SCORES:
        if row.task not in ("", task_of(metric)):
            continue
        a, b = (mine.score(row.backbone, method, metric) for mine in scores)
        if a.value is None or b.value is None:
            difference = Figure.missing(a.why or b.why)
        elif not comparable:
            difference = Figure.missing(f"{NOT_COMPARABLE}: other data or classes")
        else:
            by_seed = [mine.by_seed(row.backbone, method, metric) for mine in scores]
            pairs = paired(by_seed[1], by_seed[0])
            difference = Figure(b.value - a.value, compared=True, mark=UNPAIRED)
            if pairs is not None:
                difference = Figure.comparison(pairs)
        found.append(Pair(name=metric, a=a, b=b, difference=difference))
    return found


def _settings(a: Sequence[TrialRow], b: Sequence[TrialRow]) -> list[Setting]:
    values = [_set(rows) for rows in (a, b)]
    names = list(dict.fromkeys([*values[0], *values[1]]))
    return [
        Setting(name=name, a=values[0].get(name, ""), b=values[1].get(name, ""))
        for name in names
        if values[0].get(name, "") != values[1].get(name, "")
    ]


def _set(rows: Sequence[TrialRow]) -> dict[str, str]:
    """What was set for a cell; several values where its trials differ."""
    found: dict[str, list[str]] = {}

    def add(name: str, value: str) -> None:
        if value and value not in found.setdefault(name, []):
            found[name].append(value)

    for row in sorted(rows, key=lambda row: (row.seed is None, row.seed or 0)):
        add("data set", row.data)
        add("data digest", row.data_digest)
        add("classes", ", ".join(row.classes))
        add("seeds", "" if row.seed is None else str(row.seed))
        add("learning rate", "" if row.lr is None else f"{row.lr:g}")
        for name, value in sorted(row.recipe.items()):
            add(name.removeprefix("recipe."), value)
    return {name: ", ".join(values) for name, values in found.items() if values}


def _timings(a: Sequence[TimingRow], b: Sequence[TimingRow]) -> list[TimingPair]:
    known = [
        {(row.backbone, row.graph, row.setup, row.precision): row for row in rows}
        for rows in (a, b)
    ]
    pairs = []
    for place in sorted(known[0].keys() | known[1].keys()):
        if place[1] not in GRAPHS:
            continue
        mine, theirs = known[0].get(place), known[1].get(place)
        backbone, graph, setup, precision = place
        figures = [
            Figure.missing("not timed") if row is None else timed_figure(row, _LATENCY)
            for row in (mine, theirs)
        ]
        pairs.append(
            TimingPair(
                backbone=backbone,
                graph=graph,
                setup=setup,
                precision=precision,
                where=_where(mine, theirs),
                latency=Pair(
                    name="latency",
                    a=figures[0],
                    b=figures[1],
                    difference=_latency_change(mine, theirs, *figures),
                ),
            )
        )
    return pairs


def _latency_change(
    mine: TimingRow | None, theirs: TimingRow | None, a: Figure, b: Figure
) -> Figure:
    if a.value is None or b.value is None or mine is None or theirs is None:
        return Figure.missing(a.why or b.why)
    if mine.architecture != theirs.architecture:
        return Figure.missing(f"{NOT_COMPARABLE}: another architecture")
    if a.value <= 0:
        return Figure.missing("A's latency is 0")
    once = "one timing of both: they have the same architecture" if mine == theirs else ""
    return Figure(relative_change(b.value, a.value), compared=True, mark=once)


def _exports(a: Sequence[ExportRow], b: Sequence[ExportRow], same_data: bool) -> list[ExportPair]:
    known = [{(row.backbone, row.graph, row.cell): row for row in rows} for rows in (a, b)]
    pairs = []
    for place in sorted(known[0].keys() | known[1].keys()):
        mine, theirs = known[0].get(place), known[1].get(place)
        models = ["" if row is None else f"{row.model}/{row.version}" for row in (mine, theirs)]
        values = [_file_scores(row) for row in (mine, theirs)]
        pairs.append(
            ExportPair(
                backbone=place[0],
                graph=place[1],
                cell=place[2],
                where=_where(mine, theirs),
                model_a=models[0],
                model_b=models[1],
                scores=tuple(
                    _file_pair(name, values, (mine, theirs), same_data)
                    for name in dict.fromkeys([*values[0], *values[1]])
                ),
            )
        )
    return pairs


def _file_scores(row: ExportRow | None) -> dict[str, float]:
    scores = {} if row is None else row.scores
    return {f"{kind} {m}": value for kind, found in scores.items() for m, value in found.items()}


def _file_pair(
    name: str,
    values: Sequence[Mapping[str, float]],
    rows: tuple[ExportRow | None, ExportRow | None],
    same_data: bool,
) -> Pair:
    """Scores of a file; their difference only on as many photos of the same split."""
    figures = []
    for found, row in zip(values, rows, strict=True):
        why = NOT_IN_STUDY if row is None else "not scored"
        figures.append(_file_score(found[name]) if name in found else Figure.missing(why))
    a, b = figures
    photos = [f"{row.images} {row.split} photos" for row in rows if row is not None]
    difference = Figure.missing(a.why or b.why)
    if a.value is not None and b.value is not None:
        difference = Figure(b.value - a.value, compared=True)
        if not same_data:
            difference = Figure.missing(f"{NOT_COMPARABLE}: other data or classes")
        elif photos[0] != photos[1]:
            difference = Figure.missing(f"{NOT_COMPARABLE}: {photos[0]} and {photos[1]}")
    return Pair(name=name, a=a, b=b, difference=difference)


def _file_score(value: float) -> Figure:
    if not math.isfinite(value):
        return Figure.missing("NaN: the file's score is not a number")
    return Figure.of([value]) if value >= 0 else Figure.missing("undefined: nothing to score it on")
