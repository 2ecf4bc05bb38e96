"""What every launcher does with a sweep, and the trials that it is tried on."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.launch import Launcher
from sweeps.order import Machine
from sweeps.state import Row, SweepState
from sweeps.worker import OnReport
from tests.sweeps.conftest import MakeNodes

WAIT_S = 240.0


def quick(payload: dict[str, Any], on_report: OnReport) -> dict[str, Any]:
    """A trial that ends at once: scores follow from its name, behaviour from its payload."""
    print("workers are not heard on standard output")
    name, folder = payload["node"], Path(payload["folder"])
    (folder / _file(name, "started")).touch()
    for epoch in range(1, payload["epochs"] + 1):
        report = {"epoch": epoch, "epochs": payload["epochs"], "score": score(name, epoch)}
        if on_report(report):
            (folder / _file(name, "last words")).touch()
            return {"state": "stopped"}
    if name == payload.get("waits"):
        _wait_for(folder / _file(payload["for"], "started"))
    if name == payload.get("dies"):
        os._exit(3)
    if name == payload.get("fails"):
        return {"state": "failed", "kind": "data", "reason": "no such picture", "traceback": "T"}
    result = {"score": score(name, payload["epochs"]), "omp": os.environ.get("OMP_NUM_THREADS")}
    return {"state": "done", "result": result}


def score(name: str, epoch: int) -> float:
    """A made-up score in 0..1 that rises with the epochs."""
    digest = hashlib.sha256(name.encode()).digest()[0]
    return digest / 256 + epoch / 1024


def said_last_words(folder: Path, name: str) -> bool:
    """Whether a cut trial has come to its own end."""
    return (folder / _file(name, "last words")).exists()


def _file(name: str, event: str) -> str:
    return f"{name.replace('/', '.')} {event}"


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path.name} never came")
        time.sleep(0.05)


def launch(launcher: Launcher, nodes: list[Any], folder: Path, **behaviour: str) -> dict[str, Row]:
    """Run made-up trials through a launcher; the rows at the end."""
    state = SweepState(nodes, launcher.machines())

    def payload(row: Row) -> dict[str, Any]:
        epochs = row.node.trial.recipe.epochs
        return {"node": row.node.id, "folder": str(folder), "epochs": epochs, **behaviour}

    try:
        launcher.run(state, payload, lambda: None)
    finally:
        launcher.close()
    return state.rows


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
        cell = "resnet18/share-frozen/seg"
        nodes = make_nodes(
            only=("resnet18/*",),
            search_cell=cell,
            search_epochs=4,
            search_lrs=tuple(1e-4 * 2**i for i in range(6)),
            search_rungs=(1, 2),
        )
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
