"""What is to be said below a user's table: how to read it, and why numbers are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sharedenc.report.user_tables.file import UserTable
from sharedenc.report.user_tables.filled import Head, Numbers, called, head_text
from sharedenc.report.user_tables.items import ordered


def notes(spec: UserTable, heads: Sequence[Head], numbers: Numbers, axis: str) -> list[str]:
    """All notes of a table whose numbers are compared along ``axis``."""
    return [
        *_about_metrics(spec, heads),
        *_about_seeds(heads, numbers),
        *_about_settings(spec, numbers),
        *_about_changes(spec, numbers),
        *_about_best(spec, heads, numbers, axis),
        *_reasons(spec, heads, numbers),
    ]


def _about_metrics(spec: UserTable, heads: Sequence[Head]) -> Iterator[str]:
    if spec.columns:
        yield f"Metric: {spec.metrics[0].metric}."
    for column in dict.fromkeys(head.column.name for head in heads):
        head = next(head for head in heads if head.column.name == column)
        if head.column.scale != 1:
            yield f"{head.column.metric} is multiplied by {head.column.scale:g}."


def _about_seeds(heads: Sequence[Head], numbers: Numbers) -> Iterator[str]:
    shown = [(heads[at].column.show, number) for (_, at), number in numbers.items()]
    several = [(show, number) for show, number in shown if number.figure.runs > 1]
    counts = {number.figure.runs for _, number in shown if number.by_seed}
    if several:
        most = max(counts)
        whole = (
            f"{most} seeds" if len(counts) == 1 else f"{most} seeds where no other number is told"
        )
        yield f"A number is of {whole}, of trials that differ in nothing else."
    elif counts:
        yield "A number is of one seed: what is chance in it is not known."
    kinds = {show for show, _ in several}
    if "mean ± sd" in kinds:
        yield "± is the standard deviation over seeds."
    if "median" in kinds:
        yield "The median over seeds is shown."
    if "min..max" in kinds:
        yield "The lowest and the highest value over seeds are shown."
    if "n" in {show for show, _ in shown}:
        yield "The number of seeds is shown."


def _about_settings(spec: UserTable, numbers: Numbers) -> Iterator[str]:
    """Settings that differ between numbers, and that no axis shows."""
    found: dict[str, set[str]] = {}
    for number in numbers.values():
        for name, value in number.settings.items():
            found.setdefault(name, set()).add(value)
    for name, values in found.items():
        if len(values) > 1 and name not in spec.axes:
            listed = ", ".join(ordered(name, values, ()))
            yield f"Not all numbers are of one {name}: {listed}."


def _about_changes(spec: UserTable, numbers: Numbers) -> Iterator[str]:
    changes = [n.change for n in numbers.values() if n.change and n.change.value is not None]
    if not changes:
        return
    name = called(spec, spec.baseline)
    how = f"in percent of {name}" if spec.change == "percent" else "in the number's own unit"
    yield f"In brackets: the change of the mean against {name}, {how}."
    if any(change.low is not None for change in changes):
        yield (
            "≈: the 95 % t interval of the change, paired by seed, contains 0, so that the two "
            "cannot be told apart."
        )
    if any(change.runs == 1 for change in changes):
        yield "A change from one seed has no interval: whether it is more than chance is not known."


def _about_best(
    spec: UserTable, heads: Sequence[Head], numbers: Numbers, axis: str
) -> Iterator[str]:
    asked = {head.column.best for head in heads} - {"none"}
    bold = {heads[at].column.best for (_, at), number in numbers.items() if number.bold}
    along = called(spec, axis)
    for best in sorted(asked):
        which = "highest" if best.endswith("max") else "lowest"
        if best.startswith("any"):
            yield (
                f"Bold: the {which} mean along {along}, whether or not it is more than the noise "
                "between seeds."
            )
        elif best in bold:
            yield (
                f"Bold: the {which} mean along {along}, told apart from every other at 95 % each "
                "(paired by seed, not corrected for the number of comparisons)."
            )
        else:
            yield f"No {which} mean along {along} can be told apart from every other: none is bold."


def _reasons(spec: UserTable, heads: Sequence[Head], numbers: Numbers) -> Iterator[str]:
    """Why numbers are missing or doubtful, each reason once."""
    places: dict[str, list[str]] = {}
    for (labels, at), number in numbers.items():
        place = " / ".join((*(called(spec, v) for v in labels), head_text(spec, heads[at])))
        change = number.change
        texts = [number.figure.told]
        if change is not None and change.told:
            texts.append(f"change: {change.told}")
        for text in filter(None, texts):
            places.setdefault(text, []).append(place)
    for text, where in places.items():
        yield f"{', '.join(where)}: {text}"
