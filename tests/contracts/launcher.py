"""What every launcher does with a sweep, and the trials that it is tried on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.brackets import Ladder
from sweeps.faults import Rules
from sweeps.graph import Node
from sweeps.launch import Launcher
from sweeps.order import Machine
from sweeps.state import Row, SweepState
from sweeps.worker import AskStop, OnReport
from tests.sweeps.conftest import MakeNodes

WAIT_S = 240.0
DENSENET, EFFICIENTNET, MOBILENET = "densenet121", "efficientnet_v2_s", "mobilenet_v3_large"


def searches(final: Node, *, count: int, rungs: tuple[int, ...], epochs: int = 4) -> list[Node]:
    """Search trials of a cell, whose rates are known, in one bracket."""
    assert final.trial is not None
    recipe = replace(final.recipe, epochs=epochs)
    return [
        replace(
            final,
            id=f"{final.id} lr={number}",
            recipe=recipe,
            trial=replace(final.trial, recipe=recipe, lr=1e-4 * 2**number),
            stage="lr-search",
            search="made up",
            number=number,
            group="made up",
            ladder=Ladder(rungs=rungs),
        )
        for number in range(count)
    ]


def quick(payload: dict[str, Any], on_report: OnReport, stop: AskStop) -> dict[str, Any]:
    """A trial that ends at once: scores follow from its name, behaviour from its payload.

    ``first`` (JSON) says how the first attempt of some trials ends before its first epoch, by
    the names in `FIRST`. ``waits`` waits for the start of ``for``; a first attempt in ``lasts``
    goes on until it is told to stop, or until a file ``go`` lets it end.
    """
    print("workers are not heard on standard output")
    name, folder = payload["node"], Path(payload["folder"])
    attempt = len(list(folder.glob(_file(name, "started") + "*"))) + 1
    (folder / f"{_file(name, 'started')} {attempt}").write_text(str(os.getpid()))
    first = json.loads(payload.get("first", "{}"))
    if name in first and attempt == 1:
        return FIRST[first[name]]
    for epoch in range(1, payload["epochs"] + 1):
        report = {"epoch": epoch, "epochs": payload["epochs"], "score": score(name, epoch)}
        if on_report(report):
            (folder / _file(name, "last words")).touch()
            return {"state": "stopped"}
    if name == payload.get("waits"):
        _wait_for(folder, payload["for"])
    if name in payload.get("lasts", "").split() and attempt == 1:
        deadline = time.monotonic() + WAIT_S
        while not stop() and not (folder / "go").exists():
            if time.monotonic() > deadline:
                raise TimeoutError("nobody said stop")
            time.sleep(0.02)
        if stop():
            return _stopped(stop())
    if name == payload.get("dies"):
        os._exit(3)
    if name == payload.get("fails"):
        return {"state": "failed", "kind": "data", "reason": "no such picture", "traceback": "T"}
    result = {"score": score(name, payload["epochs"]), "omp": os.environ.get("OMP_NUM_THREADS")}
    return {"state": "done", "result": result}


FIRST: dict[str, dict[str, Any]] = {
    "machine": {"state": "failed", "kind": "machine", "reason": "CUDA error: ECC"},
    "oom": {"state": "failed", "kind": "oom", "reason": "out of memory"},
    "preempted": {"state": "preempted", "reason": "preempted: its node goes away"},
    "code": {"state": "failed", "kind": "code", "reason": "a bug", "error": "NameError"},
}


def _stopped(reason: str) -> dict[str, Any]:
    state = "preempted" if reason.startswith("preempted") else "stopped"
    return {"state": state, "reason": reason}


def score(name: str, epoch: int) -> float:
    """A made-up score in 0..1 that rises with the epochs."""
    digest = hashlib.sha256(name.encode()).digest()[0]
    return digest / 256 + epoch / 1024


def said_last_words(folder: Path, name: str) -> bool:
    """Whether a cut trial has come to its own end."""
    return (folder / _file(name, "last words")).exists()


def _file(name: str, event: str) -> str:
    return f"{name.replace('/', '.')} {event}"


def started(folder: Path, name: str) -> int:
    """How often a trial has been started."""
    return len(list(folder.glob(_file(name, "started") + "*")))


def process(folder: Path, name: str) -> int:
    """The process of a trial's first attempt."""
    return int((folder / f"{_file(name, 'started')} 1").read_text())


def _wait_for(folder: Path, name: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not started(folder, name):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} never came")
        time.sleep(0.05)


def launch(
    launcher: Launcher,
    nodes: list[Any],
    folder: Path,
    *,
    rules: Rules | None = None,
    beat: Callable[[SweepState], None] = lambda state: None,
    **behaviour: str,
) -> dict[str, Row]:
    """Run made-up trials through a launcher; the rows at the end."""
    state = SweepState(nodes, launcher.machines(), rules=rules or Rules(backoff_s=0.01))

    def payload(row: Row) -> dict[str, Any]:
        return {
            "node": row.node.id,
            "folder": str(folder),
            "epochs": row.node.recipe.epochs,
            "drain_file": str(folder / "drain"),
            **behaviour,
        }

    try:
        launcher.run(state, payload, lambda: beat(state))
    finally:
        launcher.close()
    assert state.finished
    return state.rows


def summary(row: Row) -> tuple[str, str, str, int, int]:
    """What both launchers must agree on."""
    return row.state, row.kind, row.reason, row.attempts, row.preemptions


class LauncherContract:
    """Inherited by the tests of each launcher, which give the fixture ``launcher``."""

    @pytest.fixture
    def launcher(self, tmp_path: Path) -> Launcher:
        raise NotImplementedError

    def test_it_says_what_there_is_to_run_on(self, launcher: Launcher) -> None:
        try:
            machines = launcher.machines()
        finally:
            launcher.close()
        assert machines
        assert all(isinstance(m, Machine) and m.cpus >= 1 and m.memory > 0 for m in machines)

    def test_every_trial_ends_by_name(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        nodes = make_nodes(backbones=("resnet18",))
        rows = launch(launcher, nodes, tmp_path, fails="resnet18/baseline/seg")
        ends = {name: (row.state, row.reason) for name, row in rows.items()}
        lost = "needs resnet18/baseline/seg, which failed"
        assert ends.pop("resnet18/baseline/seg") == ("failed", "no such picture")
        assert ends.pop("resnet18/swap-frozen/det") == ("skipped", lost)
        assert ends.pop("resnet18/swap-bias/det") == ("skipped", lost)
        assert set(ends.values()) == {("done", "")}
        for name in ends:
            assert rows[name].score == score(name, 2)
            assert (rows[name].epoch, rows[name].attempts) == (2, 1)
        failed = rows["resnet18/baseline/seg"]
        assert (failed.kind, failed.traceback) == ("data", "T")

    def test_brackets_cut_search_trials(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        (final,) = make_nodes(only=("resnet18/share-frozen/seg",))
        nodes = [final, *searches(final, count=6, epochs=4, rungs=(1, 2))]
        rows = launch(launcher, nodes, tmp_path)
        search = [row for name, row in rows.items() if "lr=" in name]
        best = max(search, key=lambda row: score(row.node.id, 1))
        assert best.state == "done"
        assert all(row.state == "done" for name, row in rows.items() if "lr=" not in name)
        cut = [row for row in search if row.state == "stopped"]
        assert cut, "six different scores, and nobody was worse than half of them"
        for row in cut:
            assert row.epoch in (1, 2)
            assert row.reason.startswith(f"cut at epoch {row.epoch}: ")
        # A worker that goes on to another trial has first let the cut one come to its own end.
        assert any(said_last_words(tmp_path, row.node.id) for row in cut)

    def test_a_first_attempt_that_fails_is_sorted_and_tried_again_or_not(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        bug, siblings = "resnet18/baseline/seg", "resnet18/swap-frozen/det"
        machine, oom, taken = (f"{b}/baseline/det" for b in (DENSENET, EFFICIENTNET, MOBILENET))
        nodes = make_nodes(only=(machine, oom, taken, siblings))
        first = {bug: "code", machine: "machine", oom: "oom", taken: "preempted"}
        rows = launch(launcher, nodes, tmp_path, first=json.dumps(first))
        assert {name: summary(row) for name, row in rows.items()} == {
            machine: ("done", "", "", 2, 0),
            oom: ("done", "", "", 2, 0),
            taken: ("done", "", "", 1, 1),
            bug: ("failed", "code", "a bug", 1, 0),
            siblings: ("skipped", "", f"needs {bug}, which failed", 0, 0),
        }
        assert {name: started(tmp_path, name) for name in rows} == {
            machine: 2,
            oom: 2,
            taken: 2,
            bug: 1,
            siblings: 0,
        }
        assert {rows[name].result["omp"] for name in (machine, oom, taken)} == {"1"}

    def test_a_bug_keeps_the_siblings_from_it(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        nodes = make_nodes(only=("resnet18/share-*/det",))
        first = {node.id: "code" for node in nodes}
        rows = launch(
            launcher, nodes, tmp_path, rules=Rules(max_concurrent=1), first=json.dumps(first)
        )
        ends = sorted(summary(row) for row in rows.values())
        (failed,) = (name for name, row in rows.items() if row.state == "failed")
        why = f"held back: {failed} failed before its first epoch (a bug)"
        assert ends == [("failed", "code", "a bug", 1, 0), ("skipped", "", why, 0, 0)]

    def test_a_drain_lets_what_runs_stop_by_itself(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        nodes = make_nodes(only=("resnet18/swap-frozen/seg",))
        name = "resnet18/baseline/det"

        def beat(state: SweepState) -> None:
            if state.rows[name].epoch == 2:
                state.drain("stopped by Ctrl-C")

        rows = launch(launcher, nodes, tmp_path, beat=beat, lasts=name)
        assert summary(rows[name]) == ("stopped", "", "stopped by Ctrl-C", 1, 0)
        assert rows["resnet18/swap-frozen/seg"].state == "waiting"

    def test_a_drain_file_is_a_preemption(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        nodes = make_nodes(only=("resnet18/baseline/det",))
        (name,) = (node.id for node in nodes)
        drain = tmp_path / "drain"

        def beat(state: SweepState) -> None:
            if started(tmp_path, name) == 1 and state.rows[name].epoch == 2:
                drain.touch()
            if state.rows[name].preemptions:
                drain.unlink(missing_ok=True)
                state.drain("enough")

        rows = launch(launcher, nodes, tmp_path, beat=beat, lasts=name)
        assert rows[name].preemptions == 1
        assert rows[name].attempts == 0
        assert rows[name].state == "waiting"
        assert rows[name].reason == f"preempted: its node goes away ({drain} exists)"
