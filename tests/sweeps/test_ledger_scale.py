"""The ledger against a real server: how many requests, and how long with 50,000 runs there."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedenc.mlflow_server import serve
from sharedenc.tracking import MlflowTracker
from sweeps.graph import Node
from tests.sweeps.conftest import MakeNodes
from tests.sweeps.ledger_help import open_ledger, open_sweep, run_all

RUNS, STUDIES, PARAMS = 50_000, 25, 10
BOUND_S = 60.0
"""Generous: it takes seconds on a quiet machine."""


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the HTTP requests that are made from now on."""
    import requests as library

    made: list[str] = []
    send = library.Session.send

    def counted(
        self: library.Session, request: library.PreparedRequest, **options: object
    ) -> object:
        made.append(request.path_url)
        return send(self, request, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(library.Session, "send", counted)
    return made


def pairs(nodes: list[Node]) -> list[tuple[str, object]]:
    return [(node.id, node.trial) for node in nodes]


def test_a_study_is_looked_up_in_few_requests(
    mlflow_uri: str, make_nodes: MakeNodes, tmp_path: Path, requests: list[str]
) -> None:
    tracker = MlflowTracker(mlflow_uri)
    one, two = uuid.uuid4().hex[:8], uuid.uuid4().hex[:8]
    nodes = make_nodes(only=("resnet18/dual", "resnet18/swap-frozen/seg"))
    count = len(nodes)
    _, state = open_sweep(tracker, nodes, one)
    assert len(run_all(tracker, state, tmp_path)) == count

    ledger = open_ledger(tracker, one, folder=tmp_path / "memory")
    ledger.lookup(pairs(nodes))  # type: ignore[arg-type]
    requests.clear()
    assert len(ledger.lookup(pairs(nodes))) == count  # type: ignore[arg-type]
    # Each run's two folders of artifacts are listed: that they are there is looked at every time.
    assert len(requests) == 2 * count
    assert not any("search" in path for path in requests)

    ledger = open_ledger(tracker, two, folder=tmp_path / "memory")
    requests.clear()
    assert len(ledger.lookup(pairs(nodes))) == count  # type: ignore[arg-type]
    searches = [path for path in requests if "runs/search" in path]
    assert len(searches) == count + 1

    _, state = open_sweep(tracker, nodes, two)
    assert run_all(tracker, state, tmp_path) == []

    # Data that no other study has is told by one question for all trials.
    ledger = open_ledger(tracker, uuid.uuid4().hex[:8], digest="e" * 64)
    requests.clear()
    other = make_nodes()
    assert ledger.lookup([(n.id, n.trial) for n in other if n.trial]) == {}
    assert len([path for path in requests if "runs/search" in path]) == 1


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A server with 50,000 finished trials in 25 studies, and one key that is among them."""
    with serve(tmp_path):
        pass  # MLflow makes its tables
    rows = list(_runs())
    store = sqlite3.connect(tmp_path / "mlflow.db")
    root = tmp_path / "artifacts"
    with store:
        store.executemany(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, "
            "creation_time, last_update_time) VALUES (?, ?, ?, 'active', 0, 0)",
            [(100 + n, f"study-{n}", f"mlflow-artifacts:/{100 + n}") for n in range(STUDIES)],
        )
        store.executemany(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id,"
            " status, start_time, end_time, deleted_time, source_version, lifecycle_stage, "
            "artifact_uri, experiment_id) VALUES (?, ?, 'UNKNOWN', '', '', '', 'FINISHED', ?, ?, "
            "NULL, '', 'active', ?, ?)",
            [
                (run, name, n, n + 1, f"mlflow-artifacts:/{study}/{run}/artifacts", study)
                for n, (run, name, study, _) in enumerate(rows)
            ],
        )
        store.executemany(
            "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, value, run) for run, _, _, tags in rows for key, value in tags.items()],
        )
        store.executemany(
            "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
            [(f"recipe.p{n}", str(n), run) for run, _, _, _ in rows for n in range(PARAMS)],
        )
    store.close()
    assert not root.exists() or not any(root.iterdir())
    with serve(tmp_path) as server:
        yield server.uri, rows[RUNS // 2][3]["sharedenc.key"]


def _runs() -> Iterator[tuple[str, str, int, dict[str, str]]]:
    content = json.dumps({"recipe": {f"setting_{n}": n for n in range(40)}})
    for number in range(RUNS):
        study = number % STUDIES
        run = f"{number:032x}"
        name = f"resnet18/cell-{number % 44}"
        yield (
            run,
            name,
            100 + study,
            {
                "mlflow.runName": name,
                "mlflow.parentRunId": f"{study:032x}",
                "sharedenc.kind": "trial",
                "sharedenc.study": f"study-{study}",
                "sharedenc.stage": "baseline",
                "sharedenc.cell": name,
                "sharedenc.key": f"{number:064x}",
                "sharedenc.compatible_key": f"{number:063x}c",
                "sharedenc.content": content,
                "sharedenc.state": "done",
                "sharedenc.attempt": "1",
                "sharedenc.data": "d",
                "sharedenc.data_digest": "d" * 64,
            },
        )


@pytest.mark.slow
def test_the_lookup_of_a_grid_among_50_000_runs_takes_seconds(
    crowded: tuple[str, str], make_nodes: MakeNodes
) -> None:
    uri, known = crowded
    tracker = MlflowTracker(uri)
    found = tracker.find("sharedenc.key", [known, "never"])
    assert [len(found[key]) for key in (known, "never")] == [1, 0]
    ledger = open_ledger(tracker, "new")
    trials = [(node.id, node.trial) for node in make_nodes() if node.trial is not None]
    assert len(trials) == 44
    started = time.monotonic()
    assert ledger.lookup(trials) == {}
    strict_s = time.monotonic() - started
    started = time.monotonic()
    assert ledger.lookup(trials, reuse="compatible") == {}
    compatible_s = time.monotonic() - started
    started = time.monotonic()
    told = {ledger.why_not(trial) for _, trial in trials}
    why_s = time.monotonic() - started
    print(f"strict {strict_s:.1f} s, compatible {compatible_s:.1f} s, why not {why_s:.1f} s")
    assert told == {"no run of this cell yet"}
    assert max(strict_s, compatible_s, why_s) < BOUND_S
