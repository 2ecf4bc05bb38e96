"""How sure a recommendation is, from what was measured and what was not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sharedenc.report.boards import IN_ONE_RUN
from sharedenc.report.collect import TimingRow
from sharedenc.report.deployments import UNSCORED, Option
from sharedenc.report.statistics import paired

Level = Literal["high", "medium", "low"]
# As far as builds of one network may lie apart in a timing that is called valid.
_APART = 0.05
BySeed = Callable[[Option], dict[int, float]]


@dataclass(frozen=True)
class Confidence:
    """``level`` is high without a doubt, medium with one, low with several or a grave one.

    ``reasons`` has the doubts first, then what speaks for the answer.
    """

    level: Level
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Reason:
    """``doubt``: 0 speaks for the answer or is neutral, 1 against it, 2 gravely."""

    doubt: int
    text: str


def how_sure(
    choice: Option,
    runner_up: Option | None,
    rows: Sequence[TimingRow],
    limit_ms: float | None,
    least: dict[str, float],
    by_seed: BySeed,
    aim: str,
) -> Confidence:
    """Judge a choice.

    Args:
        rows: The timings that its latency rests on.
        limit_ms: The latency that it had to keep, None without a limit.
        least: The scores that it had to reach, by metric.
        by_seed: What was to be high, by seed.
        aim: What that is, in words.
    """
    reasons = [
        *_seeds(choice, runner_up, by_seed, aim),
        *_scores(choice, least),
        *_timing(choice, rows),
        *_margin(choice, rows, limit_ms),
    ]
    doubts = sum(reason.doubt for reason in reasons)
    level: Level = "high" if doubts == 0 else "medium" if doubts == 1 else "low"
    ordered = sorted(reasons, key=lambda reason: -reason.doubt)
    return Confidence(level, tuple(reason.text for reason in ordered))


def _seeds(
    choice: Option, runner_up: Option | None, by_seed: BySeed, aim: str
) -> Iterator[_Reason]:
    mine = by_seed(choice)
    if runner_up is None:
        yield _Reason(0, "nothing else fits, so there is no runner-up to compare with")
        if len(mine) < 2:
            yield _Reason(1, "one seed: how much the scores vary with it is not known")
        return
    name = runner_up.deployment.name
    found = paired(mine, by_seed(runner_up))
    if found is None or found.low is None or found.high is None:
        seeds = "no seed in common" if found is None else "one seed"
        yield _Reason(1, f"{seeds}: not tested whether it is better than {name}")
        return
    told = (
        f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}] in {aim}, paired over "
        f"{found.pairs} seeds"
    )
    if found.apart and found.mean > 0:
        yield _Reason(0, f"better than {name}: {told}")
    elif found.apart:
        yield _Reason(1, f"worse than {name} on the seeds that both have: {told}")
    else:
        yield _Reason(1, f"not told apart from {name}: {told}")


def _scores(choice: Option, least: dict[str, float]) -> Iterator[_Reason]:
    figures = {"mIoU": choice.mIoU, "mAP": choice.mAP}
    marks: dict[str, list[str]] = {}
    for metric, figure in figures.items():
        if figure.mark:
            marks.setdefault(figure.mark, []).append(metric)
        bound = least.get(metric)
        value, sd = figure.value, figure.sd
        if bound is not None and value is not None and sd is not None and value - sd < bound:
            yield _Reason(
                1,
                f"{metric} {value:.4f} is less than its standard deviation over seeds ({sd:.4f}) "
                f"above the limit of {bound:g}",
            )
    for mark, metrics in marks.items():
        yield _Reason(2 if mark.startswith(UNSCORED) else 1, f"{' and '.join(metrics)}: {mark}")
    drops = {"mIoU": choice.drop_mIoU.value, "mAP": choice.drop_mAP.value}
    told = [f"{metric} by {drop:+.2f} %" for metric, drop in drops.items() if drop is not None]
    if told:
        yield _Reason(0, f"INT8 changes {' and '.join(told)}, scored on the files that are timed")


def _timing(choice: Option, rows: Sequence[TimingRow]) -> Iterator[_Reason]:
    marks = [mark for mark in choice.latency.mark.split("; ") if mark and mark != IN_ONE_RUN]
    if marks:
        yield _Reason(1, f"the timing is {'; '.join(marks)}")
    if len(rows) > 1:
        statistic = choice.stat.partition("-")[0]
        yield _Reason(0, f"the two networks were timed apart; their {statistic} are added")


def _margin(choice: Option, rows: Sequence[TimingRow], limit_ms: float | None) -> Iterator[_Reason]:
    value = choice.latency.value
    if limit_ms is None or value is None:
        return
    margin = limit_ms - value
    told = f"{margin:.3g} ms below the limit"
    share = run_spread(rows)
    if share is None and margin < _APART * value:
        yield _Reason(
            1,
            f"only {told}; how far runs lie apart is not known, and {_APART:.0%} counts as valid",
        )
        return
    if share is None:
        yield _Reason(0, f"{told}; how far runs lie apart is not known")
        return
    apart = share * value
    if margin < apart:
        yield _Reason(1, f"only {told}, and runs lie {apart:.3g} ms apart")
    else:
        yield _Reason(0, f"{told}; runs lie {apart:.3g} ms apart")


def run_spread(rows: Sequence[TimingRow]) -> float | None:
    """How far medians of runs and of builds lie apart, as a share of their middle.

    None where it is not known of every timing.
    """
    found = [
        max(row.metrics.get(f"spread_{which}", -1.0) for which in ("within", "between"))
        for row in rows
    ]
    return max(found) if found and min(found) >= 0 else None
