"""Studies with searches, run on a made-up landscape: rates pass on as soon as they are known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedenc.spec import BACKBONES, Recipe, Trial
from sweeps.brackets import Cut
from sweeps.graph import Facts, Resolver, Unresolvable, expand
from sweeps.proposals import Proposal
from sweeps.resolver import baseline_scores
from sweeps.state import Row
from sweeps.study import Study
from tests.sweeps.searching import FACTS, run

RECIPE = Recipe(epochs=8, batch_size=2, image_px=64, plateau_patience=1)
BEST = {"det": 4e-4, "seg": 1.6e-3}


def score(trial: Trial, epoch: int) -> float:
    """Falls with the distance to the task's best rate, rises with the epochs."""
    best = BEST.get(trial.cell.task or "", 8e-4)
    return (1 - abs(math.log10(trial.lr / best)) / 4) * epoch / 8


def study(**settings: object) -> Study:
    values: dict[str, object] = {"kind": "full-grid", "backbones": ("resnet18",), "recipe": RECIPE}
    return Study(**values | settings)  # type: ignore[arg-type]


def searched(rows: dict[str, Row]) -> dict[str, float]:
    return {name: r.trial.lr for name, r in rows.items() if r.node.search and r.trial}


def test_the_same_study_twice_proposes_the_same_rates_one_trial_at_a_time(facts: Facts) -> None:
    asked = study(only=("resnet18/share-frozen/*",), lr_search="cell")
    first, second = run(asked, facts, score), run(asked, facts, score)
    assert len(searched(first)) == 16
    assert searched(first) == searched(second)
    assert first["resnet18/share-frozen/seg"].trial == second["resnet18/share-frozen/seg"].trial


@settings(max_examples=25, deadline=None)
@given(worth=st.lists(st.integers(1, 10**6), min_size=24, max_size=24, unique=True))
def test_a_trial_is_only_ever_compared_with_those_of_its_own_bracket(worth: list[int]) -> None:
    """Every trial has scores of its own, so what a cut names says whose they were."""
    asked = Study(
        kind="lr-search",
        only=("resnet18/share-*/*",),
        recipe=RECIPE,
        search_lrs=(1e-4, 2e-4, 4e-4),
        search_schedulers=("plateau", "cosine"),
        search_rungs=(1, 2, 4),
    )
    places = [
        (f"resnet18/share-{freeze}/{task}", scheduler, lr)
        for freeze in ("frozen", "bias")
        for task in ("det", "seg")
        for scheduler in asked.search_schedulers
        for lr in asked.search_lrs
    ]
    worths = {place: value / 2**20 for place, value in zip(places, worth, strict=True)}

    def score(trial: Trial, epoch: int) -> float:
        return worths[trial.cell.name, trial.recipe.scheduler, trial.lr]

    rows = run(asked, FACTS, score)
    assert len(rows) == 24
    groups: dict[str | None, list[Row]] = {}
    for row in rows.values():
        groups.setdefault(row.node.group, []).append(row)
    assert len(groups) == 8
    for group in groups.values():
        own = [row.score for row in group]
        for row in group:
            cut = Cut.parse(row.reason)
            assert (cut is not None) == (row.state == "stopped")
            if cut is not None:
                assert cut.trials <= len(group)
                assert all(any(math.isclose(b, s, rel_tol=1e-5) for s in own) for b in cut.better)
        assert max(group, key=lambda row: row.score).state == "done"


def test_known_proposals_are_kept_and_told(facts: Facts) -> None:
    small = study(only=("resnet18/share-frozen/seg",), lr_search="cell", search_trials=6)
    rows = run(small, facts, score)
    known = {
        (r.node.search, r.node.number): Proposal(r.trial.lr)
        for r in rows.values()
        if r.node.search and r.trial
    }
    # One trial more: the earlier six keep their rates, and it is proposed by what they gave.
    more = study(only=("resnet18/share-frozen/seg",), lr_search="cell", search_trials=7)
    again = run(more, facts, score, known=lambda *place: known.get(place))
    assert searched(rows).items() <= searched(again).items()
    assert searched(again) == searched(run(more, facts, score))
    moved = {(s, n): Proposal(p.lr * 1.01) for (s, n), p in known.items()}
    kept = run(more, facts, score, known=lambda *place: moved.get(place))
    assert list(searched(kept).values())[:6] == [p.lr for p in moved.values()]


def test_a_final_trial_is_the_winner_that_was_never_cut(facts: Facts) -> None:
    rows = run(study(lr_search="cell", search_trials=4), facts, score)
    for row in rows.values():
        if row.node.search is not None or row.trial is None:
            continue
        trials = [rows[name] for name in row.node.after]
        won = max(trials, key=lambda r: (r.score, -r.trial.lr if r.trial else 0))
        assert won.state == "done"
        assert won.trial is not None
        assert won.trial.key == row.trial.key, row.node.id


def test_one_rate_of_a_backbone_is_passed_on_to_all_its_cells_and_seeds(facts: Facts) -> None:
    rows = run(study(lr_search="backbone", search_trials=6, seeds=(0, 1)), facts, score)
    finals = [row for row in rows.values() if row.node.search is None]
    assert len(finals) == 22
    (rate,) = {row.trial.lr for row in finals if row.trial}
    shares: dict[float, list[float]] = {}
    for task in ("det", "seg"):
        scores = {
            r.trial.lr: r.score
            for r in rows.values()
            if r.node.search and r.trial and r.node.cell.task == task
        }
        for lr, value in scores.items():
            shares.setdefault(lr, []).append(value / max(scores.values()))
    assert sum(shares[rate]) == pytest.approx(max(sum(pair) for pair in shares.values()))


def test_a_cosine_that_wins_gives_the_final_trials_its_recipe(facts: Facts) -> None:
    def cosine_is_better(trial: Trial, epoch: int) -> float:
        return score(trial, epoch) * (1.5 if trial.recipe.scheduler == "cosine" else 1.0)

    def plateau_is_better(trial: Trial, epoch: int) -> float:
        return score(trial, epoch) * (1.5 if trial.recipe.scheduler == "plateau" else 1.0)

    asked = study(
        only=("resnet18/baseline/seg",),
        lr_search="cell",
        search_trials=3,
        search_schedulers=("plateau", "cosine"),
        search_epochs=4,
        seeds=(0, 1),
    )
    rows = run(asked, facts, cosine_is_better)
    first, second = rows["resnet18/baseline/seg"].trial, rows["resnet18/baseline/seg seed=1"].trial
    assert first is not None
    assert second is not None
    assert first.recipe == second.recipe
    assert (first.recipe.scheduler, first.recipe.epochs, first.recipe.early_stop_patience) == (
        "cosine",
        4,
        0,
    )
    won = [r.trial.key for r in rows.values() if r.node.search and r.trial and r.state == "done"]
    assert first.key in won
    plateau = run(asked, facts, plateau_is_better)["resnet18/baseline/seg"].trial
    assert plateau is not None
    assert plateau.recipe == RECIPE  # and its full length, not that of the search


def test_a_search_without_any_score_is_told_to_what_waits_for_it(facts: Facts) -> None:
    asked = study(only=("resnet18/baseline/seg",), lr_search="cell", search_trials=2)
    nodes = expand(asked, facts)
    rows = {node.id: Row(node=node, trial=node.trial) for node in nodes}
    for name in nodes[0].after:
        rows[name].state, rows[name].reason = "failed", "the loss is nan"
    told = r"no trial of its .* search gave a score \(resnet18/baseline/seg lr#0: the loss is nan\)"
    with pytest.raises(Unresolvable, match=told):
        Resolver(nodes, asked, facts).trial(nodes[0], rows)


def test_a_search_without_any_score_skips_what_waits_for_it_and_ends_nothing_else(
    facts: Facts,
) -> None:
    asked = study(only=("resnet18/share-*/seg",), lr_search="cell", search_trials=2)

    def gone(trial: Trial, epoch: int) -> float:
        return math.nan if trial.cell.freeze == "bias" else 0.5

    rows = run(asked, facts, gone)
    assert rows["resnet18/share-frozen/seg"].state == "done"
    lost = rows["resnet18/share-bias/seg"]
    assert (lost.state, lost.reason.split(" (")[0]) == (
        "skipped",
        "no trial of its learning-rate search gave a score",
    )


def test_what_is_known_early_is_shown_and_then_happens(
    facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = study(lr_search="cell", search_trials=2)
    nodes = expand(asked, facts)
    resolver = Resolver(nodes, asked, facts)
    shown = {n.id: t for n in nodes if (t := resolver.preview(n)) is not None}
    # The first rate of a search is the published one; a swap's waits for its source's.
    assert set(shown) == {f"{cell} lr#0" for cell in asked.cells if cell.strategy != "swap"}
    assert {trial.lr for trial in shown.values()} == {BACKBONES["resnet18"].lr}
    rows = run(asked, facts, score)
    assert {name: rows[name].trial for name in shown} == shown
    digest = next(n.search for n in nodes if n.id == "resnet18/dual lr#1")
    known = Resolver(nodes, asked, facts, lambda *p: Proposal(3e-3) if p == (digest, 1) else None)
    later = next(n for n in nodes if n.id == "resnet18/dual lr#1")
    assert known.preview(later) == facts.trial(later.cell, later.recipe, 3e-3, 0)


def test_explicit_rates_bypass_the_proposals(facts: Facts) -> None:
    rates = (1e-4, 4e-4, 1.6e-3)
    asked = study(only=("resnet18/swap-frozen/seg",), lr_search="cell", search_lrs=rates)
    nodes = expand(asked, facts)
    resolver = Resolver(nodes, asked, facts, lambda *place: Proposal(5e-3))
    swap = next(n for n in nodes if n.id == "resnet18/swap-frozen/seg lr=4e-4")
    assert swap.trial is None  # its source's rate is searched too
    assert resolver.preview(swap) is None
    rows = run(asked, facts, score, known=lambda *place: Proposal(5e-3))
    assert sorted(set(searched(rows).values())) == sorted(rates)


def test_a_searched_dual_is_compared_with_the_baselines_that_are_done(facts: Facts) -> None:
    asked = study(lr_search="cell", search_trials=2)
    rows = run(asked, facts, score)
    node = rows["resnet18/dual lr#0"].node
    expected = {task: rows[f"resnet18/baseline/{task}"].score for task in ("det", "seg")}
    assert baseline_scores(node, rows) == expected
    rows["resnet18/baseline/det"].state = "failed"
    assert baseline_scores(node, rows) == {"seg": expected["seg"]}
    assert baseline_scores(rows["resnet18/dual"].node, rows) == {}
