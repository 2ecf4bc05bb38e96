"""Scores through ONNX Runtime: as worked out by hand, and as the trial itself was scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from jetson_agent.protocol import INT8_FILES, MODEL_FILE
from sharedenc.data.packed import PackedDataset, prepare
from sharedenc.export.accuracy import Accuracy, measure_accuracy, score_export
from sharedenc.export.calibration import Calibration
from sharedenc.export.folder import export_folder
from sharedenc.export.load import load_with_meta
from sharedenc.export.metadata import describe, describe_boxes
from sharedenc.export.onnx import OUTPUTS
from sharedenc.models.boxes import WEIGHTS
from sharedenc.models.network import Network
from sharedenc.spec import Cell, Graph, Recipe, Trial, resolve_numerics
from sharedenc.tracking import MemoryTracker
from sharedenc.training.run import TrialJob, run_and_record
from tests.export.conftest import meta_of

TRT, CPU = INT8_FILES["trt"], INT8_FILES["cpu"]
SIDE = 64


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """Photos of 64 x 64 pixels with one post each, which fills the left half."""
    folder = tmp_path_factory.mktemp("posts")
    for split in ("train", "val", "test"):
        (folder / split).mkdir()
        rows: dict[str, list[Any]] = {"images": [], "annotations": []}
        for number in (1, 2, 3):
            picture = np.full((SIDE, SIDE, 3), 40 * number, np.uint8)
            assert cv2.imwrite(str(folder / split / f"{number}.png"), picture)
            size = {"width": SIDE, "height": SIDE}
            rows["images"].append({"id": number, "file_name": f"{number}.png", **size})
            rows["annotations"].append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [0, 0, 32, 64],
                    "area": 2048,
                    "iscrowd": 0,
                    "segmentation": [[0, 0, 32, 0, 32, 64, 0, 64]],
                }
            )
        rows["categories"] = [{"id": 1, "name": "post"}]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    splits = {s: {"images": s, "annotations": f"{s}.json"} for s in ("train", "val", "test")}
    content = {"name": "posts", "classes": ["post"], **splits}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return prepare(folder, cache=folder / "cache", progress=False)


def write_constant_file(path: Path, *, box_height: int, mask_width: int) -> None:
    """A dual graph that finds the same in every photo: one post, from the upper left corner."""
    anchors = np.array([[0, 0, 32, box_height], [0, 0, 8, 8]], np.float32)
    masks = np.zeros((1, 2, SIDE, SIDE), np.float32)
    masks[0, 1, :, :mask_width] = 1
    masks[0, 0, :, mask_width:] = 1
    values = {
        "cls_logits": np.array([[[0, 9], [9, 0]]], np.float32),
        "bbox_regression": np.zeros((1, 2, 4), np.float32),
        "seg_logits": masks,
    }
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in values.items()
    ]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    graph = helper.make_graph(nodes, "constant", [given], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    meta = {"classes": ["post"], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    boxes = describe_boxes(anchors, coder_weights=WEIGHTS, clip=4.0, generator={})
    entries = describe(
        graph="dual",
        meta=meta,
        image_px=SIDE,
        architecture="0" * 64,
        outputs={name: value.shape for name, value in values.items()},
        boxes=boxes,
    )
    helper.set_model_props(model, entries)
    onnx.save(model, str(path))


def test_scores_and_drops_are_those_worked_out_by_hand(
    posts: PackedDataset, tmp_path: Path
) -> None:
    write_constant_file(tmp_path / MODEL_FILE, box_height=64, mask_width=32)
    write_constant_file(tmp_path / TRT, box_height=46, mask_width=0)
    write_constant_file(tmp_path / CPU, box_height=16, mask_width=64)
    files = [MODEL_FILE, TRT, CPU]
    found = measure_accuracy(tmp_path, files, posts, shown=False)
    assert found is not None
    assert (found.images, found.split) == (3, "test")
    assert found.scores["float"] == pytest.approx({"mAP": 1, "mAP50": 1, "mIoU": 1, "pixel_acc": 1})
    # 46 of 64 rows: an overlap of 0.72, which counts at 0.50, 0.55, ... 0.70, five of ten. All is
    # background: half of it is right, and no post is found.
    assert found.scores["int8-trt"] == pytest.approx(
        {"mAP": 0.5, "mAP50": 1, "mIoU": 0.25, "pixel_acc": 0.5}
    )
    assert found.scores["int8-cpu"] == pytest.approx(
        {"mAP": 0, "mAP50": 0, "mIoU": 0.25, "pixel_acc": 0.5}
    )
    metrics = found.metrics("dual")
    assert metrics["export/dual/images"] == 3
    assert metrics["export/dual/float/mAP"] == pytest.approx(1)
    assert metrics["export/dual/int8-trt/mAP"] == pytest.approx(0.5)
    assert metrics["export/dual/int8-trt/mAP_drop"] == pytest.approx(0.5)
    assert metrics["export/dual/int8-cpu/mIoU_drop"] == pytest.approx(0.75)
    assert not [
        name for name in metrics if name.startswith("export/dual/float/") and "drop" in name
    ]

    first = measure_accuracy(tmp_path, [MODEL_FILE], posts, limit=2, shown=False)
    assert first is not None
    assert first.to_dict() == {
        "images": 2,
        "split": "test",
        "float": {"mAP": 1.0, "mAP50": 1.0, "mIoU": 1.0, "pixel_acc": 1.0},
    }
    assert first.drops == {}


def test_a_figure_that_one_file_lacks_has_no_drop() -> None:
    scores = {"float": {"mAP": 0.4, "mIoU": 0.5}, "int8-trt": {"mIoU": 0.45}}
    accuracy = Accuracy(images=1, split="test", scores=scores)
    assert accuracy.drops == {"int8-trt": {"mIoU": pytest.approx(0.05)}}


@pytest.mark.parametrize("graph", ["encoder", "seg"])
def test_a_graph_has_the_scores_of_its_heads(
    graph: Graph, pond: PackedDataset, resnet_dual: Network, tmp_path: Path
) -> None:
    meta = meta_of(resnet_dual, image_px=64)
    done = export_folder(resnet_dual, graph, tmp_path, meta=meta)
    int8 = Calibration(pack=pond, accuracy_images=4, shown=False)
    assert score_export(done, meta, None) is None
    found = score_export(done, meta, int8)
    if OUTPUTS[graph] == ("low", "mid", "high"):
        assert found is None
    else:
        assert found is not None
        assert found.images == 4
        assert set(found.scores) == {"float"}
        assert set(found.scores["float"]) == {"mIoU", "pixel_acc"}


@pytest.mark.slow
def test_the_float_file_scores_what_the_trial_scored(pond: PackedDataset, tmp_path: Path) -> None:
    recipe = Recipe(
        epochs=12,
        batch_size=4,
        image_px=64,
        precision="float32",
        augment=False,
        scheduler="constant",
        early_stop_patience=0,
        calibration_images=8,
    )
    trial = Trial(
        cell=Cell.parse("resnet18/dual"),
        recipe=recipe,
        lr=1e-3,
        seed=0,
        data_digest=pond.digest,
        weights_digest="none",
        numerics=resolve_numerics(recipe, "resnet18", "cpu", "2.14"),
    )
    job = TrialJob(
        trial=trial,
        pack=pond.root,
        weights="none",
        parent=None,
        work_dir=tmp_path / "work",
        device="cpu",
        predictions=False,
    )
    tracker = MemoryTracker(tmp_path / "tracked")
    run = tracker.child("ponds", tracker.study("ponds", {}), "resnet18/dual", {})
    outcome = run_and_record(job, run)
    assert outcome.result is not None, outcome.traceback
    test = outcome.result.test
    assert test["mAP50"] > 0
    assert test["mIoU"] > 0.1

    loaded = load_with_meta(Path(outcome.result.checkpoint))
    int8 = Calibration(pack=pond, images=4, shown=False)
    done = export_folder(loaded.network, "dual", tmp_path / "out", meta=loaded.meta, int8=int8)
    assert done.int8_reason == ""
    found = score_export(done, loaded.meta, int8)
    assert found is not None
    assert found.images == 6
    for name, value in found.scores["float"].items():
        assert value == pytest.approx(test[name], abs=1e-3), name
    # Eight bits cost something, and not everything.
    for kind in ("int8-trt", "int8-cpu"):
        assert 0 < abs(found.drops[kind]["pixel_acc"]) < 0.1
