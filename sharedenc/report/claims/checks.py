"""Checks that a claim is made of: the same ones run on published numbers and on a study's own.

A check breaks a claim into parts, each a comparison whose margin is positive where it bears the
claim out. A part is borne out, refuted, or open: open without a number, where both sides are
equal, and where several seeds leave 0 inside the interval. With one seed its sign decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sharedenc.report.changes import Figure, Method
from sharedenc.report.claims.quantities import (
    Basis,
    Quantity,
    Sample,
    Unit,
    amount,
    between,
    change,
    difference,
    negative,
    number,
)
from sharedenc.report.published import published_backbones
from sharedenc.report.table_spec import Facts

# Below this, two numbers are the same but for their arithmetic.
_EQUAL = 1e-9
_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one set of numbers says about a claim.

    Attributes:
        holds: Whether the claim holds in these numbers; None where they cannot tell.
        text: What was found, with the numbers.
        clear: Whether it is more than the noise between seeds; False where nothing says so.
        details: Every comparison that it rests on, a line each.
    """

    holds: bool | None
    text: str
    clear: bool = False
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One comparison of a claim.

    Attributes:
        label: What is compared: ``resnet18 mIoU``.
        margin: By how much it bears the claim out; negative where it speaks against it.
        shown: The numbers, as a reader sees them.
        basis: What the numbers are of, which says what an interval could mean.
    """

    label: str
    margin: Figure
    shown: str
    basis: Basis = "scores"

    @property
    def holds(self) -> bool | None:
        """Whether it is borne out; None where it is open."""
        value = self.margin.value
        if value is None or abs(value) < _EQUAL or self.margin.apart is False:
            return None
        return value > 0

    @property
    def line(self) -> str:
        """Label and numbers, or why there are none."""
        if self.margin.value is None:
            return f"{self.label}: {self.margin.why}"
        return f"{self.label}: {self.shown}"


Check = Callable[[Facts], Observation]
Parts = Callable[[Facts], list[Part]]


def every(*sources: Parts) -> Check:
    """A claim that holds where all its parts do; one that is refuted is enough against it."""

    def check(facts: Facts) -> Observation:
        parts = [part for source in sources for part in source(facts)]
        return _all_of(parts, facts)

    return check


def some(source: Parts) -> Check:
    """A claim that holds where one of its parts does; against it all must be refuted."""

    def check(facts: Facts) -> Observation:
        parts = source(facts)
        if not parts:
            return _nothing(facts)
        best = max(parts, key=lambda part: (part.holds is True, _value(part)))
        open_ones = [part for part in parts if part.holds is None]
        details = tuple(part.line for part in parts)
        notes = _notes(parts, facts)
        if best.holds:
            return Observation(
                holds=True, text=best.line + notes, clear=best.margin.apart is True, details=details
            )
        if open_ones:
            text = f"cannot tell: {_listed(open_ones)}"
            return Observation(holds=None, text=text + notes, details=details)
        return Observation(
            holds=False,
            text=f"at most {best.line}{notes}",
            clear=all(part.margin.apart for part in parts),
            details=details,
        )

    return check


def winner(name: str, quantity: Quantity, backbone: str, unit: Unit, *, largest: bool) -> Check:
    """A claim that a backbone has the largest (or smallest) of a quantity.

    It is compared with every other published backbone that the study has, paired by seed. One
    that the study does not have cannot speak against the claim, and the text names it.
    """

    def check(facts: Facts) -> Observation:
        parts = leads({name: quantity}, backbone, unit, largest=largest)(facts)
        found = _all_of(parts, facts)
        values = {
            other: sample.value
            for other in _mine(facts)
            if (sample := quantity(facts, other)).value is not None
        }
        if found.holds is None or len(values) < 2:
            return found
        order = sorted(values, key=lambda other: values[other] or 0.0, reverse=largest)
        listed = ", ".join(f"{other} {number(values[other] or 0.0, unit)}" for other in order)
        text = f"{name}, {'highest' if largest else 'lowest'} first: {listed}"
        rival = order[0] if order[0] != backbone else order[1]
        for part in parts:
            if part.label.endswith(f" against {rival}"):
                gap = part.margin if found.holds else negative(part.margin)
                where = "ahead of" if found.holds else "behind"
                text += f"; {backbone} is {where} {rival} by {amount(gap, between(unit))}"
        return replace(found, text=text + _notes(parts, facts))

    return check


def leads(
    quantities: Mapping[str, Quantity], backbone: str, unit: Unit, *, largest: bool = True
) -> Parts:
    """A part for every quantity and every other backbone: ``backbone`` is ahead of it."""

    def parts(facts: Facts) -> list[Part]:
        found = []
        for name, quantity in quantities.items():
            own = quantity(facts, backbone)
            for other in _mine(facts):
                if other == backbone:
                    continue
                theirs = quantity(facts, other)
                label = f"{name}, {backbone} against {other}"
                found.append(_against(label, own, theirs, unit, sign=1 if largest else -1))
        return found

    return parts


def ahead(quantities: Mapping[str, Quantity], first: str, second: str, unit: Unit) -> Parts:
    """A part for every quantity: one backbone has more of it than another."""

    def parts(facts: Facts) -> list[Part]:
        return [
            _against(
                f"{name}, {first} against {second}",
                quantity(facts, first),
                quantity(facts, second),
                unit,
            )
            for name, quantity in quantities.items()
        ]

    return parts


def more(label: str, first: Quantity, second: Quantity, unit: Unit) -> Parts:
    """A part for every backbone of the study: one of its quantities is more than another."""

    def parts(facts: Facts) -> list[Part]:
        return [
            _against(f"{backbone} {label}", first(facts, backbone), second(facts, backbone), unit)
            for backbone in facts.scores.backbones
        ]

    return parts


def changes(methods: Sequence[Method], metrics: Sequence[str], *, up: bool) -> Parts:
    """A part for every backbone, method and metric: the change against its baseline."""

    def parts(facts: Facts) -> list[Part]:
        found = []
        for backbone in facts.scores.backbones:
            for method in methods:
                for metric in metrics:
                    change = facts.scores.change(backbone, method, metric)
                    label = f"{backbone} {metric}"
                    if len(methods) > 1:
                        label = f"{backbone} {method.name} {metric}"
                    margin = change if up else negative(change)
                    found.append(Part(label, margin, amount(change, "percent")))
        return found

    return parts


def recoveries(
    strategy: str, metrics: Sequence[str], *, up: bool = True, only: str = "", but: str = ""
) -> Parts:
    """A part for every backbone and metric: what trained biases give back, in points."""

    def parts(facts: Facts) -> list[Part]:
        chosen = [only] if only else [name for name in facts.scores.backbones if name != but]
        found = []
        for backbone in chosen:
            for metric in metrics:
                points = facts.scores.recovery(backbone, strategy, metric)
                margin = points if up else negative(points)
                found.append(Part(f"{backbone} {metric}", margin, amount(points, "points")))
        return found

    return parts


def at_least(name: str, quantity: Quantity, bound: float, unit: Unit) -> Parts:
    """A part for every backbone: a quantity reaches a bound."""
    return within(name, quantity, bound, float("inf"), unit)


def within(name: str, quantity: Quantity, low: float, high: float, unit: Unit) -> Parts:
    """A part for every backbone: ``low <= quantity < high``."""

    def parts(facts: Facts) -> list[Part]:
        found = []
        for backbone in facts.scores.backbones:
            sample = quantity(facts, backbone)
            label = f"{backbone} {name}"
            if sample.value is None:
                found.append(Part(label, Figure.missing(sample.why), ""))
                continue
            zero = Sample(0.0, dict.fromkeys(sample.by_seed, 0.0))
            shown = amount(difference(sample, zero), unit)
            if sample.value - low <= high - sample.value:
                margin = difference(sample, _constant(low, sample))
            else:
                margin = difference(_constant(high, sample), sample)
            found.append(Part(label, margin, shown, sample.basis))
        return found

    return parts


def narrower(metric: str, wide: Method, narrow: Method) -> Parts:
    """One part: the changes of the backbones lie closer together with one method than another."""

    def parts(facts: Facts) -> list[Part]:
        label = f"{metric}, most less least change over the backbones, {narrow.name}"
        names = facts.scores.backbones
        if len(names) < 2:
            return []
        spreads = []
        for method in (wide, narrow):
            samples = {name: change(method, metric)(facts, name) for name in names}
            missing = [f"{name} {s.why}" for name, s in samples.items() if s.value is None]
            if missing:
                return [Part(label, Figure.missing("; ".join(missing)), "")]
            values = [sample.value or 0.0 for sample in samples.values()]
            common = set.intersection(*(set(sample.by_seed) for sample in samples.values()))
            by_seed = {
                seed: _range([sample.by_seed[seed] for sample in samples.values()])
                for seed in sorted(common)
            }
            spreads.append(Sample(_range(values), by_seed))
        margin = difference(spreads[0], spreads[1])
        shown = (
            f"{spreads[1].value:.2f} points, {wide.name} {spreads[0].value:.2f} points "
            f"({amount(margin, 'points')} narrower)"
        )
        return [Part(label, margin, shown)]

    return parts


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _against(label: str, own: Sample, theirs: Sample, unit: Unit, sign: int = 1) -> Part:
    margin = difference(own, theirs)
    if margin.value is None or own.value is None or theirs.value is None:
        return Part(label, margin, "")
    shown = (
        f"{number(own.value, unit)} against {number(theirs.value, unit)} "
        f"({amount(margin, between(unit))})"
    )
    return Part(label, margin if sign > 0 else negative(margin), shown, own.basis)


def _constant(value: float, like: Sample) -> Sample:
    """A bound, which is the same for every seed."""
    return Sample(value, dict.fromkeys(like.by_seed, value))


def _mine(facts: Facts) -> list[str]:
    """The published backbones that the study has."""
    return [name for name in published_backbones() if name in facts.scores.backbones]


def _value(part: Part) -> float:
    return float("-inf") if part.margin.value is None else part.margin.value


def _nothing(facts: Facts) -> Observation:
    names = ", ".join(facts.scores.backbones)
    return Observation(
        holds=None, text=f"cannot tell: nothing to compare in this study ({names or 'no backbone'})"
    )


def _all_of(parts: Sequence[Part], facts: Facts) -> Observation:
    if not parts:
        return _nothing(facts)
    borne = [part for part in parts if part.holds]
    refuted = [part for part in parts if part.holds is False]
    open_ones = [part for part in parts if part.holds is None]
    details = tuple(part.line for part in parts)
    tally = f"{len(borne)} of {len(parts)} hold"
    notes = _notes(parts, facts)
    if refuted:
        worst = sorted(refuted, key=_value)
        text = f"not for {_listed(worst)}" + (f"; {tally}" if len(parts) > 1 else "")
        clear = any(part.margin.apart for part in refuted)
        return Observation(holds=False, text=text + notes, clear=clear, details=details)
    if open_ones:
        missing = [part for part in open_ones if part.margin.value is None]
        equal = [part for part in open_ones if part.margin.value is not None and _same(part)]
        noise = [part for part in open_ones if part not in missing and part not in equal]
        reasons = []
        if missing:
            reasons.append(f"no number for {_listed(missing)}")
        if noise:
            reasons.append(f"within the noise between seeds: {_listed(noise)}")
        if equal:
            reasons.append(f"equal: {_listed(equal)}")
        reasons.append(tally)
        text = f"cannot tell: {'; '.join(reasons)}"
        return Observation(holds=None, text=text + notes, details=details)
    clear = all(part.margin.apart for part in parts)
    # Margins of different kinds have no order.
    if len(parts) <= _NAMED or len({part.basis for part in parts}) > 1:
        text = "; ".join(details)
    else:
        order = sorted(parts, key=_value)
        text = f"all {len(parts)}; closest: {order[0].line}; widest: {order[-1].line}"
    return Observation(holds=True, text=text + notes, clear=clear, details=details)


def _same(part: Part) -> bool:
    return part.margin.apart is None or part.margin.low == part.margin.high


def _listed(parts: Sequence[Part]) -> str:
    text = ", ".join(part.line for part in parts[:_NAMED])
    rest = len(parts) - _NAMED
    return f"{text} and {rest} more" if rest > 0 else text


def _notes(parts: Sequence[Part], facts: Facts) -> str:
    """What limits the comparison: seeds, and backbones that are not in the study."""
    notes = []
    found = [part for part in parts if part.margin.value is not None]
    runs = sorted({part.margin.runs for part in found if part.margin.runs > 1})
    if runs:
        notes.append(f"{runs[0]} seeds" if len(runs) == 1 else f"{runs[0]} to {runs[-1]} seeds")
    alone = [part for part in found if part.basis == "scores" and part.margin.low is None]
    if any(part.margin.runs == 1 for part in alone):
        notes.append("one seed: no interval" if not runs else "some of one seed: no interval")
    if any(part.margin.runs == 0 for part in alone):
        notes.append("no seed in common: means compared, no interval")
    if any(part.basis == "timings" for part in found):
        notes.append("medians: no interval")
    absent = [name for name in published_backbones() if name not in facts.scores.backbones]
    if absent:
        notes.append(f"this study has no {', '.join(absent)}")
    return f" ({'; '.join(notes)})" if notes else ""
