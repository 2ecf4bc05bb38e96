"""What a prune frees, what it never touches, and that the ledger knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from sharedenc.cli import main
from sharedenc.errors import SpecError, TrackingError
from sharedenc.mlflow_server import serve
from sharedenc.storage import open_storage
from sharedenc.tracking import MemoryTracker, MlflowTracker, Version
from sweeps.graph import Node
from sweeps.lease import Claim
from sweeps.prune import Plan, Pruner, parse_age
from tests.sweeps.conftest import MakeNodes
from tests.sweeps.ledger_help import open_ledger, open_sweep, record, run_all, tags, train

SWAP, SOURCE, DUAL = "resnet18/swap-frozen/seg", "resnet18/baseline/det", "resnet18/dual"


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[MemoryTracker]:
    tracker = MemoryTracker(tmp_path / "store")
    yield tracker
    tracker.close()


@pytest.fixture
def nodes(make_nodes: MakeNodes) -> list[Node]:
    return make_nodes(only=(SWAP, DUAL))


@pytest.fixture
def finished(tracker: MemoryTracker, nodes: list[Node], tmp_path: Path) -> list[Node]:
    """A baseline, its swap and a dual, trained in study `s`."""
    _, state = open_sweep(tracker, nodes)
    assert sorted(run_all(tracker, state, tmp_path)) == sorted((SOURCE, SWAP, DUAL))
    return nodes


def names(plan: Plan) -> list[str]:
    return sorted(run.name for run in plan.doomed)


def test_ages_are_read() -> None:
    assert [parse_age(text) for text in ("90d", "2w", "12h")] == [90.0, 14.0, 0.5]
    with pytest.raises(SpecError, match=r"'3 months'.*90d"):
        parse_age("3 months")


def test_a_policy_decides_what_goes(
    tracker: MemoryTracker, make_nodes: MakeNodes, tmp_path: Path
) -> None:
    _, state = open_sweep(tracker, make_nodes(only=(DUAL,), seeds=(0, 1, 2)))
    for score in (0.2, 0.6, 0.4):
        row = state.next()
        assert row is not None
        train(tracker, state, row, tmp_path, score)
    pruner = Pruner(tracker)
    assert names(pruner.plan(["s"], "final")) == []
    worse = names(pruner.plan(["s"], "best"))
    assert len(worse) == 2
    assert all(state.rows[name].score < 0.6 for name in worse)
    assert len(names(pruner.plan(["s"], "none"))) == 3
    assert names(pruner.plan(["s"], "none", older_than_days=1)) == []
    later = Pruner(tracker, now=lambda: record(tracker, worse[0]).start_ms / 1000 + 2 * 86400)
    assert len(names(later.plan(["s"], "none", older_than_days=1))) == 3
    with pytest.raises(SpecError, match=r"'bset'.*best"):
        pruner.plan(["s"], "bset")  # type: ignore[arg-type]
    with pytest.raises(TrackingError, match="no study 'x'; it has: s"):
        pruner.plan(["x"])


def test_the_ledger_knows_what_was_pruned(
    tracker: MemoryTracker, finished: list[Node], tmp_path: Path
) -> None:
    run = record(tracker, DUAL)
    sizes = tracker.files(run.run_id)
    pruner = Pruner(tracker, now=lambda: 1_800_000_000.0)
    plan = pruner.plan([], "none")
    assert names(plan) == sorted((SOURCE, SWAP, DUAL))
    (dual,) = (row for row in plan.doomed if row.name == DUAL)
    assert dual.bytes == sum(sizes.values()) > 0
    assert tracker.files(run.run_id) == sizes  # a plan frees nothing
    pruner.carry_out(plan)
    assert tracker.files(run.run_id) == {}
    assert tags(tracker, DUAL)["sharedenc.pruned"] == "2027-01-15"
    assert record(tracker, DUAL).metrics == run.metrics
    assert names(pruner.plan([], "none")) == []
    _, state = open_sweep(tracker, finished)
    assert {row.state for row in state.rows.values()} == {"waiting"}
    assert "pruned on 2027-01-15" in tags(tracker, DUAL)["sharedenc.why_not"]


def test_an_encoder_that_a_swap_still_needs_stays(
    tracker: MemoryTracker, nodes: list[Node], tmp_path: Path
) -> None:
    _, state = open_sweep(tracker, nodes)
    while (row := state.next()) is not None and row.node.id != SOURCE:
        train(tracker, state, row, tmp_path)
    assert row is not None
    train(tracker, state, row, tmp_path)
    plan = Pruner(tracker).plan(["s"], "none")
    assert SOURCE not in names(plan)
    assert [(kept.name, kept.reason) for kept in plan.kept] == [
        (SOURCE, f"{SWAP} of study s needs it")
    ]
    run_all(tracker, state, tmp_path)
    assert SOURCE in names(Pruner(tracker).plan(["s"], "none"))


def test_what_another_study_stands_on_stays(
    tracker: MemoryTracker, finished: list[Node], tmp_path: Path
) -> None:
    open_sweep(tracker, finished, "other")
    plan = Pruner(tracker).plan(["s"], "none")
    assert names(plan) == []
    assert {kept.reason.partition(" (")[0] for kept in plan.kept} == {"study other reuses it"}
    both = Pruner(tracker).plan(["s", "other"], "none")
    assert len(both.doomed) == 6
    # When the other study's runs are pruned first, nothing stands on these any more.
    pruner = Pruner(tracker)
    pruner.carry_out(pruner.plan(["other"], "none"))
    assert names(pruner.plan(["s"], "none")) == sorted((SOURCE, SWAP, DUAL))


def test_a_registered_run_stays(tracker: MemoryTracker, finished: list[Node]) -> None:
    run = record(tracker, DUAL).run_id
    tracker.registered = [
        Version("voc20-resnet18-dual", "3", run, f"runs:/{run}/export", ("live",))
    ]
    plan = Pruner(tracker).plan(["s"], "none")
    assert DUAL not in names(plan)
    assert plan.kept[0].reason == "registered as voc20-resnet18-dual version 3 (live)"


def test_a_study_that_is_being_run_is_left_alone(
    tracker: MemoryTracker, finished: list[Node]
) -> None:
    claim = replace(Claim.mine(), ticket=1)
    parent = open_ledger(tracker).parent_id
    tracker.tag(parent, {claim.tag: json.dumps(asdict(claim))})
    plan = Pruner(tracker).plan([], "none")
    assert plan.doomed == []
    assert "being run by" in plan.notes[0]
    tracker.tag(parent, {claim.tag: json.dumps(asdict(replace(claim, born=1)))})
    assert len(Pruner(tracker).plan([], "none").doomed) == 3


def test_checkpoints_and_work_folders_go_by_key(
    tracker: MemoryTracker, nodes: list[Node], tmp_path: Path
) -> None:
    _, state = open_sweep(tracker, nodes)
    row = state.next()
    assert row is not None
    train(tracker, state, row, tmp_path)
    storage = open_storage(str(tmp_path / "storage"))
    runs = tmp_path / "runs"
    done = row.node.id
    for other in state.rows.values():
        assert other.trial is not None
        work = runs / "studies" / "s" / "trials" / other.trial.key[:16]
        work.mkdir(parents=True)
        (work / "state-1").write_bytes(b"x" * 10)
        storage.put(work / "state-1", f"checkpoints/{other.trial.key}/state-1")
    plan = Pruner(tracker, runs, storage).plan(["s"], "none")
    assert names(plan) == ([] if done == SOURCE else [done])  # its swap is not done yet
    run_all(tracker, state, tmp_path)
    pruner = Pruner(tracker, runs, storage)
    plan = pruner.plan(["s"], "none")
    assert {sum(run.local.values()) for run in plan.doomed} == {10}
    assert {sum(run.stored.values()) for run in plan.doomed} == {10}
    pruner.carry_out(plan)
    assert storage.list("checkpoints") == []
    assert list((runs / "studies" / "s" / "trials").iterdir()) == []


def test_a_resume_checkpoint_of_a_trial_that_goes_on_stays(
    tracker: MemoryTracker, finished: list[Node], tmp_path: Path
) -> None:
    """The same trial waits in another study and will go on from what is there by its key."""
    _, state = open_sweep(tracker, finished, "other", reuse="none")
    storage = open_storage(str(tmp_path / "storage"))
    (tmp_path / "state").write_bytes(b"x")
    trial = state.rows[DUAL].trial
    assert trial is not None
    storage.put(tmp_path / "state", f"checkpoints/{trial.key}/state-1")
    pruner = Pruner(tracker, None, storage)
    pruner.carry_out(pruner.plan(["s"], "none"))
    assert storage.list("checkpoints") == [f"checkpoints/{trial.key}/state-1"]


@pytest.mark.slow
def test_the_command_frees_objects_of_a_real_store(
    make_nodes: MakeNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    root = tmp_path / "runs"
    cli = CliRunner()
    with serve(root) as server:
        tracker = MlflowTracker(server.uri)
        made = make_nodes(only=(SWAP,))
        _, state = open_sweep(tracker, made)
        run_all(tracker, state, tmp_path)
        client = MlflowClient(server.uri, server.uri)
        client.create_registered_model("kept")
        swap = state.rows[SWAP].run_id
        client.create_model_version("kept", f"runs:/{swap}/checkpoint", swap, await_creation_for=0)
        client.set_registered_model_alias("kept", "live", "1")

        common = ["prune", "s", "--keep", "none", "--runs-dir", str(root)]
        asked = cli.invoke(main, [*common, "--json"])
        assert asked.exit_code == 2
        planned = cli.invoke(main, [*common, "--dry-run", "--json"])
        assert planned.exit_code == 0, planned.output
        plan = json.loads(planned.stdout)
        assert [run["name"] for run in plan["runs"]] == [SOURCE]
        assert plan["kept"][0]["reason"] == "registered as kept version 1 (live)"
        assert plan["not_reusable"] == [f"s: {SOURCE}"]
        stored = list((root / "artifacts").rglob("best.safetensors"))
        assert len(stored) == 2
        declined = cli.invoke(main, common, input="n\n")
        assert declined.exit_code == 1
        assert len(list((root / "artifacts").rglob("best.safetensors"))) == 2
        freed = cli.invoke(main, [*common, "--yes"])
        assert freed.exit_code == 0, freed.output
        assert "1 finished trials can then not be reused" in freed.output
        (left,) = (root / "artifacts").rglob("best.safetensors")
        assert swap in left.parts
        assert tracker.record(state.rows[SOURCE].run_id).tags["sharedenc.pruned"]
