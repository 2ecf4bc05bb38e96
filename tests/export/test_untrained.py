"""Graphs before any training: the architectures of the trained ones, made once, and no cells."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from sharedenc.data.packed import PackedDataset
from sharedenc.errors import ExportError, TrackingError
from sharedenc.export import registry as registry_module
from sharedenc.export.calibration import Calibration
from sharedenc.export.folder import export_folder
from sharedenc.export.load import load
from sharedenc.export.onnx import TASKS_OF
from sharedenc.export.registry import export_study
from sharedenc.export.untrained import export_untrained
from sharedenc.spec import BACKBONES, GRAPHS, Graph, Recipe
from tests.export.conftest import alive_network, meta_of

SMALL = Recipe(image_px=64)


@pytest.fixture(scope="module")
def int8(pond: PackedDataset) -> Calibration:
    return Calibration(pack=pond, images=2, shown=False)


def test_they_are_registered_once_and_are_no_cells(
    mlflow_uri: str, int8: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, graphs = "untrained-once", ("seg", "encoder")
    told: list[str] = []
    rows = export_untrained(
        mlflow_uri,
        study,
        ["resnet18"],
        graphs,
        int8=int8,
        recipe=SMALL,
        on_row=lambda row: told.append(row.graph),
    )
    assert told == ["seg", "encoder"]
    assert [(row.outcome, row.model) for row in rows] == [
        ("registered", "pond-resnet18-seg-untrained"),
        ("registered", "pond-resnet18-encoder-untrained"),
    ], [row.reason for row in rows]
    client = MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)
    for row in rows:
        assert len(row.architectures) == 3
        assert "mIoU" not in str(row.accuracy)
        version = client.get_model_version(row.model, row.version)
        assert version.tags["export.state"] == "ready"
        assert version.tags["sharedenc.untrained"] == "true"
        assert version.tags["sharedenc.study"] == study
    run = client.get_run(rows[0].run_id)
    assert run.data.tags["sharedenc.kind"] == "export"
    assert "sharedenc.cell" not in run.data.tags
    assert run.info.status == "FINISHED"
    assert {row.run_id for row in rows} == {run.info.run_id}

    def never(*_given: object, **_more: object) -> None:
        raise AssertionError("exported twice")

    monkeypatch.setattr(registry_module, "export_folder", never)
    for name in (study, "another-study"):
        again = export_untrained(mlflow_uri, name, ["resnet18"], graphs, int8=int8, recipe=SMALL)
        assert [(row.outcome, row.version) for row in again] == [
            ("present", row.version) for row in rows
        ]
    with pytest.raises(TrackingError, match="another-study"):
        export_study(mlflow_uri, "another-study")
    # The study has an experiment and runs, and none of them is a cell that could be exported.
    assert export_study(mlflow_uri, study) == []
    with pytest.raises(ExportError, match="before any training"):
        load(f"models:/{rows[0].model}/{rows[0].version}", mlflow_uri)


@pytest.mark.slow
def test_another_size_is_another_export_and_leaves_the_first(
    mlflow_uri: str, int8: Calibration
) -> None:
    def export(image_px: int) -> str:
        recipe = Recipe(image_px=image_px)
        (row,) = export_untrained(
            mlflow_uri, "untrained-sizes", ["resnet18"], ["seg"], int8=int8, recipe=recipe
        )
        assert row.ready, row.reason
        return row.version

    small, large = export(64), export(96)
    assert small != large
    assert export(64) == small


@pytest.mark.slow
def test_one_that_cannot_be_exported_is_a_row_and_the_others_go_on(
    mlflow_uri: str, int8: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = registry_module.export_folder

    def fails_on_det(network: object, graph: str, *given: object, **more: object) -> object:
        if graph == "det":
            raise ExportError("torch cannot export this")
        return export(network, graph, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(registry_module, "export_folder", fails_on_det)
    rows = export_untrained(
        mlflow_uri,
        "untrained-rows",
        ["resnet18"],
        ["det", "seg"],
        int8=int8,
        recipe=Recipe(image_px=128),
    )
    assert [(row.graph, row.outcome) for row in rows] == [("det", "failed"), ("seg", "registered")]
    assert rows[0].reason == "torch cannot export this"


def assert_same_architectures(
    backbone: str,
    graphs: tuple[Graph, ...],
    uri: str,
    int8: Calibration,
    folder: Path,
) -> None:
    """Random values in every weight, statistics of other pictures: only the structure is shared."""
    rows = export_untrained(
        uri, f"untrained-{backbone}", [backbone], graphs, int8=int8, recipe=SMALL
    )
    for row in rows:
        assert row.ready, row.reason
        graph: Graph = row.graph  # type: ignore[assignment]
        network = alive_network(backbone, TASKS_OF[graph] or ("det", "seg"), seed=5)
        meta = meta_of(network, image_px=64)
        trained = export_folder(network, graph, folder / graph, meta=meta, int8=int8)
        assert trained.int8_reason == ""
        assert trained.manifest.architectures == row.architectures, (backbone, graph)
        assert trained.manifest.model + "-untrained" == row.model


def test_the_architectures_are_those_of_the_trained_network(
    mlflow_uri: str, int8: Calibration, tmp_path: Path
) -> None:
    assert_same_architectures("resnet18", ("dual",), mlflow_uri, int8, tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_and_graph_has_one_architecture_trained_or_not(
    backbone: str, mlflow_uri: str, int8: Calibration, tmp_path: Path
) -> None:
    assert_same_architectures(backbone, GRAPHS, mlflow_uri, int8, tmp_path)
