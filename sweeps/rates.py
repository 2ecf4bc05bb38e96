"""The learning rate that a search has found, and what its trials tell the proposals.

A trial counts when it ended by itself or was cut; failed and unfinished ones do not. What is
compared is its best rank (what brackets compare): the validation score, or for a dual cell the
change to the baselines (methods 6.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.brackets import CUT
from sweeps.proposals import Proposal, Told

if TYPE_CHECKING:
    from sweeps.state import Row


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best learning rate of one bracket; ``stopped`` counts the trials that were cut."""

    cell: str
    lr: float
    score: float
    trials: int
    stopped: int
    scheduler: str = "plateau"
    group: str = ""


def rank(row: Row) -> float:
    """The best rank of a search trial; NaN before the first one."""
    ranks = [value for _, value in row.history if math.isfinite(value)]
    if row.node.cell.strategy != "dual" and math.isfinite(row.score):
        ranks.append(row.score)  # also epochs that another invocation trained
    return max(ranks, default=row.score)


def counts(row: Row) -> bool:
    """Whether a search trial has an end that can be compared."""
    ended = row.state == "done" or was_cut(row)
    return ended and row.trial is not None and math.isfinite(rank(row))


def was_cut(row: Row) -> bool:
    """Whether its bracket stopped it, as opposed to Ctrl-C."""
    return row.state == "stopped" and row.reason.startswith(CUT)


def diverged(row: Row) -> bool:
    """Whether it failed because of its rate, which says something of that rate."""
    return row.state == "failed" and "NonFiniteLossError" in row.traceback


def choose(rows: Sequence[Row]) -> Proposal | None:
    """The rate (and schedule) that serves all cells of a search; None without any score.

    It is the best mean, over the cells, of score / best score of that cell; of equal ones the
    lower rate. Of a search of one cell that is its best trial. A cell without any score (it may
    have no labels, or have failed) has no say; a rate that failed in one of the others loses.

    Args:
        rows: All search trials that a final trial waits for.
    """
    shares = _shares(rows)
    if not shares:
        return None
    return max(shares, key=lambda proposal: (shares[proposal], -proposal.lr))


def _shares(rows: Sequence[Row]) -> dict[Proposal, float]:
    cells: dict[str, dict[Proposal, float]] = {}
    for row in rows:
        if counts(row):
            assert row.trial is not None
            proposal = Proposal(row.trial.lr, row.node.recipe.scheduler)
            cells.setdefault(row.node.cell.name, {})[proposal] = rank(row)
    if not cells:
        return {}
    everywhere = set.intersection(*(set(scores) for scores in cells.values()))
    best = {cell: max(scores.values()) for cell, scores in cells.items()}
    return {
        proposal: sum(_share(cells[cell][proposal], best[cell]) for cell in cells) / len(cells)
        for proposal in everywhere
    }


def _share(score: float, best: float) -> float:
    """Score / best score; where that says nothing (the best is not above 0) their difference."""
    return score / best if best > 0 else 1.0 + score - best


def told(rows: Sequence[Row]) -> list[Told]:
    """What a search's trials say of their rates, by number.

    A rate's value is its mean share of the best score over the cells that have ended with it. A
    rate with which training diverged is as bad as the worst one; other failures say nothing.

    Args:
        rows: The trials of one search (one schedule), whichever of its cells they train.
    """
    best: dict[str, float] = {}
    numbers: dict[int, list[Row]] = {}
    for row in rows:
        if row.trial is not None and row.node.number is not None:
            numbers.setdefault(row.node.number, []).append(row)
        if counts(row):
            cell = row.node.cell.name
            best[cell] = max(best.get(cell, -math.inf), rank(row))
    shares = {
        row.node.id: _share(rank(row), best[row.node.cell.name]) for row in rows if counts(row)
    }
    answers = []
    for _, group in sorted(numbers.items()):
        lr = _lr(group[0])
        ended = [row for row in group if counts(row)]
        if any(diverged(row) for row in group):
            answers.append(Told(lr=lr, value=min(shares.values(), default=0.0)))
        elif ended:
            value = sum(shares[row.node.id] for row in ended) / len(ended)
            cuts = [_epoch(row) for row in ended if was_cut(row)]
            answers.append(Told(lr=lr, value=value, cut_at=min(cuts, default=None)))
        elif any(row.state in ("waiting", "running") for row in group):
            answers.append(Told(lr=lr))
    return answers


def _epoch(row: Row) -> int:
    return max((epoch for epoch, _ in row.history), default=row.epoch)


def find_winners(rows: Sequence[Row]) -> list[Winner]:
    """The best rate of each bracket; of equal scores the lower rate."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.node.group is not None:
            groups.setdefault(row.node.group, []).append(row)
    winners = []
    for name, group in groups.items():
        scored = [row for row in group if counts(row)]
        if not scored:
            continue
        best = max(scored, key=lambda row: (rank(row), -_lr(row)))
        winners.append(
            Winner(
                cell=best.node.cell.name,
                lr=_lr(best),
                score=rank(best),
                trials=len(group),
                stopped=sum(was_cut(row) for row in group),
                scheduler=best.node.recipe.scheduler,
                group=name,
            )
        )
    return winners


def _lr(row: Row) -> float:
    assert row.trial is not None
    return row.trial.lr


def common_rates(rows: Sequence[Row]) -> dict[str, float]:
    """The rate of each backbone whose baselines were searched together (or its only one was)."""
    searches: dict[str, list[Row]] = {}
    for row in rows:
        if row.node.group is not None and row.node.cell.strategy == "baseline":
            searches.setdefault(row.node.cell.backbone, []).append(row)
    chosen = {backbone: choose(group) for backbone, group in searches.items()}
    return {backbone: found.lr for backbone, found in chosen.items() if found is not None}
