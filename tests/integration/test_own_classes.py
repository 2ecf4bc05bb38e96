"""People's own data: twelve classes of their own names, from a `data.yaml` to a report."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from jetson_agent.protocol import COMPARISON
from sharedenc.cli import main
from tests.integration.drawn_data import NAMES, QUARTERS, class_of, write_own_classes

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from sharedenc.tracking import RunRecord

STUDY = "workshop-study"
BACKBONE = "mobilenet_v3_large"
CELLS = [f"{BACKBONE}/{rest}" for rest in ("baseline/det", "baseline/seg", "swap-frozen/seg")]
CELLS.append(f"{BACKBONE}/dual")
IMAGE_PX = 96
# Names as MLflow takes them: no brackets, and "/" would open a folder. Letters of any script stay.
METRIC_NAMES = {"wine glass (full)": "wine glass _full_", "left/right arrow": "left_right arrow"}


@dataclass
class Workshop:
    """The data set and the study that was trained and exported on it."""

    data: Path
    folder: Path
    uri: str
    answer: dict[str, Any]

    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def runs(self) -> dict[str, RunRecord]:
        from sharedenc.tracking import MlflowTracker

        runs = MlflowTracker(self.uri).runs(STUDY)
        return {
            run.tags["sharedenc.cell"]: run for run in runs if run.tags["sharedenc.kind"] == "trial"
        }


def command(uri: str, *arguments: str) -> Result:
    result = CliRunner(env={"MLFLOW_TRACKING_URI": uri}).invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def workshop(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    data = write_own_classes(folder / "data")
    result = command(
        *(mlflow_uri, "sweep", "full-grid", "--name", STUDY, "--data", str(data), "--json"),
        *("--cache-dir", str(folder / "cache"), "--runs-dir", str(folder / "runs")),
        *("--launcher", "local", "--device", "cpu", "--weights", "none", "--no-report"),
        *(part for cell in CELLS for part in ("--only", cell)),
        *("--image-px", str(IMAGE_PX), "--epochs", "1", "--batch-size", "6"),
        *("--precision", "float32", "--calibration-images", "12"),
    )
    return Workshop(data, folder, mlflow_uri, json.loads(result.stdout))


@pytest.mark.slow
@pytest.mark.long
def test_labels_follow_names_whatever_the_ids(workshop: Workshop) -> None:
    from sharedenc.data.packed import prepare

    pack = prepare(workshop.data, cache=workshop.folder / "cache", progress=False)
    assert (pack.name, pack.classes.names) == ("workshop", NAMES)
    assert pack.tasks == ("det", "seg")
    labels = ("background", *NAMES)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        samples = pack.split(split)
        assert len(samples) == count
        seen = set()
        for sample in samples:
            assert sample.label_map is not None
            corners = sorted((x, y, x + w, y + h) for x, y, w, h in QUARTERS)
            assert sorted(map(tuple, sample.boxes.tolist())) == corners
            for (x1, y1, x2, y2), label in zip(sample.boxes, sample.labels, strict=True):
                row, column = int(y1 + y2) // 2, int(x1 + x2) // 2
                name = class_of(sample.image[row, column])
                assert labels[label] == labels[sample.label_map[row, column]] == name
                seen.add(name)
            assert class_of(sample.image[2, 2]) == labels[sample.label_map[2, 2]] == "background"
        assert seen == set(NAMES)


@pytest.mark.slow
@pytest.mark.long
def test_every_strategy_trains_and_scores_by_the_own_names(workshop: Workshop) -> None:
    rows = {row["cell"]: row for row in workshop.answer["cells"]}
    assert {cell: row["state"] for cell, row in rows.items()} == dict.fromkeys(CELLS, "done")
    runs = workshop.runs()
    assert set(runs) == set(CELLS)
    names = {METRIC_NAMES.get(name, name) for name in NAMES}
    for cell, run in runs.items():
        assert json.loads(run.tags["sharedenc.classes"]) == list(NAMES)
        assert run.tags["sharedenc.data"] == "workshop"
        found = {
            kind: {
                name.removeprefix(f"test/{kind}_class/")
                for name in run.metrics
                if name.startswith(f"test/{kind}_class/")
            }
            for kind in ("AP", "IoU")
        }
        tasks = ("det", "seg") if cell.endswith("dual") else (cell.rsplit("/", 1)[1],)
        assert found["AP"] == (names if "det" in tasks else set()), cell
        assert found["IoU"] == ({*names, "background"} if "seg" in tasks else set()), cell
        # A mean over the 12 classes (and background), and of nothing else.
        if "det" in tasks:
            each = [run.metrics[f"test/AP_class/{name}"] for name in names]
            assert run.metrics["test/mAP"] == pytest.approx(sum(each) / 12)
        if "seg" in tasks:
            each = [run.metrics[f"test/IoU_class/{name}"] for name in (*names, "background")]
            assert run.metrics["test/mIoU"] == pytest.approx(sum(each) / 13)


@pytest.mark.slow
@pytest.mark.long
def test_exports_carry_the_own_names_and_thirteen_channels(workshop: Workshop) -> None:
    import onnxruntime

    from jetson_agent.protocol import ExportManifest
    from sharedenc.export.registry import export_study

    rows = export_study(workshop.uri, STUDY)
    # The sweep has registered them all.
    assert [(row.cell, row.graph, row.outcome) for row in rows] == [
        (f"{BACKBONE}/baseline/det", "det", "present"),
        (f"{BACKBONE}/baseline/seg", "seg", "present"),
        (f"{BACKBONE}/dual", "dual", "present"),
        (f"{BACKBONE}/dual", "encoder", "present"),
    ]
    client = workshop.client()
    for row in rows:
        assert row.model == f"workshop-{BACKBONE}-{row.graph}"
        version = client.get_model_version(row.model, row.version)
        manifest = ExportManifest.from_tags(version.tags, run_id=row.run_id)
        assert version.tags["export.state"] == "ready"
        assert manifest.study == STUDY
        to = workshop.folder / row.graph
        to.mkdir()
        folder = Path(client.download_artifacts(row.run_id, f"export/{row.graph}", str(to)))
        written = ExportManifest.from_json((folder / "manifest.json").read_text())
        assert written.classes == list(NAMES)
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", providers=["CPUExecutionProvider"]
        )
        entries = session.get_modelmeta().custom_metadata_map
        assert json.loads(entries["sharedenc.classes"]) == ["background", *NAMES]
        assert entries["sharedenc.data"] == "workshop"
        shapes = {output.name: output.shape for output in session.get_outputs()}
        if row.graph in ("seg", "dual"):
            assert shapes["seg_logits"] == [1, 13, IMAGE_PX, IMAGE_PX]
        if row.graph in ("det", "dual"):
            batch, anchors, channels = shapes["cls_logits"]
            assert (batch, channels) == (1, 13)
            assert shapes["bbox_regression"] == [1, anchors, 4]
        if row.graph == "encoder":
            assert set(shapes) == {"low", "mid", "high"}


@pytest.mark.slow
@pytest.mark.long
def test_the_report_holds_timings_and_marks_published_numbers(workshop: Workshop) -> None:
    uri, folder = workshop.uri, workshop.folder
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "jetson_agent", "once", "--tracking-uri", uri, "--json"),
            *("--device", "workshop-board", "--select", "workshop-*", "--threads", "1"),
            *("--state-dir", str(folder / "agent"), "--deadline-s", "240"),
            *("--warmup-s", "0.01", "--duration-s", "0.05"),
        ],
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    timed = json.loads(ran.stdout)["timed"]
    assert {row["graph"] for row in timed} == {"det", "dual", "encoder", "seg", COMPARISON}
    assert {row["verdict"] for row in timed} <= {"valid", "suspect"}

    out = folder / "report"
    command(uri, "report", STUDY, "--out", str(out))
    runs = workshop.runs()
    with (out / "tables" / "table_4.4.csv").open(newline="") as file:
        table = {row["backbone"]: row for row in csv.DictReader(file)}
    assert table[BACKBONE]["data set"] == "workshop"
    own = float(table[BACKBONE]["mIoU [fraction] ours"])
    assert own == pytest.approx(runs[f"{BACKBONE}/baseline/seg"].metrics["test/mIoU"])
    # 13 channels in the last convolution, not 21: counted on the network that was trained.
    millions = float(table[BACKBONE]["parameters [million] ours"])
    assert millions == pytest.approx(runs[f"{BACKBONE}/baseline/seg"].metrics["params/total"] / 1e6)
    # Every published score is called a reference on other data, in each form of the table.
    heads = [head for head in table[BACKBONE] if "mIoU" in head]
    assert heads == ["mIoU [fraction] ours", "mIoU [fraction] reference (other data)"]
    text = (out / "tables" / "table_4.4.md").read_text()
    assert "data set workshop (12 classes and background)" in text
    assert "mIoU reference (other data)" in text
    assert "mIoU published" not in text
    page = (out / "index.html").read_text()
    assert "beside this data set they are a reference and no comparison" in page
    assert "workshop-board" in page
    with (out / "tables" / "table_A.2.csv").open(newline="") as file:
        timings = [row for row in csv.DictReader(file) if row["backbone"] == BACKBONE]
    (fp32,) = (row for row in timings if row["precision"] == "fp32")
    for graph in ("encoder", "det", "seg", "dual"):
        assert float(fp32[f"{graph} latency [ms] ours"]) > 0
