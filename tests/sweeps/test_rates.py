"""What a search has found, and what its trials tell the proposals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from sweeps.graph import Facts, Node
from sweeps.proposals import Proposal, Told
from sweeps.rates import choose, common_rates, find_winners, told
from sweeps.state import Row
from tests.sweeps.conftest import MakeNodes

BETTER = "cut at epoch 2: 1 of 2 trials had a better score: 0.9 against 0.1"


class Rows:
    """Search trials of two baselines with rates and ends that are given."""

    def __init__(self, nodes: list[Node], facts: Facts) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._facts = facts

    def __call__(self, task: str, number: int, lr: float, score: float, **more: Any) -> Row:
        node = self._nodes[f"resnet18/baseline/{task} lr#{number}"]
        trial = self._facts.trial(node.cell, node.recipe, lr, node.seed)
        values = {"state": "done", "score": score, "epoch": 2, **more}
        return Row(node=node, trial=trial, **values)


@pytest.fixture
def row(make_nodes: MakeNodes, facts: Facts) -> Rows:
    nodes = make_nodes(backbones=("resnet18",), lr_search="backbone", search_trials=4)
    return Rows(nodes, facts)


def test_one_cells_rate_is_that_of_its_best_trial_and_of_equal_ones_the_lower(row: Rows) -> None:
    rows = [row("seg", 0, 1e-3, 0.4), row("seg", 1, 2e-3, 0.5), row("seg", 2, 1e-4, 0.5)]
    assert choose(rows) == Proposal(1e-4, "plateau")
    (winner,) = find_winners(rows)
    assert (winner.cell, winner.lr, winner.score) == ("resnet18/baseline/seg", 1e-4, 0.5)


def test_one_rate_serves_both_tasks_where_the_mean_of_score_over_best_is_largest(row: Rows) -> None:
    rows = [
        *(row("det", 0, 1e-3, 0.20), row("seg", 0, 1e-3, 0.30)),  # 1.00 and 0.50
        *(row("det", 1, 2e-3, 0.16), row("seg", 1, 2e-3, 0.54)),  # 0.80 and 0.90
        *(row("det", 2, 4e-3, 0.10), row("seg", 2, 4e-3, 0.60)),  # 0.50 and 1.00
    ]
    assert choose(rows) == Proposal(2e-3)
    assert common_rates(rows) == {"resnet18": 2e-3}
    assert [w.lr for w in find_winners(rows)] == [1e-3, 4e-3]


def test_failed_and_interrupted_trials_do_not_win_and_cut_ones_may(row: Rows) -> None:
    rows = [
        row("seg", 0, 1e-3, 0.9, state="failed"),
        row("seg", 1, 2e-3, 0.8, state="stopped", reason="stopped by Ctrl-C"),
        row("seg", 2, 3e-3, 0.1, state="stopped", reason=BETTER),
        row("seg", 3, 4e-3, math.nan),
    ]
    assert choose(rows) == Proposal(3e-3)
    (winner,) = find_winners(rows)
    assert (winner.trials, winner.stopped) == (4, 1)
    assert choose([rows[0], rows[1], rows[3]]) is None
    assert find_winners([rows[0]]) == []


def test_a_rate_that_failed_for_one_task_serves_none_and_a_task_without_scores_has_no_say(
    row: Rows,
) -> None:
    det = [row("det", 0, 1e-3, 0.2), row("det", 1, 2e-3, 0.4, state="failed")]
    seg = [row("seg", 0, 1e-3, 0.1), row("seg", 1, 2e-3, 0.4)]
    assert choose(det + seg) == Proposal(1e-3)
    assert choose([*seg, row("det", 0, 1e-3, 0.2, state="skipped")]) == Proposal(2e-3)


def test_scores_of_nought_are_equal(row: Rows) -> None:
    assert choose([row("det", 0, 2e-3, 0.0), row("det", 1, 1e-3, 0.0)]) == Proposal(1e-3)


def test_a_better_schedule_wins_with_its_rate(make_nodes: MakeNodes, row: Rows) -> None:
    rows = [row("seg", 0, 1e-3, 0.4), row("seg", 1, 2e-3, 0.6)]
    cosine = replace(rows[1].node, recipe=replace(rows[1].node.recipe, scheduler="cosine"))
    rows[1] = replace(rows[1], node=cosine)
    assert choose(rows) == Proposal(2e-3, "cosine")


def test_ranks_of_a_dual_count_and_not_its_scores(make_nodes: MakeNodes, facts: Facts) -> None:
    nodes = make_nodes(only=("resnet18/dual",), lr_search="cell", search_trials=2)
    search = [node for node in nodes if node.search is not None]
    rows = [
        Row(
            node=node,
            trial=facts.trial(node.cell, node.recipe, lr, 0),
            state="done",
            score=score,
            history=[(1, rank - 1), (2, rank), (3, math.nan)],
        )
        for node, lr, score, rank in zip(search, (1e-3, 2e-3), (0.5, 0.4), (-3.0, 2.0), strict=True)
    ]
    assert choose(rows) == Proposal(2e-3)
    assert find_winners(rows)[0].score == 2.0


def test_ended_trials_are_told_by_number_with_the_cut_ones_and_running_ones_without_a_value(
    row: Rows,
) -> None:
    rows = [
        row("det", 3, 9e-3, math.nan, state="failed", traceback="... NonFiniteLossError: loss"),
        row("det", 2, 4e-3, 0.3, state="running"),
        row("det", 1, 2e-3, 0.1, state="stopped", reason=BETTER, history=[(1, 0.1), (2, 0.05)]),
        row("det", 0, 1e-3, 0.4),
    ]
    assert told(rows) == [
        Told(lr=1e-3, value=1.0),
        Told(lr=2e-3, value=0.25, cut_at=2),
        Told(lr=4e-3),
        Told(lr=9e-3, value=0.25),  # it diverged
    ]
    assert told([row("det", 0, 1e-3, 0.4, state="failed", kind="machine")]) == []


def test_a_rate_is_told_by_the_tasks_that_have_ended_with_it(row: Rows) -> None:
    first = [row("det", 0, 1e-3, 0.2), row("seg", 0, 1e-3, 0.3)]
    second = [row("det", 1, 2e-3, 0.4), row("seg", 1, 2e-3, math.nan, state="running")]
    assert [item.value for item in told(first + second)] == [0.75, 1.0]
    second[1] = row("seg", 1, 2e-3, 0.15)
    assert [item.value for item in told(first + second)] == [0.75, 0.75]
