"""Studies expanded into trials."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sharedenc.spec import Recipe
from sweeps.graph import Facts, expand, short_rate
from sweeps.studies import Study
from tests.sweeps.conftest import MakeNodes


def test_the_full_grid_is_44_trials_of_which_16_wait_for_a_baseline(make_nodes: MakeNodes) -> None:
    nodes = {node.id: node for node in make_nodes()}
    assert len(nodes) == len({node.trial.key for node in nodes.values()}) == 44
    needing = {name: node for name, node in nodes.items() if node.needs}
    assert len(needing) == 16
    for node in needing.values():
        (source,) = node.needs
        assert nodes[source].cell == node.cell.source
        assert node.trial.parent_key == nodes[source].trial.key


def test_seeds_are_paired_with_their_own_baselines(make_nodes: MakeNodes) -> None:
    nodes = {n.id: n for n in make_nodes(seeds=(0, 7), only=("resnet18/swap-frozen/det",))}
    assert nodes["resnet18/swap-frozen/det seed=7"].needs == ("resnet18/baseline/seg seed=7",)
    assert len(nodes) == 4


def test_search_trials_come_likely_rates_first(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(only=("resnet18/dual",), search_cell="resnet18/dual", search_epochs=4)
    search = [node for node in nodes if node.stage == "lr-search"]
    assert [node.id for node in search] == [
        "resnet18/dual lr=2e-4",  # the published rate
        "resnet18/dual lr=1e-4",
        "resnet18/dual lr=4e-4",
        "resnet18/dual lr=8e-4",
    ]
    assert {node.group for node in search} == {"resnet18/dual"}
    assert all(node.trial.recipe.epochs == 4 for node in search)
    assert search[0].ladder is not None
    assert search[0].ladder.rungs == (1, 2)


def test_boxes_without_masks_block_seg_and_dual(facts: Facts) -> None:
    study = Study(kind="full-grid", backbones=("resnet18",), recipe=Recipe(epochs=1))
    nodes = expand(study, replace(facts, tasks=("det",)))
    blocked = {node.id for node in nodes if node.blocked}
    assert blocked == {node.id for node in nodes if "seg" in node.cell.tasks}
    assert "data set 'made-up' has no masks, which seg needs" in {node.blocked for node in nodes}


@pytest.mark.parametrize(
    ("rate", "text"), [(2e-4, "2e-4"), (1.6e-3, "1.6e-3"), (1.0, "1e0"), (0.0125, "1.25e-2")]
)
def test_rates_are_written_short(rate: float, text: str) -> None:
    assert short_rate(rate) == text
    assert float(text) == rate
