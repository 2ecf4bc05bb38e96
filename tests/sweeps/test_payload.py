"""What a worker is given: what is forgotten, what is kept, where a parent lies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.graph import Facts, expand
from sweeps.inputs import Inputs, Places
from sweeps.order import Demand
from sweeps.payload import Payloads
from sweeps.state import Row
from sweeps.study import Study

CELL = "resnet18/share-frozen/seg"


@pytest.fixture
def searched(facts: Facts) -> dict[str, Row]:
    """A search of two rates and the trial that takes the better one, which has just started."""
    rates = (1e-4, 1e-3)
    study = Study(
        kind="full-grid", only=(CELL,), lr_search="cell", lr={}, search_lrs=rates, weights="none"
    )
    rows = {node.id: Row(node=node, trial=node.trial) for node in expand(study, facts)}
    for name, state in ((f"{CELL} lr=1e-3", "done"), (f"{CELL} lr=1e-4", "stopped")):
        rows[name].state = state  # type: ignore[assignment]
    won = rows[f"{CELL} lr=1e-3"].trial
    rows[CELL].trial, rows[CELL].state, rows[CELL].attempts = won, "running", 1
    return rows


def made(
    rows: dict[str, Row],
    name: str,
    facts: Facts,
    *,
    demand: Demand | None = None,
    **options: Any,
) -> dict[str, Any]:
    data: Any = SimpleNamespace(root=Path("/pack"), digest="d" * 64)
    inputs = Inputs(name="s", data=data, weights={"resnet18": ("none", "none")}, facts=facts)
    options = {"rerun": frozenset(), "workers": 0, **options}
    payloads = Payloads(
        study=Study(kind="full-grid"),
        inputs=inputs,
        places=Places(tracking_uri="http://nowhere", runs_dir=Path("/runs")),
        checkpoint_every="10m",
        **options,
    )
    return payloads.make(rows, rows[name], demand or rows[name].node.demand)


def test_what_is_asked_for_again_forgets_earlier_attempts_once(
    searched: dict[str, Row], facts: Facts
) -> None:
    row = searched[f"{CELL} lr=1e-3"]
    row.attempts = 1
    assert not made(searched, row.node.id, facts)["fresh"]
    assert made(searched, row.node.id, facts, reuse=False)["fresh"]
    assert made(searched, row.node.id, facts, rerun=frozenset({row.node.id}))["fresh"]
    row.attempts = 2
    assert not made(searched, row.node.id, facts, reuse=False)["fresh"]
    row.attempts, row.preemptions = 1, 1
    assert not made(searched, row.node.id, facts, reuse=False)["fresh"]


def test_the_winner_of_a_search_that_was_asked_for_again_is_not_trained_twice(
    searched: dict[str, Row], facts: Facts
) -> None:
    assert not made(searched, CELL, facts, reuse=False)["fresh"]
    # One that was cut, or is of an earlier invocation, is not what was asked for.
    searched[f"{CELL} lr=1e-3"].reused = "study"
    assert made(searched, CELL, facts, reuse=False)["fresh"]


def test_only_final_trials_keep_artifacts(searched: dict[str, Row], facts: Facts) -> None:
    kept = {name: made(searched, name, facts)["keep"] for name in searched}
    assert {name for name, keep in kept.items() if keep} == {CELL}


def test_loaders_are_limited_by_what_a_trial_was_given_and_taps_by_their_budget(
    searched: dict[str, Row], facts: Facts
) -> None:
    given = made(searched, CELL, facts, workers=None, taps_budget_bytes=7)
    assert (given["workers"], given["taps_budget_bytes"]) == (0, 7)
    on_gpu = Demand(cpus=6, gpus=1)
    assert made(searched, CELL, facts, workers=None, demand=on_gpu)["workers"] == 5
    assert made(searched, CELL, facts, workers=2, demand=on_gpu)["workers"] == 2
