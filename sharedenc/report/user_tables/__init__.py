"""A user's own tables: `load` a file, `build` each of its tables from a study, `write` them.

A number is a mean over seeds and over nothing else: trials that differ in anything but the seed are
refused, with what they differ in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from sharedenc.errors import SpecError
from sharedenc.report.changes import NOT_IN_STUDY, Figure
from sharedenc.report.table_spec import Facts
from sharedenc.report.user_tables.compare import compared_axis, with_best, with_changes
from sharedenc.report.user_tables.file import MetricColumn, UserTable
from sharedenc.report.user_tables.file import load as load
from sharedenc.report.user_tables.filled import Filled, Head, Labels, Line, Shown, head_text
from sharedenc.report.user_tables.items import (
    Item,
    check_where,
    chosen,
    items,
    ordered,
    trials_of,
)
from sharedenc.report.user_tables.notes import notes
from sharedenc.report.user_tables.text import write as write

__all__ = ["Filled", "UserTable", "build", "load", "write"]

# What a done trial of an older version may not have said.
_NOT_SET = "not set"


def build(spec: UserTable, facts: Facts) -> Filled:
    """Fill a table from a study.

    Raises:
        SpecError: the study has no such metric, axis or value, nothing is left to show, or trials
            would be averaged that differ in more than the seed.
    """
    trials, left_out = trials_of(facts.rows, spec)
    found: list[list[Item]] = []
    used: set[str] = set()
    for column in spec.metrics:
        every = items(spec, column, facts.rows, trials)
        where = {**spec.where, **column.where}
        check_where(spec, where, every)
        used |= {axis for item in every for axis in item.at}
        found.append(chosen(every, where))
    for axis in spec.where:
        if used and axis not in used:
            raise SpecError(
                f"{spec.source}: where: {axis!r} sorts nothing out: no metric of this table is of "
                "something that has it"
            )
    together = [item for mine in found for item in mine]
    labels = _row_labels(spec, together)
    heads = _heads(spec, together)
    if not labels or not heads:
        asked = " and ".join(f"{axis}={', '.join(v)}" for axis, v in spec.where.items())
        raise SpecError(
            f"{spec.source}: nothing in study {facts.rows.study!r} fills this table"
            f"{f': nothing has {asked}' if asked else ''}"
        )
    axis = compared_axis(spec, labels, heads)
    placed = [_placed(spec, mine) for mine in found]
    numbers = {}
    for label in labels:
        for at, head in enumerate(heads):
            here = placed[0 if spec.columns else at].get((label, head.value), [])
            place = " / ".join((*label, head_text(spec, head)))
            numbers[label, at] = _number(spec, head.column, here, place)
    numbers = with_best(spec, with_changes(spec, numbers, heads, axis), heads, axis)
    return Filled(
        spec=spec,
        rows=facts.rows,
        heads=tuple(heads),
        lines=tuple(
            Line(labels=label, cells=tuple(numbers[label, at] for at in range(len(heads))))
            for label in labels
        ),
        notes=(*notes(spec, heads, numbers, axis), *left_out),
    )


def _value(item: Item, axis: str) -> str | None:
    """An item's value on an axis; None for a trial that waits and does not know it yet."""
    return item.at.get(axis, _NOT_SET if item.done else None)


def _placed(
    spec: UserTable, found: Iterable[Item]
) -> dict[tuple[tuple[str | None, ...], str | None], list[Item]]:
    """What stands where: items by their values on the rows' axes and on the one across."""
    places: dict[tuple[tuple[str | None, ...], str | None], list[Item]] = {}
    for item in found:
        label = tuple(_value(item, axis) for axis in spec.rows)
        across = _value(item, spec.columns) if spec.columns else ""
        places.setdefault((label, across), []).append(item)
    return places


def _values(spec: UserTable, axis: str, found: Iterable[Item]) -> list[str]:
    """The values that are shown of an axis: those asked for by name, and those that there are."""
    there = {value for item in found if (value := _value(item, axis)) is not None}
    asked = spec.where.get(axis, ())
    return ordered(axis, there | set(asked), asked)


def _row_labels(spec: UserTable, found: Sequence[Item]) -> list[Labels]:
    if len(spec.rows) == 1:
        return [(value,) for value in _values(spec, spec.rows[0], found)]
    orders = [_values(spec, axis, found) for axis in spec.rows]
    there = {tuple(_value(item, axis) for axis in spec.rows) for item in found}
    labels = [tuple(value for value in label if value is not None) for label in there]
    whole = [label for label in labels if len(label) == len(spec.rows)]
    return sorted(
        whole,
        key=lambda label: [order.index(v) for order, v in zip(orders, label, strict=True)],
    )


def _heads(spec: UserTable, found: Sequence[Item]) -> list[Head]:
    if not spec.columns:
        return [Head(column=column) for column in spec.metrics]
    [column] = spec.metrics
    return [Head(column=column, value=value) for value in _values(spec, spec.columns, found)]


def _number(spec: UserTable, column: MetricColumn, here: Sequence[Item], place: str) -> Shown:
    """The number of one place: a mean over the seeds of one trial or one timing."""
    _check_one(spec, here, place)
    # Cells that run the same network share its timing.
    once = {(item.seed, *sorted(item.same.items())): item for item in here}.values()
    scored = [item for item in once if item.value is not None]
    if not scored:
        why = max(once, key=lambda item: (item.done, item.changed_ms)).why if once else NOT_IN_STUDY
        return Shown(figure=Figure.missing(why))
    values = [column.scale * item.value for item in scored if item.value is not None]
    marks = list(dict.fromkeys(item.mark for item in scored if item.mark))
    seeds = {item.seed for item in scored}
    lost = {
        item.seed: f"seed {item.seed} ({item.why})"
        for item in sorted(once, key=lambda item: (item.seed or 0, item.changed_ms))
        if item.seed is not None and item.seed not in seeds
    }
    if lost:
        total = len(lost) + len(seeds)
        marks.append(f"without {len(lost)} of {total} seeds: {', '.join(lost.values())}")
    pairs = zip((item.seed for item in scored), values, strict=True)
    return Shown(
        figure=Figure.of(values, "; ".join(marks)),
        by_seed={seed: value for seed, value in pairs if seed is not None},
        median=median(values),
        low=min(values),
        high=max(values),
        settings={
            name: value
            for name, value in scored[0].same.items()
            if name == "lr" or name.startswith("recipe.")
        },
    )


def _check_one(spec: UserTable, here: Sequence[Item], place: str) -> None:
    """Refuse to average over anything but seeds; what failed or was skipped is averaged by none."""
    counted = [item for item in here if item.live]
    differing: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for item in counted for name in item.same):
        found = {item.same[name] for item in counted if name in item.same}
        if len(found) > 1:
            differing[name] = ordered(name, found, spec.where.get(name, ()))
    if not differing:
        return
    told = "; ".join(f"{name} ({', '.join(values)})" for name, values in differing.items())
    name, values = next(iter(differing.items()))
    recipes = all(name == "lr" or name.startswith("recipe.") for name in differing)
    way_out = " `trials: tables` takes only those of the report's own tables." if recipes else ""
    raise SpecError(
        f"{spec.source}: {place}: {len(counted)} {counted[0].kind} differ in more than the seed, "
        f"and a mean over them says nothing: {told}. Put {' and '.join(differing)} on rows or "
        f"columns, or choose: where: {{{name}: {values[0]}}}.{way_out}"
    )
