"""Studies expanded into trials."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedenc.spec import Recipe
from sweeps.graph import Facts, Node, expand, short_rate
from sweeps.order import upward_ranks
from sweeps.studies import Study
from tests.sweeps.conftest import MakeNodes
from tests.sweeps.searching import FACTS, run


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
    rates = (1e-4, 2e-4, 4e-4, 8e-4)
    nodes = make_nodes(
        only=("resnet18/dual",), search_cell="resnet18/dual", search_epochs=4, search_lrs=rates
    )
    search = [node for node in nodes if node.stage == "lr-search"]
    assert [node.id for node in search] == [
        "resnet18/dual lr=2e-4",  # the published rate
        "resnet18/dual lr=1e-4",
        "resnet18/dual lr=4e-4",
        "resnet18/dual lr=8e-4",
    ]
    assert {node.group for node in search} == {"resnet18/dual"}
    assert all(node.trial and node.trial.recipe.epochs == 4 for node in search)
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


def by_id(nodes: list[Node]) -> dict[str, Node]:
    return {node.id: node for node in nodes}


def test_a_backbones_baselines_share_their_search_and_all_its_cells_wait_for_it(
    make_nodes: MakeNodes,
) -> None:
    nodes = make_nodes(backbones=("resnet18", "densenet121"), lr_search="backbone", search_trials=3)
    search = [node for node in nodes if node.stage == "lr-search"]
    assert [node.id for node in search[:6]] == [
        f"resnet18/baseline/{task} lr#{i}" for i in range(3) for task in ("det", "seg")
    ]
    assert len(search) == 12
    assert len({node.search for node in search}) == 2
    assert len({node.group for node in search}) == 4
    for node in nodes:
        if node.stage == "lr-search":
            assert (node.trial, node.needs, node.after) == (None, (), ())
            continue
        own = {s.id for s in search if s.cell.backbone == node.cell.backbone}
        assert (node.trial, set(node.after)) == (None, own)
    swap = by_id(nodes)["resnet18/swap-bias/seg"]
    assert swap.needs == ("resnet18/baseline/det",)


def test_a_swaps_search_needs_its_source_and_a_duals_comes_after_the_baselines(
    make_nodes: MakeNodes,
) -> None:
    nodes = by_id(make_nodes(backbones=("resnet18",), lr_search="cell", search_trials=2))
    assert len(nodes) == 11 + 11 * 2
    assert nodes["resnet18/swap-frozen/det lr#1"].needs == ("resnet18/baseline/seg",)
    assert nodes["resnet18/dual lr#0"].after == ("resnet18/baseline/det", "resnet18/baseline/seg")
    assert nodes["resnet18/dual lr#0"].needs == ()
    assert nodes["resnet18/dual"].after == ("resnet18/dual lr#0", "resnet18/dual lr#1")
    assert nodes["resnet18/share-bias/det"].after == tuple(
        f"resnet18/share-bias/det lr#{i}" for i in range(2)
    )


def test_seeds_after_the_first_are_a_stage_that_waits_for_the_search_alone(
    make_nodes: MakeNodes,
) -> None:
    nodes = by_id(
        make_nodes(only=("resnet18/baseline/seg",), lr_search="cell", search_trials=2, seeds=(4, 9))
    )
    first, other = nodes["resnet18/baseline/seg"], nodes["resnet18/baseline/seg seed=9"]
    assert (first.stage, first.seed) == ("baseline", 4)
    assert (other.stage, other.seed, other.needs) == ("seeds", 9, ())
    assert other.after == first.after == tuple(f"resnet18/baseline/seg lr#{i}" for i in range(2))
    assert {node.seed for node in nodes.values() if node.stage == "lr-search"} == {4}


def test_a_cosine_has_its_own_bracket_a_fixed_budget_and_no_early_stopping(
    make_nodes: MakeNodes,
) -> None:
    nodes = make_nodes(
        only=("resnet18/baseline/seg",),
        lr_search="cell",
        search_trials=2,
        search_schedulers=("plateau", "cosine"),
        recipe=Recipe(),
    )
    plateau, cosine = [[n for n in nodes if n.search and ("cosine" in n.id) == c] for c in (0, 1)]
    assert [node.id for node in cosine] == [
        "resnet18/baseline/seg cosine lr#0",
        "resnet18/baseline/seg cosine lr#1",
    ]
    assert {n.group for n in plateau}.isdisjoint({n.group for n in cosine})
    assert {n.search for n in plateau}.isdisjoint({n.search for n in cosine})
    assert {n.recipe for n in plateau} == {Recipe()}
    (recipe,) = {node.recipe for node in cosine}
    assert (recipe.scheduler, recipe.epochs, recipe.early_stop_patience) == ("cosine", 120, 0)
    assert cosine[0].ladder is not None
    assert cosine[0].ladder.rungs == (60,)
    short = make_nodes(
        only=("resnet18/baseline/seg",),
        lr_search="cell",
        search_schedulers=("cosine",),
        search_epochs=30,
        recipe=Recipe(),
    )
    assert {node.recipe.epochs for node in short if node.search} == {30}


def test_an_axis_gives_trials_only_to_cells_that_use_it(make_nodes: MakeNodes) -> None:
    nodes = by_id(make_nodes(backbones=("resnet18",), axes={"alpha": (1.0, 3.0, 10.0)}))
    assert len(nodes) == 10 + 3
    duals = [nodes[f"resnet18/dual alpha={alpha}"] for alpha in (1, 3, 10)]
    assert [node.recipe.alpha for node in duals] == [1.0, 3.0, 10.0]
    searched = by_id(
        make_nodes(
            only=("resnet18/*/seg", "resnet18/baseline/det"),
            axes={"batch_size": (4, 8), "nms_iou": (0.5, 0.6)},
        )
    )
    swap = searched["resnet18/swap-bias/seg batch_size=8 nms_iou=0.6"]
    assert swap.needs == ("resnet18/baseline/det batch_size=8 nms_iou=0.6",)
    assert "resnet18/baseline/seg batch_size=8" in searched


def test_each_combination_of_the_axes_has_its_own_search_and_bracket(
    make_nodes: MakeNodes,
) -> None:
    nodes = make_nodes(
        only=("resnet18/dual",), lr_search="cell", search_trials=2, axes={"alpha": (1.0, 3.0)}
    )
    search = [node for node in nodes if node.search]
    assert {node.group for node in search} == {f"resnet18/dual alpha={alpha}" for alpha in (1, 3)}
    assert len({node.search for node in search}) == 2
    final = by_id(nodes)["resnet18/dual alpha=3"]
    assert final.after == tuple(f"resnet18/dual alpha=3 lr#{i}" for i in range(2))


def test_the_same_search_has_the_same_digest_in_another_study(make_nodes: MakeNodes) -> None:
    common = {"lr_search": "cell", "search_trials": 2, "backbones": ("resnet18",)}
    small = make_nodes(only=("resnet18/swap-bias/seg",), **common)
    digests = {node.id: node.search for node in small if node.search}
    more = by_id(make_nodes(**{**common, "search_trials": 5, "seeds": (0, 1)}))
    assert digests == {name: more[name].search for name in digests}
    wider = by_id(make_nodes(**common, search_range=(1e-6, 1e-2)))
    other = by_id(make_nodes(**common, seeds=(1,)))
    for name, digest in digests.items():
        assert wider[name].search != digest
        assert other[name].search != digest


@st.composite
def studies(draw: st.DrawFn) -> Study:
    values: dict[str, Any] = {
        "kind": draw(st.sampled_from(["full-grid", "lr-search"])),
        "backbones": draw(st.sampled_from([("resnet18",), ("resnet18", "densenet121")])),
        "strategies": draw(
            st.sampled_from([("baseline",), ("swap",), ("dual",), ("baseline", "swap", "dual")])
        ),
        "recipe": Recipe(epochs=draw(st.integers(1, 3)), batch_size=2, image_px=64),
        "seeds": draw(st.sampled_from([(0,), (0, 1), (5, 2, 7)])),
        "lr_search": draw(st.sampled_from([None, "backbone", "cell"])),
        "axes": draw(st.sampled_from([{}, {"alpha": (1.0, 3.0)}, {"nms_iou": (0.5, 0.6)}])),
    }
    if values["kind"] == "lr-search" or values["lr_search"]:
        values["search_trials"] = draw(st.integers(2, 3))
        values["search_schedulers"] = draw(st.sampled_from([(), ("plateau", "cosine")]))
        values["search_lrs"] = () if draw(st.booleans()) else (1e-4, 1e-3)
        if values["search_lrs"]:
            del values["search_trials"]
    return Study(**values)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(study=studies(), data=st.data())
def test_every_study_is_a_graph_that_runs_to_its_end(study: Study, data: st.DataObject) -> None:
    nodes = expand(study, FACTS)
    known = by_id(nodes)
    assert len(known) == len(nodes), "ids are unique"
    assert {name for n in nodes for name in (*n.needs, *n.after)} <= set(known)
    upward_ranks([node.job for node in nodes])  # raises on a circle
    for node in nodes:
        assert (node.stage == "seeds") == (node.search is None and node.seed != study.seeds[0])
        assert (node.stage == "lr-search") == (node.search is not None) == (node.group is not None)
    groups: dict[str, set[tuple[str, Recipe, int]]] = {}
    for node in nodes:
        if node.group is not None:
            groups.setdefault(node.group, set()).add((node.cell.name, node.recipe, node.seed))
    assert all(len(members) == 1 for members in groups.values())

    shift = data.draw(st.floats(1e-4, 1e-2))
    rows = run(study, FACTS, lambda trial, epoch: 1 / (1 + abs(math.log(trial.lr / shift))))
    assert {row.state for row in rows.values()} <= {"done", "stopped"}
    for row in rows.values():
        assert row.trial is not None
        assert (row.trial.cell, row.trial.seed) == (row.node.cell, row.node.seed)
        if row.node.needs:
            parent = rows[row.node.needs[0]].trial
            assert parent is not None
            assert row.trial.parent_key == parent.key
        if row.node.search is None and not row.node.after:
            assert row.trial == row.node.trial
    keys = [row.trial.key for row in rows.values() if row.trial and row.node.search is None]
    assert study.axes or len(set(keys)) == len(keys)
    by_number: dict[tuple[str, int], set[float]] = {}
    for row in rows.values():
        if row.node.search is not None and row.node.number is not None and row.trial is not None:
            place = by_number.setdefault((row.node.search, row.node.number), set())
            place.add(row.trial.lr)
    assert all(len(rates) == 1 for rates in by_number.values()), "cells of a search share rates"
