"""Baseline and best of a user's table: which numbers are compared, and what comes of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from statistics import fmean

from sharedenc.errors import SpecError, nearest
from sharedenc.report.changes import UNPAIRED, Figure
from sharedenc.report.statistics import paired
from sharedenc.report.user_tables.file import UserTable
from sharedenc.report.user_tables.filled import Head, Labels, Numbers, Shown


def compared_axis(spec: UserTable, labels: Sequence[Labels], heads: Sequence[Head]) -> str:
    """The axis along which there are a baseline and a best.

    That which the table names, else the baseline's, else the one across, else the innermost one.

    Raises:
        SpecError: the baseline is a value of no axis, or of several.
    """
    if not spec.baseline:
        return spec.compare or spec.columns or spec.rows[-1]
    values = {axis: {label[at] for label in labels} for at, axis in enumerate(spec.rows)}
    if spec.columns:
        values[spec.columns] = {head.value for head in heads}
    asked = (spec.compare,) if spec.compare else spec.axes
    having = [axis for axis in asked if spec.baseline in values[axis]]
    if len(having) == 1:
        return having[0]
    if having:
        raise SpecError(
            f"{spec.source}: baseline={spec.baseline!r} is a value of {' and '.join(having)}; "
            "say which is meant: compare"
        )
    known = sorted({value for axis in asked for value in values[axis]})
    raise SpecError(
        f"{spec.source}: baseline={spec.baseline!r} is no value of {' or '.join(asked)} in this "
        f"table; there are {', '.join(known)}.{nearest(spec.baseline, known)}"
    )


def with_changes(spec: UserTable, numbers: Numbers, heads: Sequence[Head], axis: str) -> Numbers:
    """Give every number its change against the baseline on ``axis``."""
    if not spec.baseline:
        return numbers
    found = {}
    for (labels, at), mine in numbers.items():
        if axis == spec.columns:
            base = (labels, [head.value for head in heads].index(spec.baseline))
        else:
            place = spec.rows.index(axis)
            base = ((*labels[:place], spec.baseline, *labels[place + 1 :]), at)
        change = None
        if base != (labels, at) and mine.figure.value is not None:
            change = _change(spec, mine, numbers.get(base))
        found[labels, at] = replace(mine, change=change)
    return found


def _change(spec: UserTable, mine: Shown, base: Shown | None) -> Figure:
    """The change of means over the seeds that both sides have, with its interval."""
    assert mine.figure.value is not None
    if base is None or base.figure.value is None:
        why = base.figure.why if base is not None else "not in this table"
        return Figure.missing(f"no {spec.baseline}: {why}")
    difference = paired(mine.by_seed, base.by_seed)
    shared = mine.by_seed.keys() & base.by_seed.keys()
    level = fmean(base.by_seed[seed] for seed in shared) if shared else base.figure.value
    if spec.change == "percent" and level == 0:
        return Figure.missing(f"{spec.baseline} is 0, which nothing is a percentage of")
    factor = 100 / abs(level) if spec.change == "percent" else 1.0
    if difference is not None:
        return Figure.comparison(difference.scaled(factor))
    # A timing has no seed: its change is one of two numbers.
    mark = UNPAIRED if mine.by_seed or base.by_seed else ""
    change = factor * (mine.figure.value - base.figure.value)
    return Figure(change, compared=True, mark=mark)


def with_best(spec: UserTable, numbers: Numbers, heads: Sequence[Head], axis: str) -> Numbers:
    """Mark the best of the numbers that differ along ``axis`` alone."""
    groups: dict[Hashable, list[tuple[Labels, int]]] = {}
    for labels, at in numbers:
        if axis == spec.columns:
            group: Hashable = labels
        else:
            place = spec.rows.index(axis)
            group = ((*labels[:place], *labels[place + 1 :]), at)
        if numbers[labels, at].figure.value is not None:
            groups.setdefault(group, []).append((labels, at))
    found = dict(numbers)
    for keys in groups.values():
        best = heads[keys[0][1]].column.best
        for key in _best({key: numbers[key] for key in keys}, best):
            found[key] = replace(numbers[key], bold=True)
    return found


def _best(numbers: Numbers, best: str) -> list[tuple[Labels, int]]:
    """The best of numbers that there are; none where it cannot be told apart from every other."""
    if best == "none" or len(numbers) < 2:
        return []
    values = {key: shown.figure.value or 0.0 for key, shown in numbers.items()}
    top = max(values.values()) if best.endswith("max") else min(values.values())
    leaders = [key for key, value in values.items() if value == top]
    if best.startswith("any"):
        return leaders
    mine = numbers[leaders[0]].by_seed
    for key, other in numbers.items():
        if key == leaders[0]:
            continue
        difference = paired(mine, other.by_seed)
        # On the seeds that both have, the leader must lead too.
        if difference is None or difference.apart is not True:
            return []
        if (difference.mean > 0) is not (best == "max"):
            return []
    return leaders[:1]
