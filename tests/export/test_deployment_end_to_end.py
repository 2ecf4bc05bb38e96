"""From two real trainings by way of one assembled graph to a timing and the report's rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient

import sharedenc
from sharedenc.cli import main
from sharedenc.export.parity import natural_images
from sharedenc.report.collect import collect
from sharedenc.tracking import MlflowTracker

STUDY = "frozen-pairs"
CELLS = [
    f"resnet18/{rest}"
    for rest in ("baseline/det", "swap-frozen/seg", "share-frozen/det", "share-frozen/seg", "dual")
]
DEPLOYMENTS = {
    "resnet18/share-frozen": ("resnet18/share-frozen/det", "resnet18/share-frozen/seg"),
    "resnet18/swap-frozen/seg": ("resnet18/baseline/det", "resnet18/swap-frozen/seg"),
}
# Small in size only: images of 64 pixels, one epoch, few photos.
SMALL = ["--image-px", "64", "--epochs", "1", "--batch-size", "4", "--precision", "float32"]
SMALL += ["--cpu-threads", "1", "--calibration-images", "4", "--weights", "none"]
QUICK = ["--threads", "1", "--warmup-s", "0.01", "--duration-s", "0.05", "--runs", "2"]
QUICK += ["--builds", "1", "--repeats", "0", "--preflight-s", "1"]


def command(uri: str, *arguments: str) -> dict[str, Any]:
    result = CliRunner(env={"MLFLOW_TRACKING_URI": uri}).invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output[-3000:]
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def time_all(uri: str, folder: Path) -> dict[str, Any]:
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "jetson_agent", "once", "--tracking-uri", uri, "--json"),
            *("--backend", "onnxruntime", "--device", "pairs", "--state-dir", str(folder)),
            *("--deadline-s", "240", *QUICK),
        ],
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    summary: dict[str, Any] = json.loads(ran.stdout)
    return summary


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_frozen_pairs_are_trained_assembled_scored_recognised_and_collected(
    own_mlflow_uri: str, tiny_dataset: Path, tmp_path: Path
) -> None:
    uri, cache = own_mlflow_uri, str(tmp_path / "cache")
    answer = command(
        *(uri, "sweep", "full-grid", "--name", STUDY, "--data", str(tiny_dataset)),
        *("--cache-dir", cache, "--runs-dir", str(tmp_path / "runs"), "--launcher", "local"),
        *("--device", "cpu", "--no-report", "--no-agent", "--no-preflight"),
        *(part for cell in CELLS for part in ("--only", cell)),
        *SMALL,
    )
    assert {row["cell"]: row["state"] for row in answer["cells"]} == dict.fromkeys(CELLS, "done")
    runs = {
        run.tags["sharedenc.cell"]: run
        for run in MlflowTracker(uri).runs(STUDY)
        if run.tags["sharedenc.kind"] == "trial"
    }
    # The sweep's own exports are timed first, the dual network among them.
    first = time_all(uri, tmp_path / "board")
    assert "dual" in {row["graph"] for row in first["timed"]}

    named = [part for name in DEPLOYMENTS for part in ("--deployment", name)]
    exported = ("export", "--study", STUDY, "--cache-dir", cache, *named)
    rows = {row["deployment"]: row for row in command(uri, *exported)["exports"]}
    assert {name: (row["outcome"], row["graph"]) for name, row in rows.items()} == dict.fromkeys(
        DEPLOYMENTS, ("registered", "dual")
    )
    images = natural_images(2, 64, seed=4)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    for name, (det, seg) in DEPLOYMENTS.items():
        row = rows[name]
        network = sharedenc.load(f"models:/{row['model']}/{row['version']}", uri)
        with torch.no_grad():
            ours = network(images)
            theirs = {
                key: value
                for cell in (det, seg)
                for key, value in sharedenc.load(runs[cell].run_id, uri)(images).items()
            }
        assert ours.keys() == theirs.keys()
        for output, values in ours.items():
            assert values.equal(theirs[output]), (name, output)
        # So its file scores what the two trials scored, on the same photos.
        scores = row["accuracy"]["float"]
        assert row["accuracy"]["images"] == 6
        assert scores["mIoU"] == pytest.approx(runs[seg].metrics["test/mIoU"], abs=2e-3)
        assert scores["mAP"] == pytest.approx(runs[det].metrics["test/mAP"], abs=2e-3)
        tags = client.get_model_version(row["model"], row["version"]).tags
        parts = {"det": runs[det].run_id, "seg": runs[seg].run_id}
        assert json.loads(tags["sharedenc.parts"]) == parts

    # The board has figures of these very architectures: nothing is timed again.
    second = time_all(uri, tmp_path / "board")
    assert second["timed"] == []
    again = command(uri, *exported)["exports"]
    assert [(row["outcome"], row["version"]) for row in again] == [
        ("present", rows[name]["version"]) for name in DEPLOYMENTS
    ]

    found = collect(uri, STUDY)
    exports = {export.cell: export for export in found.exports if export.graph == "dual"}
    assert set(exports) == {"resnet18/dual", *DEPLOYMENTS}
    for name in DEPLOYMENTS:
        assert set(exports[name].scores) == {"float", "int8-trt", "int8-cpu"}
        assert exports[name].version == int(rows[name]["version"])
    timed = {row.precision for row in found.timings if row.graph == "dual"}
    assert {"fp32", "int8"} <= timed
    # What is assembled is no trial of the study.
    assert {trial.cell for trial in found.final} == set(CELLS)
