"""What a reader wants first: how far the study is, what is best, and what sharing buys."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from jetson_agent.protocol import COMPARISON
from sharedenc.report.changes import HEADLINE, METHODS, Figure, Leader, Method, Scores, against_sum
from sharedenc.report.collect import TimingRow
from sharedenc.report.deployments import Option, options
from sharedenc.report.statistics import of_differences
from sharedenc.report.table_spec import Facts
from sharedenc.report.timing_tables import PUBLISHED_LOAD, timed_figure

DUAL = Method("dual")


@dataclass(frozen=True)
class Best:
    """The highest mIoU and mAP of a backbone, and the methods that reached them.

    The notes say from which other methods they cannot be told apart, or that nothing says so.
    """

    backbone: str
    mIoU: Figure
    mIoU_method: str
    mIoU_note: str
    mAP: Figure
    mAP_method: str
    mAP_note: str


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
class Summary:
    """The top of the page.

    ``deployments`` are those of which the scores and, in the setup that ``timed`` names, the median
    latency are known.
    """

    cells: dict[str, int]
    best: tuple[Best, ...]
    dual: tuple[DualChange, ...]
    timed: str
    deployments: tuple[Option, ...]


def summarise(facts: Facts) -> Summary:
    """Compute the top of the page from the study's own runs and timings."""
    shown = _shown_timing(facts)
    setup, precision = (shown.setup, shown.precision) if shown else ("", "")
    names = facts.scores.backbones
    counts = Counter(state.state for state in facts.scores.states())
    return Summary(
        cells=dict(counts.most_common()),
        best=tuple(_best(facts.scores, name) for name in names),
        dual=tuple(_dual(facts, name, setup, precision) for name in names),
        timed=f"{setup}, {precision}" if setup else "",
        deployments=tuple(_deployments(facts, shown) if shown else ()),
    )


def _best(scores: Scores, backbone: str) -> Best:
    parts: list[tuple[Figure, str, str]] = []
    for metric in HEADLINE.values():
        leader = scores.leader(backbone, metric)
        if leader is None:
            parts.append((scores.score(backbone, METHODS[0], metric), "", ""))
        else:
            parts.append((leader.score, leader.method.name, _note(leader)))
    return Best(backbone, *parts[0], *parts[1])


def _note(leader: Leader) -> str:
    """What a reader must know before calling the highest the best."""
    parts = []
    if leader.ties:
        names = ", ".join(method.name for method in leader.ties)
        parts.append(f"not told apart from {names}")
    if leader.untested and leader.score.runs < 2:
        parts.append("one seed: not tested against the others")
    elif leader.untested:
        names = ", ".join(method.name for method in leader.untested)
        parts.append(f"too few seeds in common with {names}")
    return "; ".join(parts)


def _dual(facts: Facts, backbone: str, setup: str, precision: str) -> DualChange:
    scores = facts.scores
    miou = scores.change(backbone, DUAL, "mIoU")
    ap = scores.change(backbone, DUAL, "mAP")
    mean = Figure.missing(miou.why or ap.why)
    if miou.value is not None and ap.value is not None:
        both = [scores.changes_by_seed(backbone, DUAL, metric) for metric in HEADLINE.values()]
        seeds = sorted(both[0].keys() & both[1].keys())
        mean = Figure((miou.value + ap.value) / 2, compared=True, mark=miou.mark or ap.mark)
        if seeds:
            halves = [(both[0][seed] + both[1][seed]) / 2 for seed in seeds]
            mean = Figure.comparison(of_differences(halves))
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
        against_sum(*counts),
        against_sum(*times),
        f"{setup}, {precision}",
    )


def _latency(facts: Facts, backbone: str, graph: str, setup: str, precision: str) -> Figure:
    row = facts.timing(backbone, graph, setup, precision)
    return Figure.missing("not timed") if row is None else timed_figure(row, "latency_ms/p50")


def _shown_timing(facts: Facts) -> TimingRow | None:
    """One of the timings in the setup and precision that most graphs were timed in.

    Where even: of the tables' first family, in full precision, of the load that was published.
    """
    rows = [row for row in facts.rows.timings if row.has_figure and row.graph != COMPARISON]
    if not rows:
        return None
    counts = Counter((row.setup, row.precision) for row in rows)
    families = facts.families

    def place(row: TimingRow) -> tuple[int, int, bool, bool, str, str]:
        return (
            counts[row.setup, row.precision],
            -families.index(row.family),
            row.precision == "fp32",
            row.load == PUBLISHED_LOAD,
            row.setup,
            row.precision,
        )

    return max(rows, key=place)


def _deployments(facts: Facts, shown: TimingRow) -> list[Option]:
    found = options(
        facts,
        precision=shown.precision,
        device=shown.device,
        mode=shown.mode,
        stat=f"p50-{shown.load}",
    )
    return [
        option
        for option in found
        if option.board == shown.board
        and None not in (option.latency.value, option.mIoU.value, option.mAP.value)
    ]
