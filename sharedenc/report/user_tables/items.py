"""What a user's table may count: trials and timings, each with its value on every axis."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from jetson_agent.protocol import COMPARISON, LOADS, PRECISIONS
from sharedenc.errors import SpecError, nearest
from sharedenc.report.changes import METHODS, Method, why_unscored
from sharedenc.report.collect import StudyRows, TimingRow, TrialRow
from sharedenc.report.published import published, published_backbones
from sharedenc.report.timing_tables import timed_figure
from sharedenc.report.user_tables.file import (
    TIMING_AXES,
    TRIAL_AXES,
    MetricColumn,
    UserTable,
    value_text,
)
from sharedenc.spec import Freeze, Graph, Strategy, Task

# A dual network serves both tasks.
BOTH = "both"
_CELL_AXES = ("backbone", "method", "strategy", "freeze", "task", "cell")
_TIMING_METRICS = ("latency_ms/p50", "latency_ms/p90", "latency_ms/p99", "throughput_qps")
_TASKS: Mapping[str, tuple[str, ...]] = {
    "seg": ("mIoU", "pixel_acc", "IoU_"),
    "det": ("mAP", "AP_", "AR_"),
}
# Values that exist whether or not a study has them yet.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "backbone": tuple(published_backbones()),
    "method": tuple(method.name for method in METHODS),
    "strategy": get_args(Strategy),
    "freeze": get_args(Freeze),
    "task": (*get_args(Task), BOTH),
    "graph": (*get_args(Graph), COMPARISON),
    "precision": PRECISIONS,
    "load": LOADS,
}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One trial or timing with the number that it has for a metric, or why it has none.

    Attributes:
        at: Its value on every axis that it has.
        same: What must agree with whatever it is averaged with: all but the seed.
        seed: None for a timing, which no seed changes.
        done: Whether it ended well.
        live: Whether it is done or may still be; a failed one never counts.
        kind: What it is, in the plural.
    """

    at: Mapping[str, str]
    same: Mapping[str, str]
    value: float | None
    why: str = ""
    mark: str = ""
    seed: int | None = None
    done: bool = True
    live: bool = True
    kind: str = "trials"
    changed_ms: int = 0


def trials_of(rows: StudyRows, spec: UserTable) -> tuple[list[TrialRow], list[str]]:
    """The trials that a table may count, and notes about those that it does not.

    All final trials on the data of the study's tables, whatever their recipe and learning rate; of
    several with one cell, recipe, rate and seed the finished one, the newest of those.
    """
    if spec.trials == "tables":
        return list(rows.final), []
    every = [*rows.final, *(row for row, _ in rows.left_out)]
    mine = [row for row in every if row.state != "done" or row.data_digest == rows.data_digest]
    chosen: dict[tuple[object, ...], TrialRow] = {}
    for row in sorted(mine, key=lambda row: (row.state == "done", row.changed_ms)):
        recipe = json.dumps(dict(row.recipe), sort_keys=True)
        chosen[row.cell, recipe, row.lr, row.run_id if row.seed is None else row.seed] = row
    notes = []
    if len(every) > len(mine):
        notes.append(f"Left out, as trained on other data: {len(every) - len(mine)} trials.")
    if len(mine) > len(chosen):
        notes.append(
            f"Left out, as another trial of that cell, recipe, learning rate and seed is finished "
            f"or newer: {len(mine) - len(chosen)} trials."
        )
    return list(chosen.values()), notes


def is_timing(metric: str, trials: Sequence[TrialRow], rows: StudyRows, source: str) -> bool:
    """Whether a metric is of timings; else it is of trials.

    Raises:
        SpecError: nothing has it; with the nearest that exists.
    """
    columns = published().tables["A.1"].columns
    of_trials = {name for row in trials for name in row.metrics}
    of_trials |= {"params/total", "params/encoder", *(f"test/{name}" for name in columns)}
    of_timings = {name for row in rows.timings for name in row.metrics} | set(_TIMING_METRICS)
    if metric in of_trials:
        return False
    if metric in of_timings:
        return True
    known = sorted(of_trials | of_timings)
    shown = [name for name in known if "_class/" not in name]
    raise SpecError(
        f"{source}: metric={metric!r} is none of this study; there are {', '.join(shown)}."
        f"{nearest(metric, known)}"
    )


def items(
    spec: UserTable, column: MetricColumn, rows: StudyRows, trials: Sequence[TrialRow]
) -> list[Item]:
    """All trials or timings that have the column's metric or should, before any `where`.

    Raises:
        SpecError: nothing has the metric, or an axis of the table is none of its own.
    """
    timing = is_timing(column.metric, trials, rows, spec.source)
    recipe = {name for row in trials for name in row.recipe}
    for axis in (*spec.axes, *spec.where, *column.where):
        if axis.startswith("recipe.") and axis not in recipe:
            raise SpecError(
                f"{spec.source}: no trial of this study has {axis!r}; there are "
                f"{', '.join(sorted(recipe)) or 'none'}.{nearest(axis, recipe)}"
            )
    allowed = (*_CELL_AXES, *TIMING_AXES) if timing else (*TRIAL_AXES, *sorted(recipe))
    for axis in (*spec.axes, *column.where):
        if axis not in allowed:
            owner = "a timing" if timing else "a trial"
            raise SpecError(
                f"{spec.source}: {axis!r} is no axis of {column.metric}, which is of {owner}; "
                f"there are {', '.join(dict.fromkeys(allowed))}"
            )
    if not timing:
        return [_trial(row, column.metric) for row in _serving(column.metric, trials)]
    asked = {*spec.axes, *column.where, *spec.where} & (set(_CELL_AXES) - {"backbone"})
    cells = _cells(trials) if asked else None
    return [item for row in rows.timings for item in _timings(row, column.metric, cells)]


def _serving(metric: str, trials: Sequence[TrialRow]) -> list[TrialRow]:
    """Trials whose task has the metric: one of detection has no mIoU, and that is no gap."""
    group, _, name = metric.partition("/")
    if group in ("test", "val"):
        for task, starts in _TASKS.items():
            if name.startswith(starts):
                return [row for row in trials if row.task in (task, "")]
    tasks = {row.task for row in trials if metric in row.metrics}
    return [row for row in trials if row.task in tasks or not tasks]


def _trial(row: TrialRow, metric: str) -> Item:
    place = _place(row)
    settings = {
        **({} if row.lr is None else {"lr": value_text(row.lr)}),
        **{name: value_text(value) for name, value in row.recipe.items()},
    }
    seed = {} if row.seed is None else {"seed": str(row.seed)}
    why = why_unscored(row, metric) if row.state == "done" else row.ended
    same = {name: place[name] for name in ("backbone", "method", "task")}
    return Item(
        at={**place, **settings, **seed},
        same={**same, **settings},
        value=None if why else row.metrics[metric],
        why=why,
        seed=row.seed,
        done=row.state == "done",
        live=row.state in ("done", "running", "waiting"),
        changed_ms=row.changed_ms,
    )


def _place(row: TrialRow) -> dict[str, str]:
    return {
        "backbone": row.backbone,
        "method": Method(row.strategy, row.freeze).name,
        "strategy": row.strategy,
        "freeze": row.freeze,
        "task": row.task or BOTH,
        "cell": row.cell,
    }


def _cells(trials: Iterable[TrialRow]) -> list[dict[str, str]]:
    """The places of the study's cells, each once."""
    return list({row.cell: _place(row) for row in trials}.values())


def _timings(row: TimingRow, metric: str, cells: Sequence[Mapping[str, str]] | None) -> list[Item]:
    """A timing as it is, or once for each cell whose network it timed."""
    figure = timed_figure(row, metric)
    at = {
        "backbone": row.backbone,
        "graph": row.graph,
        "device": row.device,
        "mode": row.mode,
        "tool": row.family,
        "precision": row.precision,
        "load": row.load,
    }
    places: Iterable[Mapping[str, str]] = [{}]
    if cells is not None:
        graphs = {BOTH: "dual"}
        places = [
            cell
            for cell in cells
            if cell["backbone"] == row.backbone
            and graphs.get(cell["task"], cell["task"]) == row.graph
        ]
    return [
        Item(
            at={**place, **at},
            same=at,
            value=figure.value,
            why=figure.why,
            mark=figure.mark,
            kind="timings",
            changed_ms=row.changed_ms,
        )
        for place in places
    ]


def chosen(found: Iterable[Item], where: Mapping[str, Collection[str]]) -> list[Item]:
    """Those that every entry of ``where`` takes; an axis that they do not have takes all."""
    return [
        item
        for item in found
        if all(
            axis not in item.at or _takes(axis, values, item.at[axis])
            for axis, values in where.items()
        )
    ]


def _takes(axis: str, values: Collection[str], value: str) -> bool:
    """A dual network counts as one of either task."""
    return value in values or (axis == "task" and value == BOTH)


def check_where(spec: UserTable, where: Mapping[str, Sequence[str]], found: list[Item]) -> None:
    """Refuse a value that nothing has and nothing could have.

    Raises:
        SpecError: with the values that there are and the nearest of them.
    """
    for axis, values in where.items():
        there = {item.at[axis] for item in found if axis in item.at}
        if not there:
            continue
        known = ordered(axis, there | set(KNOWN.get(axis, ())), ())
        for value in values:
            if value not in known:
                raise SpecError(
                    f"{spec.source}: where: {axis}={value!r} is nothing that this study has; "
                    f"there are {', '.join(known)}.{nearest(value, known)}"
                )


def ordered(axis: str, values: Collection[str], first: Sequence[str]) -> list[str]:
    """Values of an axis as they are shown: as asked for, as everywhere else, then by size."""
    known = KNOWN.get(axis, ())

    def key(value: str) -> tuple[int, int, float, str]:
        if value in first:
            return 0, list(first).index(value), 0.0, value
        if value in known:
            return 1, known.index(value), 0.0, value
        try:
            return 2, 0, float(value), value
        except ValueError:
            return 3, 0, 0.0, value

    return sorted(values, key=key)
