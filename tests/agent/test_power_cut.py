"""The plug is pulled at every step of a job; the next start leaves one whole result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from jetson_agent.journal import read_all
from tests.agent import models
from tests.agent.pretending import FIGURES
from tests.agent.publishing import manifest_of, publish

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_power_cut_at_any_step_loses_nothing_and_doubles_nothing(
    mlflow_uri: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    data = f"d{uuid4().hex[:8]}"
    model = models.convolution(tmp_path / "m.onnx")
    publish(mlflow_uri, model, manifest_of(model, "conv", data=data))
    base = tmp_path / data
    base.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.agent.cut_power", str(base), mlflow_uri],
        cwd=ROOT,
        env={**os.environ, "SELECT": f"{data}-*"},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    died = [row for row in rows if row["first"] == 77]
    # Nine states, each with two syncs and a rename; the files and the outbox have their own.
    assert len(died) >= 27, done.stderr
    assert [row["first"] for row in rows[len(died) :]] == [0]
    client = MlflowClient(tracking_uri=mlflow_uri)
    for row in rows:
        assert row["second"] == 0, (row, done.stderr)
        # Once by who died, if it came so far, and at most once more.
        assert row["timed"] in (1, 2), row
        experiment = client.get_experiment_by_name(f"bench/{row['device']}")
        assert experiment is not None, row
        runs = client.search_runs([experiment.experiment_id], "tags.`sharedenc.kind` = 'bench'")
        assert [run.data.metrics for run in runs] == [FIGURES], row
        assert runs[0].info.status == "FINISHED"
        state = base / row["device"]
        assert list(state.glob("outbox/*/*.json")) == []
        assert [entry.state for entry in read_all(state)] == ["REPORTED"]
    # From the moment that the result is in the journal, it is not timed again.
    again = [row["step"] for row in died if row["timed"] == 2]
    assert max(again) - min(again) + 1 == len(again)
    assert len(died) - max(again) >= 9
