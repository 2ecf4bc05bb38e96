"""One trial's loss explodes: it fails by name, and the rest of the study goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sharedenc.cli import main
from sharedenc.tracking import MlflowTracker

EXPLODING = "resnet18/baseline/det"
DEPENDENT = "resnet18/swap-frozen/seg"
SOUND = "mobilenet_v3_large/share-frozen/seg"


@pytest.mark.slow
def test_a_study_outlives_a_loss_that_is_not_finite(
    tiny_dataset: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    runs_dir = tmp_path / "runs"
    command = ["sweep", "full-grid", "--name", "exploding", "--data", str(tiny_dataset), "--json"]
    command += ["--launcher", "local", "--device", "cpu", "--weights", "none"]
    command += ["--runs-dir", str(runs_dir), "--cache-dir", str(tmp_path / "cache")]
    command += ["--only", DEPENDENT, "--only", SOUND, "--lr", "resnet18=1e30"]
    command += ["--image-px", "64", "--epochs", "1", "--batch-size", "4"]
    command += ["--precision", "float32", "--calibration-images", "4"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1, result.output
    answer = json.loads(result.stdout)
    assert answer["exit_code"] == 1
    rows = {row["cell"]: row for row in answer["cells"]}
    assert {cell: row["state"] for cell, row in rows.items()} == {
        EXPLODING: "failed",
        DEPENDENT: "skipped",
        SOUND: "done",
    }
    reason = rows[EXPLODING]["reason"]
    assert "loss is " in reason
    assert f"{EXPLODING}, epoch 1" in reason
    assert "Lower --lr" in reason
    assert EXPLODING in rows[DEPENDENT]["reason"]
    # Before the summary, standard error says of both what became of them.
    for cell in (EXPLODING, DEPENDENT):
        assert f"{cell}: {rows[cell]['state']}: {rows[cell]['reason']}" in result.stderr

    runs = {run.name: run for run in MlflowTracker(mlflow_uri).runs("exploding")}
    failed = runs[EXPLODING]
    assert failed.status == "FAILED"
    assert failed.tags["sharedenc.failure_kind"] == "code"
    assert failed.tags["sharedenc.reason"] == reason
    assert "NonFiniteLossError" in failed.tags["sharedenc.traceback"]
    skipped = runs[DEPENDENT]
    assert skipped.tags["sharedenc.state"] == "skipped"
    assert skipped.tags["sharedenc.reason"] == rows[DEPENDENT]["reason"]
    assert "test/mIoU" not in skipped.metrics
    assert "test/mIoU" in runs[SOUND].metrics

    status = CliRunner().invoke(main, ["sweep", "status", "exploding", "--json"])
    assert status.exit_code == 0, status.output
    told = {
        row["cell"]: (row["state"], row["reason"]) for row in json.loads(status.stdout)["cells"]
    }
    assert told == {cell: (row["state"], row["reason"]) for cell, row in rows.items()}
    # Whoever opens the page later finds the failure and its reason, too.
    page = (runs_dir / "studies" / "exploding" / "report" / "index.html").read_text()
    assert "failed (code)" in page
    assert "Lower --lr" in page
