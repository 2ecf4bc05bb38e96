"""A backbone from a file outside the package: trained, exported and used, each in a new process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[1] / "models" / "example_plugin.py"
NAME = "shufflenet_v2_x0_5"
CELL = f"{NAME}/dual"


@dataclass
class Plugged:
    """The trained cell; afterwards its plugin lies in another folder than while it trained."""

    folder: Path
    plugin: Path
    uri: str
    trained: dict[str, Any]

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return sharedenc(self.folder, self.uri, *arguments, code=code)


def sharedenc(
    folder: Path, uri: str, *arguments: str, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sharedenc", *arguments],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, **environment},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def plugged(
    mlflow_uri: str, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Plugged:
    folder = tmp_path_factory.mktemp("plugged")
    plugin = Path(shutil.copy(PLUGIN, folder / "mine.py"))
    done = sharedenc(
        *(folder, mlflow_uri, "train", CELL, "--plugin", str(plugin), "--json"),
        *("--data", str(tiny_dataset), "--cache-dir", "cache", "--runs-dir", "runs"),
        *("--weights", "none", "--image-px", "96", "--epochs", "1", "--batch-size", "4"),
        *("--precision", "float32", "--calibration-images", "12"),
    )
    (folder / "elsewhere").mkdir()
    moved = Path(shutil.move(plugin, folder / "elsewhere" / "mine.py"))
    return Plugged(folder, moved, mlflow_uri, json.loads(done.stdout))


@pytest.mark.slow
def test_it_is_trained_with_its_own_learning_rate(plugged: Plugged) -> None:
    from sharedenc.tracking import MlflowTracker

    assert plugged.trained["cell"] == CELL
    assert {"mAP", "mIoU"} <= set(plugged.trained["test"])
    runs = MlflowTracker(plugged.uri).runs("train-synthetic")
    (run,) = (run for run in runs if run.run_id == plugged.trained["run_id"])
    assert run.tags["sharedenc.backbone"] == NAME
    assert float(run.params["lr"]) == 5e-4
    assert run.metrics["params/encoder"] == 341_792


@pytest.mark.slow
def test_it_is_exported_and_predicts_like_its_file(plugged: Plugged, tiny_dataset: Path) -> None:
    import onnxruntime

    with_plugin = ("--plugin", str(plugged.plugin), "--json")
    target = (CELL, "--study", "train-synthetic")
    done = plugged.run("export", *target, "--out", "exported", *with_plugin)
    rows = json.loads(done.stdout)["exports"]
    assert [(row["graph"], row["outcome"]) for row in rows] == [
        ("dual", "written"),
        ("encoder", "written"),
    ]
    model = plugged.folder / rows[0]["path"]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes["seg_logits"] == [1, 21, 96, 96]
    assert shapes["cls_logits"][2] == 21

    photo = str(next((tiny_dataset / "images" / "test").glob("*.jpg")))
    found = {}
    # The ONNX file stands for itself; the run needs the plugin to build its network.
    for name, source, more in (
        ("run", plugged.trained["run_id"], with_plugin),
        ("file", str(model), ("--json",)),
    ):
        done = plugged.run("predict", source, photo, "--out", name, "--min-score", "0.01", *more)
        (found[name],) = json.loads(done.stdout)["images"]
        assert Path(plugged.folder, found[name]["output"]).stat().st_size > 0
    one, other = found["run"], found["file"]
    assert one["size"] == other["size"]
    # Boxes near the threshold may differ; the best one of either is the same.
    assert bool(one["detections"]) == bool(other["detections"])
    if one["detections"]:
        scores = [max(d["score"] for d in each["detections"]) for each in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-3)


@pytest.mark.slow
def test_without_the_plugin_its_run_is_refused_by_name(plugged: Plugged) -> None:
    run_id = plugged.trained["run_id"]
    done = plugged.run("predict", run_id, "photo.jpg", "--out", "drawn", code=5)
    assert "mine.py" in done.stderr
    assert "--plugin" in done.stderr
    done = plugged.run("export", CELL, "--study", "train-synthetic", code=2)
    assert f"backbone={NAME!r}" in done.stderr


@pytest.mark.slow
def test_an_installed_backbone_is_found_by_itself(tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    info = site / "outside-1.0.dist-info"
    for folder in (info, elsewhere):
        folder.mkdir(parents=True)
    (site / "outside_backbones.py").write_text(PLUGIN.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sharedenc.backbones]\nmine = outside_backbones\n")
    unknown = sharedenc(elsewhere, "", "train", CELL, code=2)
    assert f"backbone={NAME!r}" in unknown.stderr
    known = sharedenc(elsewhere, "", "train", CELL, code=2, PYTHONPATH=str(site))
    assert "--data DIR is missing" in known.stderr
