"""Parts of claims about latency: medians of one setup and precision, never mixed with others'."""

from __future__ import annotations

from jetson_agent.protocol import COMPARISON
from sharedenc.report.changes import Figure, Method
from sharedenc.report.claims.checks import Part, Parts
from sharedenc.report.claims.quantities import amount
from sharedenc.report.collect import TimingRow
from sharedenc.report.published import published_backbones
from sharedenc.report.table_spec import Facts
from sharedenc.report.timing_tables import GRAPHS, timed_figure

_P50 = "latency_ms/p50"
NOT_TIMED = "not timed"


def sharing_is_faster(facts: Facts) -> list[Part]:
    """A part for every backbone, setup and precision: dual against seg and det in turn.

    Where a board timed all three in one run, that run counts.
    """
    parts = []
    for backbone in facts.scores.backbones:
        places = _places(facts, backbone, ("seg", "det", "dual"), (COMPARISON,))
        for setup, precision in places:
            label = f"{backbone} {precision}{_where(facts, setup)}"
            parts.append(_shared(facts, backbone, setup, precision, label))
        if not places:
            parts.append(_untimed(backbone, "seg, det and dual"))
    return parts


def int8_is_faster(facts: Facts) -> list[Part]:
    """A part for every backbone, graph, setup and INT8 precision: against FP32 in that setup."""
    parts = []
    for backbone in facts.scores.backbones:
        found = []
        for row in facts.rows.timings:
            if row.backbone != backbone or row.graph not in GRAPHS:
                continue
            base = facts.timing(backbone, row.graph, row.setup, "fp32")
            if row.precision.startswith("int8") and base is not None:
                label = f"{backbone} {row.graph} {row.precision}{_where(facts, row.setup)}"
                found.append(_less(label, timed_figure(row, _P50), timed_figure(base, _P50)))
        parts += found or [_untimed(backbone, "a graph in FP32 and INT8")]
    return parts


def latency_leads(backbone: str, *, largest: bool) -> Parts:
    """A part for every other published backbone, setup and precision, of the dual network."""

    def parts(facts: Facts) -> list[Part]:
        found = []
        for other in published_backbones():
            if other != backbone and other in facts.scores.backbones:
                found += _dual_against(
                    facts, *((other, backbone) if largest else (backbone, other))
                )
        return found

    return parts


def smaller_but_slower(backbone: str, than: str) -> Parts:
    """Fewer parameters and yet a longer latency of the dual network, in every setup."""

    def parts(facts: Facts) -> list[Part]:
        own, theirs = (
            facts.scores.parameters(name, Method("dual"), "") for name in (backbone, than)
        )
        label = f"parameters, {backbone} against {than}"
        if own.value is None or theirs.value is None:
            sizes = Part(label, Figure.missing(own.why or theirs.why), "", "counts")
        else:
            shown = f"{own.value:.2f} million against {theirs.value:.2f} million"
            margin = Figure(theirs.value - own.value, compared=True)
            sizes = Part(label, margin, shown, "counts")
        return [sizes, *_dual_against(facts, than, backbone)]

    return parts


def _dual_against(facts: Facts, quick: str, slow: str) -> list[Part]:
    """``quick`` takes less time than ``slow``, in every setup and precision of both."""
    both = [_places(facts, name, ("dual",)) for name in (quick, slow)]
    places = [place for place in both[0] if place in both[1]]
    if not places:
        missing = slow if both[0] else quick
        return [_untimed(missing, "dual")]
    found = []
    for setup, precision in places:
        figures = []
        for name in (quick, slow):
            row = facts.timing(name, "dual", setup, precision)
            figures.append(Figure.missing(NOT_TIMED) if row is None else timed_figure(row, _P50))
        label = f"{precision}{_where(facts, setup)}, {quick} against {slow}"
        found.append(_less(label, *figures))
    return found


def _shared(facts: Facts, backbone: str, setup: str, precision: str, label: str) -> Part:
    together = facts.timing(backbone, COMPARISON, setup, precision)
    if together is not None:
        ratio = timed_figure(together, "ratio/p50")
        if ratio.value is not None:
            points = 100.0 * (ratio.value - 1.0)
            shown = f"{points:+.1f} % in one run{_doubt(ratio)}"
            return Part(label, Figure(-points, compared=True), shown, "timings")
    rows = [facts.timing(backbone, graph, setup, precision) for graph in ("seg", "det", "dual")]
    seg, det, dual = (_median(row) for row in rows)
    if seg.value is None or det.value is None or dual.value is None:
        why = seg.why or det.why or dual.why
        return Part(label, Figure.missing(why), "", "timings")
    pair = Figure(seg.value + det.value, mark=seg.mark or det.mark)
    return _less(label, dual, pair)


def _median(row: TimingRow | None) -> Figure:
    return Figure.missing(NOT_TIMED) if row is None else timed_figure(row, _P50)


def _less(label: str, quick: Figure, slow: Figure) -> Part:
    if quick.value is None or slow.value is None:
        return Part(label, Figure.missing(quick.why or slow.why), "", "timings")
    if slow.value <= 0:
        return Part(label, Figure.missing(f"a latency of {slow.value:g} ms"), "", "timings")
    change = Figure(100.0 * (quick.value / slow.value - 1.0), compared=True)
    margin = Figure(-(change.value or 0.0), compared=True)
    shown = (
        f"{quick.value:.3f} ms against {slow.value:.3f} ms ({amount(change, 'percent')})"
        f"{_doubt(quick, slow)}"
    )
    return Part(label, margin, shown, "timings")


def _doubt(*figures: Figure) -> str:
    marks = dict.fromkeys(figure.mark.split(":")[0] for figure in figures if figure.mark)
    return f" [{', '.join(marks)}]" if marks else ""


def _places(
    facts: Facts, backbone: str, graphs: tuple[str, ...], alone: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """Setups and precisions in which a backbone has all of some graphs, or one that is enough."""
    timed: dict[tuple[str, str], set[str]] = {}
    for row in facts.rows.timings:
        if row.backbone == backbone:
            timed.setdefault((row.setup, row.precision), set()).add(row.graph)
    return [place for place, found in timed.items() if found >= set(graphs) or found & set(alone)]


def _where(facts: Facts, setup: str) -> str:
    """The setup, where the study has several."""
    several = len({row.setup for row in facts.rows.timings}) > 1
    return f" on {setup}" if several else ""


def _untimed(backbone: str, what: str) -> Part:
    return Part(f"{backbone} {what}", Figure.missing(NOT_TIMED), "", "timings")
