"""A kind of trials that fails its preflight is not trained; everything else is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sharedenc.selftest.rows import Checked
from sharedenc.training.job import TrialJob
from sweeps.facts import Facts
from sweeps.graph import Node, expand
from sweeps.inputs import Inputs, Places
from sweeps.preflight import Run, check_first
from sweeps.study import Study

STUDY = Study(kind="full-grid", backbones=("resnet18",), name="s")


def answering(**kinds: str) -> Run:
    """A preflight that finds a fault of the given kind in cells of the given graph."""

    def run(jobs: list[TrialJob], tell: Any, remember: Path) -> Sequence[Checked]:
        from sharedenc.selftest.preflight import chosen

        rows = []
        for job in chosen(jobs):
            kind: Any = kinds.get(job.trial.cell.graph)
            row = Checked(
                cell=job.trial.cell.name,
                ok=kind is None,
                kind=kind,
                reason="" if kind is None else "no kernel\nfor this device",
            )
            tell(row)
            rows.append(row)
        return rows

    return run


@pytest.fixture
def inputs(facts: Facts, tmp_path: Path) -> Inputs:
    data: Any = SimpleNamespace(root=tmp_path, digest=facts.data_digest)
    weights = {name: ("none", "none") for name in facts.weights}
    return Inputs(name="s", data=data, weights=weights, facts=facts)


def blocked(inputs: Inputs, run: Run, told: list[str], *done: str) -> dict[str, str | None]:
    nodes = expand(STUDY, inputs.facts)
    to_run = [node.id for node in nodes if node.id not in done]
    places = Places(tracking_uri="http://nowhere", runs_dir=Path("runs"))
    checked = check_first(nodes, to_run, STUDY, inputs, places, note=told.append, run=run)
    assert [node.id for node in checked] == [node.id for node in nodes]
    return {node.id: node.blocked for node in checked}


def test_a_bug_in_one_graph_blocks_its_cells_with_the_reason(inputs: Inputs) -> None:
    told: list[str] = []
    found = blocked(inputs, answering(dual="code"), told)
    assert {name for name, reason in found.items() if reason} == {"resnet18/dual"}
    assert found["resnet18/dual"] == "preflight of resnet18/dual failed (no kernel)"
    assert told[-1] == "preflight: 2 of 3 kinds of trials passed"


def test_every_cell_of_a_kind_is_blocked_together(inputs: Inputs) -> None:
    found = blocked(inputs, answering(det="oom"), [])
    assert {name for name, reason in found.items() if reason} == {
        "resnet18/baseline/det",
        "resnet18/swap-frozen/det",
        "resnet18/swap-bias/det",
        "resnet18/share-frozen/det",
        "resnet18/share-bias/det",
    }


def test_a_fault_of_the_machine_blocks_nothing(inputs: Inputs) -> None:
    told: list[str] = []
    assert not any(blocked(inputs, answering(seg="machine"), told).values())
    assert told[-1] == "preflight: 2 of 3 kinds of trials passed"


def test_what_is_done_already_is_not_checked(inputs: Inputs) -> None:
    told: list[str] = []
    blocked(inputs, answering(), told, "resnet18/dual")
    assert told == ["preflight: 2 of 2 kinds of trials passed"]


def test_trials_whose_rate_is_not_known_yet_are_checked_too(inputs: Inputs) -> None:
    study = replace(STUDY, lr_search="cell")
    nodes: list[Node] = expand(study, inputs.facts)
    seen: list[str] = []

    def run(jobs: list[TrialJob], tell: Any, remember: Path) -> Sequence[Checked]:
        seen.extend(job.trial.cell.name for job in jobs)
        return []

    places = Places(tracking_uri="http://nowhere", runs_dir=Path("runs"))
    check_first(
        nodes, [n.id for n in nodes], study, inputs, places, note=lambda text: None, run=run
    )
    assert "resnet18/swap-frozen/seg" in seen
    assert "resnet18/dual" in seen
