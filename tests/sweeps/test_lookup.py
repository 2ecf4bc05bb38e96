"""What is known before anything runs: searches that have ended, parents that were taken over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sharedenc.spec import Recipe
from sharedenc.tracking import MemoryTracker
from sweeps.graph import Facts, Resolver, expand
from sweeps.ledger import Reuse
from sweeps.lookup import Known, look_up
from sweeps.order import Machine
from sweeps.price import to_run
from sweeps.resources import GIB
from sweeps.state import SweepState
from sweeps.study import Study
from tests.sweeps.ledger_help import open_ledger, run_all, tags

SOURCE, SWAP = "resnet18/baseline/det", "resnet18/swap-frozen/seg"
PAIR = Study(
    kind="full-grid", only=(SWAP,), recipe=Recipe(epochs=2, batch_size=2, image_px=64), name="s"
)


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[MemoryTracker]:
    tracker = MemoryTracker(tmp_path / "store")
    yield tracker
    tracker.close()


def open_study(
    tracker: MemoryTracker, study: Study, facts: Facts, reuse: Reuse = "strict"
) -> tuple[Known, SweepState]:
    """What a driver does before the first trial starts."""
    ledger = open_ledger(tracker, study.name or "s")
    nodes = expand(study, facts)
    resolver = Resolver(nodes, study, facts, ledger.proposed)
    known = look_up(ledger, nodes, resolver, reuse=reuse)
    state = SweepState(
        nodes,
        [Machine(cpus=4, gpus=1, memory=64 * GIB)],
        resolve=resolver.trial,
        settled=ledger.settled,
    )
    for node in nodes:
        state.rows[node.id].trial = known.trials.get(node.id)
    ledger.create(state.rows)
    state.begin()
    return known, state


def test_a_study_whose_searches_have_ended_is_known_whole(
    tracker: MemoryTracker, facts: Facts, tmp_path: Path
) -> None:
    study = replace(PAIR, lr_search="backbone", search_trials=2)
    known, state = open_study(tracker, study, facts)
    # Of a rate that nobody has found yet there is no trial, nor of what starts from it.
    assert set(known.trials) == {f"{SOURCE} lr#0"}
    assert len(run_all(tracker, state, tmp_path)) == 4
    known, state = open_study(tracker, study, facts)
    assert set(known.done) == {row.node.id for row in state.rows.values()}
    assert to_run([row.node for row in state.rows.values()], known.done) == ([], {})
    assert state.finished
    other, _ = open_study(tracker, replace(study, name="other"), facts)
    assert {found.reused for found in other.done.values()} == {"other study s"}


def test_what_starts_from_a_compatible_trial_says_from_which(
    tracker: MemoryTracker, facts: Facts, tmp_path: Path
) -> None:
    alone = replace(PAIR, only=(SOURCE,))
    _, state = open_study(tracker, alone, facts)
    assert run_all(tracker, state, tmp_path) == [SOURCE]
    there = state.rows[SOURCE].trial
    assert there is not None
    gpu = replace(facts, device_kind="cuda")

    mixed = replace(PAIR, name="mixed")
    _, state = open_study(tracker, mixed, gpu, reuse="compatible")
    assert state.rows[SOURCE].trial == there
    assert tags(tracker, SOURCE, "mixed")["sharedenc.key"] == there.key
    assert run_all(tracker, state, tmp_path) == [SWAP]
    swap = state.rows[SWAP].trial
    assert swap is not None
    assert (swap.parent_key, swap.numerics.device) == (there.key, "cuda")
    assert tags(tracker, SWAP, "mixed")["sharedenc.key"] == swap.key

    # The same again trains nothing; a strict study is not given what started elsewhere.
    known, _ = open_study(tracker, mixed, gpu, reuse="compatible")
    assert set(known.done) == {SOURCE, SWAP}
    known, _ = open_study(tracker, replace(PAIR, name="pure"), gpu)
    assert known.done == {}
