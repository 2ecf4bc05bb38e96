"""What every launcher does with a sweep, and the trials that it is tried on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.brackets import Ladder
from sweeps.faults import Rules
from sweeps.graph import Node
from sweeps.launch import Launcher
from sweeps.mates import Mates
from sweeps.order import Machine
from sweeps.state import Row, SweepState
from sweeps.worker import AskStop, OnEnd, OnReport
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


def quick(
    payloads: Sequence[dict[str, Any]], on_report: OnReport, on_end: OnEnd, stop: AskStop
) -> None:
    """Trials that end at once, side by side where there are several."""
    if len(payloads) == 1:
        (payload,) = payloads
        name = payload["node"]
        on_end(name, _alone(payload, lambda report: on_report(name, report), stop))
    else:
        _side_by_side(payloads, on_report, on_end)


def _side_by_side(payloads: Sequence[dict[str, Any]], on_report: OnReport, on_end: OnEnd) -> None:
    """Epoch by epoch, each member in its turn; ``fails``, ``dies`` and ``first`` as alone."""
    folder = Path(payloads[0]["folder"])
    left = [payload["node"] for payload in payloads]
    (folder / f"together {len(list(folder.glob('together *')))}").write_text(json.dumps(left))
    attempts = {name: _attempt(folder, name) for name in left}
    first = json.loads(payloads[0].get("first", "{}"))
    for name in list(left):
        if name in first and attempts[name] == 1:
            left.remove(name)
            on_end(name, FIRST[first[name]])
    epoch = 0
    while left:
        epoch += 1
        for payload in payloads:
            name, epochs = payload["node"], payload["epochs"]
            if name not in left:
                continue
            report = {"epoch": epoch, "epochs": epochs, "score": score(name, epoch)}
            report |= {"seconds": 0.5, "members": len(left)}
            cut = on_report(name, report)
            if name == payload.get("dies") and attempts[name] == 1:
                os._exit(3)
            if cut:
                (folder / _file(name, "last words")).touch()
                outcome: dict[str, Any] = {"state": "stopped"}
            elif name == payload.get("fails"):
                outcome = dict(NO_PICTURE)
            elif epoch == epochs:
                outcome = {"state": "done", "result": {"score": score(name, epochs)}}
            else:
                continue
            left.remove(name)
            on_end(name, outcome)


def _attempt(folder: Path, name: str) -> int:
    """Note that a trial has started, and the how manieth time it is."""
    attempt = len(list(folder.glob(_file(name, "started") + "*"))) + 1
    (folder / f"{_file(name, 'started')} {attempt}").write_text(str(os.getpid()))
    return attempt


def _alone(
    payload: dict[str, Any], on_report: Callable[[dict[str, Any]], bool], stop: AskStop
) -> dict[str, Any]:
    """A trial that ends at once: scores follow from its name, behaviour from its payload.

    ``first`` (JSON) says how the first attempt of some trials ends before its first epoch, by
    the names in `FIRST`. ``waits`` waits for the start of ``for``; a first attempt in ``lasts``
    goes on until it is told to stop, or until a file ``go`` lets it end.
    """
    print("workers are not heard on standard output")
    name, folder = payload["node"], Path(payload["folder"])
    attempt = _attempt(folder, name)
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
        return dict(NO_PICTURE)
    result = {"score": score(name, payload["epochs"]), "omp": os.environ.get("OMP_NUM_THREADS")}
    return {"state": "done", "result": result}


NO_PICTURE = {"state": "failed", "kind": "data", "reason": "no such picture", "traceback": "T"}
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
    mates: Mates | None = None,
    **behaviour: str,
) -> dict[str, Row]:
    """Run made-up trials through a launcher; the rows at the end."""
    rules = rules or Rules(backoff_s=0.01)
    state = SweepState(nodes, launcher.machines(), rules=rules, mates=mates)

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


def together(folder: Path) -> list[list[str]]:
    """Names of the trials that were given to a worker together, in the order of the starts."""
    return [sorted(json.loads(path.read_text())) for path in sorted(folder.glob("together *"))]


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

    def test_trials_of_one_encoder_train_together_and_each_ends_by_itself(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        finals = make_nodes(only=("resnet18/share-frozen/*",))
        seg = next(node for node in finals if node.id.endswith("seg"))
        rates = searches(seg, count=6, epochs=4, rungs=(1, 2))
        broken = "resnet18/share-frozen/det"
        one = Rules(max_concurrent=1)
        rows = launch(launcher, [*finals, *rates], tmp_path, mates=Mates(), rules=one, fails=broken)
        assert together(tmp_path) == [sorted(rows)]
        assert summary(rows[broken])[:3] == ("failed", "data", "no such picture")
        assert summary(rows[seg.id]) == ("done", "", "", 1, 0)
        ends = {name: row for name, row in rows.items() if "lr=" in name}
        assert {row.state for row in ends.values()} == {"done", "stopped"}
        for name, row in ends.items():
            if row.state == "stopped":
                assert row.epoch in (1, 2)
                assert row.reason.startswith(f"cut at epoch {row.epoch}: ")
                assert said_last_words(tmp_path, name)
            else:
                assert row.score == score(name, 4)

    def test_what_was_out_of_memory_together_is_tried_alone(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        nodes = make_nodes(only=("resnet18/share-frozen/*",))
        names = sorted(node.id for node in nodes)
        rows = launch(
            launcher,
            nodes,
            tmp_path,
            mates=Mates(),
            rules=Rules(max_concurrent=1),
            first=json.dumps({names[0]: "oom"}),
        )
        assert together(tmp_path) == [names]
        assert summary(rows[names[0]]) == ("done", "", "", 2, 0)
        assert summary(rows[names[1]]) == ("done", "", "", 1, 0)

    def test_a_drain_stops_all_that_train_together(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        nodes = make_nodes(only=("resnet18/share-frozen/*",))
        (tmp_path / "drain").touch()

        def beat(state: SweepState) -> None:
            if all(row.preemptions for row in state.rows.values()):
                state.drain("enough")

        rows = launch(
            launcher, nodes, tmp_path, mates=Mates(), rules=Rules(max_concurrent=1), beat=beat
        )
        assert {summary(row)[0] for row in rows.values()} == {"waiting"}
        assert {row.preemptions for row in rows.values()} == {1}
        assert len(rows) == 2
