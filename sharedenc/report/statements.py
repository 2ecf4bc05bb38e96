"""What the published text says of its numbers, computed again from the published tables.

A statement names quantities (numbers by backbone) and what holds of them. It is doubted only where
rounding of the printed numbers cannot explain the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sharedenc.report.interval import Interval, change, mean
from sharedenc.report.published import Published

_CUT_OFF = "cut off after the last digit, not rounded"


@dataclass(frozen=True)
class Series:
    """A quantity: what it is, its numbers by backbone (or extra layers), and their decimals."""

    name: str
    values: Mapping[str, Interval]
    decimals: int = 2

    def text(self, key: str) -> str:
        """One of its numbers with whose it is."""
        return f"{self.values[key].value:.{self.decimals}f} ({key})"


def check(numbers: Published, claim: Mapping[str, Any]) -> str:
    """What computing a claim again gives where it does not hold, empty where it does.

    Args:
        claim: ``kind`` (one of `_KINDS`), ``of`` (quantities, each with ``what``: one of
            `_QUANTITIES`) and, by kind, ``at`` (a backbone), ``printed`` (numbers as they are
            printed), ``step`` (what they are rounded to) and ``than`` (a bound).
    """
    series = [_QUANTITIES[of["what"]](numbers, of) for of in claim["of"]]
    found = _KINDS[claim["kind"]](series, claim)
    return "; ".join(dict.fromkeys(text for text in found if text))


def _score(numbers: Published, of: Mapping[str, Any]) -> Series:
    return _of_overview(numbers, of["metric"], of["method"])


def _of_overview(numbers: Published, metric: str, method: str) -> Series:
    table = numbers.tables["A.1"]
    values = {
        backbone: found
        for backbone, name in table.cells
        if name == method
        if (found := table.interval((backbone, name), metric)) is not None
    }
    return Series(f"{metric} of {method}", values, 4)


def _change(numbers: Published, of: Mapping[str, Any]) -> Series:
    """Change against the backbone's baseline in percent."""
    mine = _of_overview(numbers, of["metric"], of["method"]).values
    base = _of_overview(numbers, of["metric"], "baseline").values
    values = {name: change(mine[name], base[name]) for name in mine if name in base}
    return Series(f"change of {of['metric']} by {of['method']} in %", values)


def _recovery(numbers: Published, of: Mapping[str, Any]) -> Series:
    """What trained biases give over a frozen encoder, in percentage points of the baseline."""
    metric, strategy = of["metric"], of["strategy"]
    bias, frozen, base = (
        _of_overview(numbers, metric, method).values
        for method in (f"{strategy}-bias", f"{strategy}-frozen", "baseline")
    )
    values = {name: (bias[name] - frozen[name]).over(base[name]).scaled(100.0) for name in base}
    return Series(f"recovered {metric} of {strategy} in percentage points", values)


def _parameters(numbers: Published, of: Mapping[str, Any]) -> Series:
    return Series(
        f"million parameters of {' and '.join(of['graphs'])}", _counted(numbers, *of["graphs"])
    )


def _counted(numbers: Published, *graphs: str) -> dict[str, Interval]:
    table, found = numbers.tables["5.1"], {}
    for labels in table.cells:
        parts = [part for graph in graphs if (part := table.interval(labels, graph)) is not None]
        if len(parts) == len(graphs):
            found[labels[0]] = mean(parts).scaled(len(parts))
    return found


def _saved(numbers: Published, of: Mapping[str, Any]) -> Series:
    """What one dual network saves of the parameters of two, in percent."""
    both, dual = _counted(numbers, "det", "seg"), _counted(numbers, "dual")
    return Series("saved parameters in %", {name: _less(dual[name], both[name]) for name in dual})


def _less(one: Interval, both: Interval) -> Interval:
    return (both - one).over(both).scaled(100.0)


def _latency(numbers: Published, of: Mapping[str, Any]) -> Series:
    graph, precision = of["graph"], of["precision"]
    return Series(f"ms of {graph} in {precision}", _timed(numbers, graph, precision), 3)


def _timed(numbers: Published, graph: str, precision: str) -> dict[str, Interval]:
    table = numbers.tables["A.2"]
    return {
        labels[0]: found
        for labels in table.cells
        if labels[1] == precision
        if (found := table.interval(labels, f"{graph}_latency")) is not None
    }


def _saved_time(numbers: Published, of: Mapping[str, Any]) -> Series:
    """What a dual network saves of the time of both single ones, in percent."""
    seg, det, dual = (_timed(numbers, graph, of["precision"]) for graph in ("seg", "det", "dual"))
    values = {name: _less(dual[name], seg[name] + det[name]) for name in dual}
    return Series(f"saved time in {of['precision']} in %", values)


def _reduction(numbers: Published, of: Mapping[str, Any]) -> Series:
    """What a training of Table 4.2 loses against the normal one, in percent, by extra layers."""
    table, values = numbers.tables["4.2"], {}
    for layers, training in table.cells:
        mine = table.interval((layers, training), "accuracy")
        base = table.interval((layers, "Normal"), "accuracy")
        if training == of["training"] and mine is not None and base is not None:
            values[layers] = _less(mine, base)
    return Series(f"reduction of {of['training']} in % by extra layers", values)


_QUANTITIES: dict[str, Callable[[Published, Mapping[str, Any]], Series]] = {
    "score": _score,
    "change": _change,
    "recovery": _recovery,
    "parameters": _parameters,
    "saved": _saved,
    "latency": _latency,
    "saved time": _saved_time,
    "reduction": _reduction,
}


def _differs(printed: str, found: Interval, step: float | None = None) -> str:
    """Why a printed number is not a computed one; empty where rounding explains it."""
    half = (step or 10.0 ** -len(printed.partition(".")[2])) / 2
    value = float(printed)
    if found.meets(value - half, value + half):
        return ""
    further = (value, value + 2 * half) if value >= 0 else (value - 2 * half, value)
    return _CUT_OFF if found.meets(*further) else "not that"


def _pooled(series: Sequence[Series]) -> list[tuple[Interval, str]]:
    """All numbers of several quantities in order, each with its text."""
    found = [(each.values[key], each.text(key)) for each in series for key in each.values]
    return sorted(found, key=lambda pair: pair[0].value)


def _range(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    pooled = _pooled(series)
    found = []
    for printed, (interval, text) in zip(claim["printed"], (pooled[0], pooled[-1]), strict=True):
        why = _differs(printed, interval, claim.get("step"))
        found.append(f"{text} for {printed}: {why}" if why else "")
    return found


def _most(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    interval, text = _pooled(series)[-1]
    (printed,) = claim["printed"]
    why = _differs(printed, interval, claim.get("step"))
    return [f"{text} for {printed}: {why}" if why else ""]


def _mean(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    middle = mean([interval for interval, _ in _pooled(series)])
    (printed,) = claim["printed"]
    why = _differs(printed, middle, claim.get("step"))
    return [f"the mean is {middle.value:.2f} for {printed}: {why}" if why else ""]


def _highest(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    return [text for each in series for text in _extreme(each, claim, highest=True)]


def _lowest(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    return [text for each in series for text in _extreme(each, claim, highest=False)]


def _extreme(series: Series, claim: Mapping[str, Any], *, highest: bool) -> list[str]:
    at, values = claim["at"], series.values
    beyond = [name for name in values if name != at and _is_beyond(values, name, at, highest)]
    found = []
    if beyond:
        pick = max if highest else min
        best = pick(beyond, key=lambda name: values[name].value)
        found.append(f"{series.name}: {series.text(best)}, and {series.text(at)}")
    for printed in claim.get("printed", ()):
        why = _differs(printed, values[at], claim.get("step"))
        found.append(f"{series.text(at)} for {printed}: {why}" if why else "")
    return found


def _is_beyond(values: Mapping[str, Interval], name: str, at: str, highest: bool) -> bool:
    """Whether a number is beyond another one, however both were rounded."""
    if highest:
        return values[name].low > values[at].high
    return values[name].high < values[at].low


def _not_highest(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    at = claim["at"]
    return [
        f"{each.name}: {each.text(at)} is the highest"
        for each in series
        if all(_is_beyond(each.values, at, name, True) for name in each.values if name != at)
    ]


def _above(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    return [
        f"{each.name}: {each.text(name)}"
        for each in series
        for name in each.values
        if claim.get("at", name) == name and each.values[name].high < claim["than"]
    ]


def _below(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    return [
        f"{each.name}: {each.text(name)}"
        for each in series
        for name in each.values
        if claim.get("at", name) == name and each.values[name].low > claim["than"]
    ]


def _greater(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    first, second = series
    return [
        f"{first.name} is {first.text(name)}, and {second.name} {second.text(name)}"
        for name in first.values
        if second.values[name].low > first.values[name].high
    ]


def _rises(series: Sequence[Series], claim: Mapping[str, Any]) -> list[str]:
    found = []
    for each in series:
        if any(later.high < earlier.low for earlier, later in pairwise(each.values.values())):
            texts = ", ".join(each.text(key) for key in each.values)
            found.append(f"{each.name}: {texts}")
    return found


_KINDS: dict[str, Callable[[Sequence[Series], Mapping[str, Any]], list[str]]] = {
    "range": _range,
    "most": _most,
    "mean": _mean,
    "highest": _highest,
    "lowest": _lowest,
    "not highest": _not_highest,
    "above": _above,
    "below": _below,
    "greater": _greater,
    "rises": _rises,
}
