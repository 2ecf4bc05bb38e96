"""Exports in a real MLflow registry: complete, found again, and ready only at the very end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

import sharedenc
from jetson_agent.protocol import ExportManifest
from sharedenc.cli import main
from sharedenc.data.packed import PackedDataset
from sharedenc.errors import ExportError, SpecError, TrackingError
from sharedenc.export.calibration import Calibration
from sharedenc.export.load import load_with_meta
from sharedenc.export.registry import Registry, export_study, register_run
from sharedenc.models.network import Network
from sharedenc.tracking import MlflowTracker
from sharedenc.training.checkpoint import save_network
from tests.export.conftest import CLASSES, alive_network, meta_of


@pytest.fixture(scope="module")
def resnet_seg() -> Network:
    return alive_network("resnet18", ("seg",))


class Study:
    """A study on the server whose runs are made by hand; its networks take small images."""

    def __init__(self, uri: str, name: str, folder: Path) -> None:
        self.uri, self.name, self.folder = uri, name, folder
        self.tracker = MlflowTracker(uri)
        self.parent = self.tracker.study(name, {})

    def run(
        self,
        cell: str,
        network: Network | None,
        *,
        state: str = "done",
        reason: str | None = None,
        score: float = 0.5,
        tags: Mapping[str, str] = {},  # never changed
    ) -> str:
        tags = {"sharedenc.cell": cell, "sharedenc.stage": cell.split("/")[1], **tags}
        run = self.tracker.child(self.name, self.parent, cell, tags)
        if network is not None:
            path = self.folder / run.run_id / "best.safetensors"
            path.parent.mkdir(parents=True)
            save_network(network, path, meta_of(network, cell=cell, image_px=64))
            run.artifact(path, "checkpoint")
        run.params({"recipe.nms_iou": 0.4, "recipe.top_k": 123})
        run.metrics({"score": score}, step=1)
        run.end(state, reason)
        return run.run_id


@pytest.fixture
def study(mlflow_uri: str, tmp_path: Path, request: pytest.FixtureRequest) -> Study:
    return Study(mlflow_uri, request.node.name, tmp_path)


@pytest.fixture
def client(mlflow_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)


def of_run(client: MlflowClient, model: str, run_id: str) -> list[Any]:
    found = client.search_model_versions(f"name='{model}'")
    return sorted((v for v in found if v.run_id == run_id), key=lambda v: int(v.version))


def test_a_run_is_registered_once_with_all_that_an_agent_needs(
    study: Study, client: MlflowClient, resnet_seg: Network, tmp_path: Path
) -> None:
    run_id = study.run("resnet18/baseline/seg", resnet_seg)
    (row,) = register_run(study.uri, run_id)
    assert (row.outcome, row.model, row.graph) == ("registered", "pond-resnet18-seg", "seg")
    version = client.get_model_version(row.model, row.version)
    assert version.tags["export.state"] == "ready"
    assert version.source == f"runs:/{run_id}/export/seg"

    manifest = ExportManifest.from_tags(version.tags, run_id=run_id)
    assert manifest.study == study.name
    assert manifest.cell == "resnet18/baseline/seg"
    assert manifest.key == "0" * 64
    (tmp_path / "down").mkdir()
    folder = Path(client.download_artifacts(run_id, "export/seg", str(tmp_path / "down")))
    content = (folder / "model.onnx").read_bytes()
    assert hashlib.sha256(content).hexdigest() == manifest.files["model.onnx"] == row.sha256
    written = ExportManifest.from_json((folder / "manifest.json").read_text())
    assert written.architecture == manifest.architecture == row.architecture
    assert written.classes == list(CLASSES)
    assert written.outputs == ["seg_logits"]
    assert written.input_shape == [1, 3, 64, 64]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_run(run_id).data.tags["sharedenc.state"] == "done"

    (again,) = register_run(study.uri, run_id)
    assert (again.outcome, again.version, again.sha256) == ("present", row.version, row.sha256)
    assert len(of_run(client, row.model, run_id)) == 1


def test_an_interrupted_export_is_completed_in_place(
    study: Study, client: MlflowClient, resnet_seg: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = study.run("resnet18/baseline/seg", resnet_seg)
    tag = Registry._tag

    def dies_before_the_last_tag(
        self: Registry, model: str, version: str, tags: Mapping[str, str]
    ) -> None:
        if "export.state" in tags:
            raise KeyboardInterrupt
        tag(self, model, version, tags)

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "_tag", dies_before_the_last_tag)
        with pytest.raises(KeyboardInterrupt):
            register_run(study.uri, run_id)
    (half,) = of_run(client, "pond-resnet18-seg", run_id)
    assert "export.state" not in half.tags
    (row,) = register_run(study.uri, run_id)
    assert (row.outcome, row.version) == ("registered", str(half.version))
    (whole,) = of_run(client, "pond-resnet18-seg", run_id)
    assert whole.tags["export.state"] == "ready"


def test_a_version_of_another_checkpoint_is_replaced(
    study: Study, client: MlflowClient, resnet_seg: Network
) -> None:
    run_id = study.run("resnet18/baseline/seg", resnet_seg)
    (first,) = register_run(study.uri, run_id)
    client.set_model_version_tag(
        first.model, first.version, "sharedenc.checkpoint_sha256", "of an older attempt"
    )
    (second,) = register_run(study.uri, run_id)
    assert (second.outcome, second.version != first.version) == ("registered", True)
    states = {v.version: v.tags["export.state"] for v in of_run(client, first.model, run_id)}
    assert {str(k): v for k, v in states.items()} == {
        first.version: "replaced",
        second.version: "ready",
    }


def test_a_study_exports_four_graphs_per_backbone_and_names_what_is_missing(
    study: Study, client: MlflowClient, resnet_dual: Network, resnet_seg: Network
) -> None:
    study.run("resnet18/baseline/seg", resnet_seg, score=0.3)
    best = study.run("resnet18/baseline/seg", resnet_seg, score=0.6)
    study.run("resnet18/baseline/det", None, state="failed", reason="loss became NaN")
    dual = study.run("resnet18/dual", resnet_dual)
    study.run("resnet18/baseline/seg", None, score=0.9, tags={"sharedenc.stage": "lr-search"})
    study.run("resnet18/share-frozen/seg", resnet_seg)
    # Its checkpoint is gone: a row of its own, and the others are done.
    study.run("densenet121/baseline/seg", None)
    seen: list[Any] = []
    rows = export_study(study.uri, study.name, on_row=seen.append)
    assert seen == rows
    told = {(row.cell, row.graph): row for row in rows}
    assert len(told) == 8
    assert told["resnet18/baseline/seg", "seg"].run_id == best
    assert told["resnet18/dual", "dual"].run_id == dual
    ready = {key for key, row in told.items() if row.ready}
    assert ready == {
        ("resnet18/baseline/seg", "seg"),
        ("resnet18/dual", "dual"),
        ("resnet18/dual", "encoder"),
    }
    failed = told["resnet18/baseline/det", "det"]
    assert failed.outcome == "missing"
    assert failed.reason == "resnet18/baseline/det is failed: loss became NaN"
    assert told["densenet121/baseline/seg", "seg"].outcome == "failed"
    assert "has no checkpoint" in told["densenet121/baseline/seg", "seg"].reason
    assert told["densenet121/dual", "dual"].reason == "the study has no run of densenet121/dual"

    encoder = told["resnet18/dual", "encoder"]
    loaded = load_with_meta(dual, study.uri)
    assert loaded.meta["study"] == study.name
    assert loaded.meta["recipe"]["top_k"] == 123
    network = sharedenc.load(f"models:/{encoder.model}/{encoder.version}", study.uri)
    assert network.tasks == ("det", "seg")
    ours = resnet_dual.state_dict()
    assert all(tensor.equal(ours[name]) for name, tensor in network.state_dict().items())


def test_runs_that_cannot_be_exported_are_refused(
    study: Study, mlflow_uri: str, resnet_seg: Network
) -> None:
    failed = study.run("resnet18/baseline/seg", None, state="failed", reason="out of memory")
    with pytest.raises(ExportError, match=r"is failed \(out of memory\)"):
        register_run(mlflow_uri, failed)
    with pytest.raises(TrackingError, match="f" * 32):
        register_run(mlflow_uri, "f" * 32)
    with pytest.raises(TrackingError, match="has no study 'never-run'"):
        export_study(mlflow_uri, "never-run")


def test_the_command_registers_a_cell_and_writes_a_run(
    study: Study, resnet_seg: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", study.uri)
    run_id = study.run("resnet18/share-frozen/seg", resnet_seg)
    command = ["export", "resnet18/share-frozen/seg", "--study", study.name, "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["exports"]
    assert (row["outcome"], row["run_id"]) == ("registered", run_id)

    several = ["export", "resnet18/dual", "resnet18/share-frozen/seg", "--study", study.name]
    result = CliRunner().invoke(main, [*several, "--json"])
    assert result.exit_code == ExportError.exit_code
    outcomes = [row["outcome"] for row in json.loads(result.stdout)["exports"]]
    assert outcomes == ["failed", "present"]
    assert "1 of 2 exports failed" in result.stderr

    result = CliRunner().invoke(main, ["export", run_id, "--out", str(tmp_path / "files")])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "files" / "resnet18-share-frozen-seg" / "seg"
    manifest = ExportManifest.from_json((folder / "manifest.json").read_text())
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert set(manifest.files) == {"model.onnx", "reference.npz"}
    assert manifest.files["model.onnx"] == digest
    assert manifest.architecture == row["architecture"]
    assert "no INT8 files and no scores: the data of" in result.stderr

    command = ["export", "--study", study.name, "--out", str(tmp_path / "all"), "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["exports"]
    assert {(row["cell"], row["outcome"]) for row in rows} == {
        ("resnet18/baseline/det", "missing"),
        ("resnet18/baseline/seg", "missing"),
        ("resnet18/dual", "missing"),
    }

    result = CliRunner().invoke(main, ["export", "resnet18/dual", "--study", study.name])
    assert result.exit_code == ExportError.exit_code
    assert "the study has no run of resnet18/dual" in result.stderr
    result = CliRunner().invoke(main, ["export", "resnet18/dual"])
    assert result.exit_code == 2
    assert "Add --study NAME" in result.stderr


@pytest.fixture(scope="module")
def int8(pond: PackedDataset) -> Calibration:
    return Calibration(pack=pond, images=2, accuracy_images=3, shown=False)


def test_int8_files_and_scores_of_every_file_are_registered(
    study: Study, client: MlflowClient, resnet_seg: Network, int8: Calibration, tmp_path: Path
) -> None:
    run_id = study.run("resnet18/baseline/seg", resnet_seg)
    (plain,) = register_run(study.uri, run_id)
    assert (plain.precisions, plain.accuracy) == (["fp32"], {})
    # What was registered without is replaced once INT8 is asked for, and then stays.
    (row,) = register_run(study.uri, run_id, int8=int8)
    assert (row.outcome, row.version != plain.version) == ("registered", True)
    (again,) = register_run(study.uri, run_id, int8=int8)
    assert (again.outcome, again.version) == ("present", row.version)
    assert again.accuracy == row.accuracy
    (less,) = register_run(study.uri, run_id)
    assert (less.outcome, less.version) == ("present", row.version)
    old = client.get_model_version(plain.model, plain.version)
    assert old.tags["export.state"] == "replaced"

    version = client.get_model_version(row.model, row.version)
    manifest = ExportManifest.from_tags(version.tags)
    assert set(manifest.files) == {
        "model.onnx",
        "model.int8-trt.onnx",
        "model.int8-cpu.onnx",
        "reference.npz",
    }
    assert manifest.files == row.files
    assert manifest.architectures == row.architectures
    assert manifest.precisions == ["fp32", "int8", "int8-unscaled"]
    (tmp_path / "down").mkdir()
    folder = Path(client.download_artifacts(run_id, "export/seg", str(tmp_path / "down")))
    for name, digest in manifest.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert json.loads(version.tags["sharedenc.calibration"]) == {
        "images": 2,
        "split": "train",
        "seed": 0,
        "data_digest": int8.pack.digest,
    }

    told = json.loads(version.tags["sharedenc.accuracy"])
    assert (told["images"], told["split"]) == (3, "test")
    assert set(told["cosine"]["int8-trt"]) == {"seg_logits"}
    metrics = client.get_run(run_id).data.metrics
    assert metrics["export/seg/images"] == 3
    for kind in ("float", "int8-trt", "int8-cpu"):
        assert metrics[f"export/seg/{kind}/mIoU"] == pytest.approx(told[kind]["mIoU"], abs=1e-5)
    drop = metrics["export/seg/float/mIoU"] - metrics["export/seg/int8-trt/mIoU"]
    assert metrics["export/seg/int8-trt/mIoU_drop"] == pytest.approx(drop)
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_version_that_lost_a_file_is_made_again(
    study: Study, client: MlflowClient, resnet_seg: Network
) -> None:
    run_id = study.run("resnet18/baseline/seg", resnet_seg)
    (row,) = register_run(study.uri, run_id)
    study.tracker.delete_files(run_id, ["export/seg/reference.npz"])
    (again,) = register_run(study.uri, run_id)
    assert (again.outcome, again.version != row.version) == ("registered", True)
    assert client.get_model_version(row.model, row.version).tags["export.state"] == "replaced"


@pytest.mark.slow
def test_a_failed_int8_leaves_the_float_version_and_says_why(
    study: Study,
    client: MlflowClient,
    resnet_seg: Network,
    int8: Calibration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_given: Any, **_more: Any) -> Any:
        raise ExportError("no kernel for this")

    run_id = study.run("resnet18/baseline/seg", resnet_seg)
    with monkeypatch.context() as patched:
        patched.setattr("sharedenc.export.folder.quantise", fails)
        (row,) = register_run(study.uri, run_id, int8=int8)
        assert (row.outcome, row.int8_reason) == ("registered", "no kernel for this")
        tags = client.get_model_version(row.model, row.version).tags
        assert tags["sharedenc.int8_reason"] == "no kernel for this"
        assert tags["export.state"] == "ready"
        assert ExportManifest.from_tags(tags).precisions == ["fp32"]
        # The float file is scored all the same.
        assert set(row.accuracy) == {"images", "split", "float"}
        (second,) = register_run(study.uri, run_id, int8=int8)
        assert (second.outcome, second.version) == ("present", row.version)
        assert second.int8_reason == "no kernel for this"
    (mended,) = register_run(study.uri, run_id, int8=int8)
    assert (mended.outcome, mended.int8_reason) == ("registered", "")
    assert "int8" in mended.precisions


@pytest.mark.slow
def test_the_command_makes_int8_files_where_the_data_is_at_hand(
    study: Study,
    resnet_seg: Network,
    pond: PackedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", study.uri)
    run_id = study.run("resnet18/share-frozen/seg", resnet_seg)
    out = ["--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(main, ["export", run_id, *out, "--int8"])
    assert result.exit_code == SpecError.exit_code
    assert "--int8 needs photos to calibrate with" in result.stderr
    assert "give --data DIR" in result.stderr

    few = ["--int8-images", "2", "--accuracy-images", "3"]
    result = CliRunner().invoke(main, ["export", run_id, *out, *few, "--data", str(pond.root)])
    assert result.exit_code == 0, result.output
    assert f"all files scored on, {pond.root}" in result.stderr
    (row,) = json.loads(result.stdout)["exports"]
    assert row["accuracy"]["images"] == 3
    assert set(row["architectures"]) == {
        "model.onnx",
        "model.int8-trt.onnx",
        "model.int8-cpu.onnx",
    }

    # Without --data the cache is looked into, by the digest that the run was trained on.
    digest = {"sharedenc.data_digest": pond.digest}
    run_id = study.run("resnet18/share-bias/seg", resnet_seg, tags=digest)
    cache = ["--cache-dir", str(pond.root.parents[1])]
    result = CliRunner().invoke(main, ["export", run_id, *cache, *few])
    assert result.exit_code == 0, result.output
    assert "registered  resnet18/share-bias/seg  seg" in result.stdout
    assert "mIoU 0." in result.stdout
    assert "int8-trt 0." in result.stdout
    result = CliRunner().invoke(main, ["export", run_id, *cache, "--no-int8", *out])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["exports"][0]["precisions"] == ["fp32"]


@pytest.mark.slow
def test_int8_that_was_asked_for_and_failed_is_an_error_of_the_command(
    study: Study, resnet_seg: Network, pond: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_given: Any, **_more: Any) -> Any:
        raise ExportError("no kernel for this")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", study.uri)
    monkeypatch.setattr("sharedenc.export.folder.quantise", fails)
    run_id = study.run("resnet18/baseline/seg", resnet_seg)
    command = ["export", run_id, "--data", str(pond.root), "--accuracy-images", "1", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, [*command, "--int8"])
    assert result.exit_code == ExportError.exit_code
    assert "1 of 1 exports have no INT8 files: no kernel for this" in result.stderr
    (row,) = json.loads(result.stdout)["exports"]
    assert row["int8_reason"] == "no kernel for this"
