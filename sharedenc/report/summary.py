"""What a reader wants first: how far the study is, what is best, and what sharing buys."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sharedenc.report.changes import HEADLINE, METHODS, Figure, Method, Scores
from sharedenc.report.tables import Facts

DUAL = Method("dual")


@dataclass(frozen=True)
class Best:
    """The highest mIoU and mAP of a backbone, and the methods that reached them."""

    backbone: str
    mIoU: Figure
    mIoU_method: str
    mAP: Figure
    mAP_method: str


@dataclass(frozen=True)
class DualChange:
    """One dual network against two baselines of its backbone, all in percent.

    ``mean`` is the mean of both tasks' changes. ``latency`` compares with both baselines run one
    after the other, in ``setup`` at ``precision``.
    """

    backbone: str
    mIoU: Figure
    mAP: Figure
    mean: Figure
    parameters: Figure
    latency: Figure
    timed: str


@dataclass(frozen=True)
class Deployment:
    """A way to serve both tasks: its scores, the time of one picture, how sure that is."""

    backbone: str
    name: str
    passes: int
    latency_ms: float
    mIoU: float
    mAP: float
    suspect: bool


@dataclass(frozen=True)
class Summary:
    """The top of the page."""

    cells: dict[str, int]
    best: tuple[Best, ...]
    dual: tuple[DualChange, ...]
    timed: str
    deployments: tuple[Deployment, ...]


def summarise(facts: Facts) -> Summary:
    """Compute the top of the page from the study's own runs and timings."""
    setup, precision = _shown_timing(facts)
    names = facts.scores.backbones
    counts = Counter(state.state for state in facts.scores.states())
    return Summary(
        cells=dict(counts.most_common()),
        best=tuple(_best(facts.scores, name) for name in names),
        dual=tuple(_dual(facts, name, setup, precision) for name in names),
        timed=f"{setup}, {precision}" if setup else "",
        deployments=tuple(
            found for name in names for found in _deployments(facts, name, setup, precision)
        ),
    )


def _best(scores: Scores, backbone: str) -> Best:
    parts: list[tuple[Figure, str]] = []
    for metric in HEADLINE.values():
        figures = [(scores.score(backbone, method, metric), method) for method in scores.methods]
        found = [(figure, method) for figure, method in figures if figure.value is not None]
        if found:
            figure, method = max(found, key=lambda pair: pair[0].value or 0.0)
            parts.append((figure, method.name))
        else:
            parts.append((figures[0][0], ""))
    (miou, miou_method), (ap, ap_method) = parts
    return Best(backbone, miou, miou_method, ap, ap_method)


def _dual(facts: Facts, backbone: str, setup: str, precision: str) -> DualChange:
    scores = facts.scores
    miou = scores.change(backbone, DUAL, "mIoU")
    ap = scores.change(backbone, DUAL, "mAP")
    mean = Figure.missing(miou.why or ap.why)
    if miou.value is not None and ap.value is not None:
        mean = Figure.of([(miou.value + ap.value) / 2])
    counts = [
        scores.parameters(backbone, METHODS[0], "seg"),
        scores.parameters(backbone, METHODS[0], "det"),
        scores.parameters(backbone, DUAL, ""),
    ]
    times = [_latency(facts, backbone, graph, setup, precision) for graph in ("seg", "det", "dual")]
    return DualChange(
        backbone,
        miou,
        ap,
        mean,
        _against_sum(*counts),
        _against_sum(*times),
        f"{setup}, {precision}",
    )


def _against_sum(first: Figure, second: Figure, one: Figure) -> Figure:
    """Percent by which one network differs from the sum of two."""
    if first.value is None or second.value is None or one.value is None:
        return Figure.missing(first.why or second.why or one.why)
    marks = "; ".join(dict.fromkeys(f.mark for f in (first, second, one) if f.mark))
    return Figure.of([100 * (one.value / (first.value + second.value) - 1)], mark=marks)


def _latency(facts: Facts, backbone: str, graph: str, setup: str, precision: str) -> Figure:
    row = facts.timing(backbone, graph, setup, precision)
    if row is None or row.verdict not in ("valid", "suspect"):
        return Figure.missing("not timed" if row is None else f"{row.verdict}: {row.reason}")
    if "latency_ms/p50" not in row.metrics:
        return Figure.missing("the timing has no median latency")
    mark = "" if row.verdict == "valid" else f"suspect: {row.reason}"
    return Figure.of([row.metrics["latency_ms/p50"]], mark=mark)


def _shown_timing(facts: Facts) -> tuple[str, str]:
    """The setup and precision that most graphs were timed in; the full precision where even."""
    counts = Counter(
        (row.setup, row.precision)
        for row in facts.rows.timings
        if row.verdict in ("valid", "suspect")
    )
    if not counts:
        return "", ""
    return max(counts, key=lambda place: (counts[place], place[1] == "fp32", place))


def _deployments(facts: Facts, backbone: str, setup: str, precision: str) -> list[Deployment]:
    """The deployments whose scores and times are both known.

    A frozen encoder with two heads has the dual network's architecture, so its time is dual's;
    heads with an encoder's biases of their own need the encoder twice.
    """
    time = {
        graph: _latency(facts, backbone, graph, setup, precision)
        for graph in ("seg", "det", "dual")
    }
    ways: list[tuple[str, Method, tuple[str, ...]]] = [
        ("two baselines", METHODS[0], ("seg", "det")),
        ("dual", DUAL, ("dual",)),
        ("share-frozen, two heads", Method("share", "frozen"), ("dual",)),
        ("share-bias pair", Method("share", "bias"), ("seg", "det")),
    ]
    found = []
    for name, method, graphs in ways:
        miou = facts.scores.score(backbone, method, "mIoU").value
        ap = facts.scores.score(backbone, method, "mAP").value
        taken = [ms for ms in (time[graph].value for graph in graphs) if ms is not None]
        if len(taken) == len(graphs) and miou is not None and ap is not None:
            suspect = any(time[graph].mark for graph in graphs)
            found.append(Deployment(backbone, name, len(graphs), sum(taken), miou, ap, suspect))
    return found
