"""A made-up sweep over a tracker, with trials that end at once and leave real artifacts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sharedenc.data.classes import VOC20
from sharedenc.tracking import RunRecord, Tracker
from sharedenc.training.job import trial_params
from sweeps.graph import Node
from sweeps.ledger import Ledger
from sweeps.order import Machine
from sweeps.resources import GIB
from sweeps.state import Row, SweepState

T0 = 1_700_000_000_000


def open_ledger(tracker: Tracker, study: str = "s", **values: Any) -> Ledger:
    values.setdefault("digest", "d" * 64)
    ledger = Ledger(tracker=tracker, study=study, data="d", classes=VOC20, **values)
    ledger.open({"kind": "full-grid"}, "sharedenc sweep")
    return ledger


def open_sweep(
    tracker: Tracker, nodes: list[Node], study: str = "s", ledger: Ledger | None = None, **look: Any
) -> tuple[Ledger, SweepState]:
    """What a driver does before anything starts; ``look`` goes to `Ledger.lookup`."""
    ledger = ledger or open_ledger(tracker, study)
    trials = [(node.id, node.trial) for node in nodes if node.trial is not None]
    searches = {node.id: node.search for node in nodes if node.search is not None}
    ledger.lookup(trials, searches=searches, **look)  # type: ignore[arg-type]

    def listen(event: str, row: Row) -> None:
        if event == "start":
            ledger.started(row)
        if event == "end":
            ledger.ended(row)
        if event == "again":
            ledger.again(row)

    machines = [Machine(cpus=1, memory=64 * GIB)]
    state = SweepState(nodes, machines, settled=ledger.settled, listener=listen)
    ledger.create(state.rows)
    state.begin()
    return ledger, state


def train(tracker: Tracker, state: SweepState, row: Row, folder: Path, score: float = 0.5) -> None:
    """End a trial that has been started, as its worker would."""
    assert row.trial is not None
    run = tracker.resume(row.run_id)
    run.params(trial_params(row.trial))
    for epoch in (1, 2):
        values = {"score": score - 0.1 * (2 - epoch), "val/loss": 1.0 / epoch, "lr": row.trial.lr}
        run.metrics(values, epoch, at_ms=T0 + epoch)
    run.metrics({"test/mIoU": 0.4, "seconds": 8.0, "peak_memory_bytes": 1e6, "score": score}, 3)
    run.metrics({"params/total": 7}, 0)
    files = artifacts(row, folder)
    if row.node.search is None:
        for name, path in files.items():
            run.artifact(path, str(Path(name).parent) if "/" in name else "")
        digests = {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()}
        run.tags({"sharedenc.sha256": json.dumps(digests)})
    run.end("done")
    state.end(row.node.id, {"state": "done", "result": {"score": score}})


def artifacts(row: Row, folder: Path) -> dict[str, Path]:
    assert row.trial is not None
    folder = folder / row.run_id
    folder.mkdir(parents=True, exist_ok=True)
    best = folder / "best.safetensors"
    weights = np.full(64, len(row.node.id), dtype=np.float32)
    save_file({"w": weights}, best, {"sharedenc": json.dumps({"key": row.trial.key})})
    (folder / "result.json").write_text(json.dumps({"key": row.trial.key}))
    return {"checkpoint/best.safetensors": best, "result.json": folder / "result.json"}


def run_all(tracker: Tracker, state: SweepState, folder: Path) -> list[str]:
    """Train whatever may start; return the names in their order."""
    names = []
    while (row := state.next()) is not None:
        train(tracker, state, row, folder)
        names.append(row.node.id)
    return names


def changed(nodes: list[Node], **recipe: Any) -> list[Node]:
    """The nodes with another recipe; none may be a swap, whose key follows its parent's."""
    found = []
    for node in nodes:
        assert node.trial is not None
        new = replace(node.trial.recipe, **recipe)
        found.append(replace(node, recipe=new, trial=replace(node.trial, recipe=new)))
    return found


def renumbered(nodes: list[Node], **numerics: Any) -> list[Node]:
    """The nodes on another kind of machine, with keys that follow from it."""
    keys: dict[str, tuple[str, str]] = {}
    found = []
    for node in sorted(nodes, key=lambda node: len(node.needs)):
        assert node.trial is not None
        trial = replace(node.trial, numerics=replace(node.trial.numerics, **numerics))
        if node.needs:
            key, compatible = keys[node.needs[0]]
            trial = replace(trial, parent_key=key, parent_compatible=compatible)
        keys[node.id] = (trial.key, trial.compatible_key)
        found.append(replace(node, trial=trial))
    return found


def record(tracker: Tracker, name: str, study: str = "s") -> RunRecord:
    """The newest run of a name."""
    return [run for run in tracker.runs(study) if run.name == name][-1]


def tags(tracker: Tracker, name: str, study: str = "s") -> Mapping[str, str]:
    return record(tracker, name, study).tags
