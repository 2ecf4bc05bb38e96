"""Runs studies on a made-up landscape: one trial at a time, scores from a function of the rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from sharedenc.spec import Trial
from sweeps.graph import Facts, Resolver, expand, nothing
from sweeps.order import Machine
from sweeps.proposals import Proposal
from sweeps.state import Row, SweepState
from sweeps.study import Study

Known = Callable[[str, int], Proposal | None]
Score = Callable[[Trial, int], float]


FACTS = Facts(
    data_name="made-up",
    data_digest="d" * 64,
    tasks=("det", "seg"),
    images=(64, 16, 32),
    weights={"resnet18": "none", "densenet121": "none"},
    device_kind="cpu",
    torch_version="2.14",
)


def run(study: Study, facts: Facts, score: Score, known: Known = nothing) -> dict[str, Row]:
    """Rows of a study whose trials all run to their end, or to the rung that stops them."""
    nodes = expand(study, facts)
    resolver = Resolver(nodes, study, facts, known)
    state = SweepState(nodes, [Machine(cpus=1, memory=2**60)], resolve=resolver.trial)
    state.begin()
    while not state.finished:
        row = state.next()
        assert row is not None
        assert row.trial is not None
        best, end = -math.inf, {"state": "done"}
        for epoch in range(1, row.trial.recipe.epochs + 1):
            best = max(best, score(row.trial, epoch))
            if state.epoch(row.node.id, {"epoch": epoch, "score": score(row.trial, epoch)}):
                end = {"state": "stopped"}
                break
        state.end(row.node.id, {**end, "result": {"score": best}})
    return state.rows
