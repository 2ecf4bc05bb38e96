"""One exported folder: every file that its manifest names, each with its own evidence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from jetson_agent.protocol import (
    INT8_FILES,
    MODEL_FILE,
    REFERENCE_FILE,
    ExportManifest,
)
from sharedenc.data.packed import PackedDataset
from sharedenc.errors import ExportError
from sharedenc.export import folder as folder_module
from sharedenc.export.architecture import architecture_digest
from sharedenc.export.calibration import Calibration, training_photos
from sharedenc.export.folder import Exported, export_folder
from sharedenc.export.predict import onnx_predictor
from sharedenc.models.network import Network
from tests.export.conftest import CLASSES, meta_of

ONNX_FILES = (MODEL_FILE, *INT8_FILES.values())


@pytest.fixture(scope="module")
def int8(pond: PackedDataset) -> Calibration:
    return Calibration(pack=pond, images=4, shown=False)


@pytest.fixture(scope="module")
def whole(
    resnet_dual: Network, int8: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A dual graph with its INT8 files; tests must not change them."""
    meta = meta_of(resnet_dual, image_px=64)
    return export_folder(
        resnet_dual, "dual", tmp_path_factory.mktemp("whole") / "dual", meta=meta, int8=int8
    )


def test_the_manifest_names_every_file_and_its_digest(whole: Exported) -> None:
    assert whole.int8_reason == ""
    manifest = ExportManifest.from_json((whole.folder / "manifest.json").read_text())
    assert manifest == whole.manifest
    assert set(manifest.files) == {*ONNX_FILES, REFERENCE_FILE}
    on_disk = {path.name for path in whole.folder.iterdir()}
    assert on_disk == {*manifest.files, "manifest.json"}
    for name, digest in manifest.files.items():
        assert hashlib.sha256((whole.folder / name).read_bytes()).hexdigest() == digest
    assert manifest.precisions == ["fp32", "int8", "int8-unscaled"]
    assert whole.onnx_files == list(ONNX_FILES)


def test_each_file_says_its_own_architecture(whole: Exported) -> None:
    architectures = whole.manifest.architectures
    assert list(architectures) == list(ONNX_FILES)
    assert len(set(architectures.values())) == 3
    assert architectures[MODEL_FILE] == whole.manifest.architecture
    for name, digest in architectures.items():
        model = onnx.load(str(whole.folder / name))
        told = {entry.key: entry.value for entry in model.metadata_props}
        assert told["sharedenc.architecture"] == digest == architecture_digest(model)
        if name != MODEL_FILE:
            made = json.loads(told["sharedenc.int8"])["calibration"]
            assert (made["images"], made["split"]) == (4, "train")


def test_references_are_training_photos_and_what_each_file_gives_for_them(
    whole: Exported, pond: PackedDataset
) -> None:
    with np.load(whole.folder / REFERENCE_FILE, allow_pickle=False) as kept:
        images = kept["images"]
        expected = np.stack([*training_photos(pond.split("train"), 2, 64)])
        assert np.array_equal(images, expected)
        assert str(kept["source"]) == f"train split of pond ({pond.digest[:16]})"
        for name in ONNX_FILES:
            options = onnxruntime.SessionOptions()
            if name == INT8_FILES["trt"]:
                options.add_session_config_entry("session.disable_quant_qdq", "1")
            session = onnxruntime.InferenceSession(
                str(whole.folder / name), options, providers=["CPUExecutionProvider"]
            )
            for output in ("cls_logits", "bbox_regression", "seg_logits"):
                (values,) = session.run([output], {"images": images[1:]})
                assert np.allclose(kept[f"{name}:{output}"][1:], values, atol=1e-4)
    for cosines in whole.cosines.values():
        assert all(0.9 < value < 1 for value in cosines.values())


def test_a_predictor_reads_an_int8_file_like_the_float_one(
    whole: Exported, pond: PackedDataset, tmp_path: Path
) -> None:
    picture = pond.split("test")[0].image
    masks = {name: onnx_predictor(whole.folder / name)(picture).mask for name in ONNX_FILES}
    exact = masks.pop(MODEL_FILE)
    assert exact is not None
    for mask in masks.values():
        assert mask is not None
        assert mask.shape == picture.shape[:2]
        assert (mask == exact).mean() > 0.8


def test_without_data_the_references_are_noise_and_say_so(
    resnet_dual: Network, tmp_path: Path
) -> None:
    done = export_folder(resnet_dual, "seg", tmp_path, meta=meta_of(resnet_dual, image_px=64))
    assert set(done.manifest.files) == {MODEL_FILE, REFERENCE_FILE}
    assert done.manifest.precisions == ["fp32"]
    with np.load(tmp_path / REFERENCE_FILE, allow_pickle=False) as kept:
        assert str(kept["source"]) == "photo-like noise"
        assert kept["images"].shape == (2, 3, 64, 64)


def test_a_failed_int8_costs_both_files_and_leaves_the_float_one(
    resnet_dual: Network, int8: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantise = folder_module.quantise

    def fails_at_the_second(*given: Any, **more: Any) -> Any:
        if given[2] == "cpu":
            raise KeyError("a tensor that nobody knows")
        return quantise(*given, **more)

    monkeypatch.setattr(folder_module, "quantise", fails_at_the_second)
    done = export_folder(
        resnet_dual, "seg", tmp_path, meta=meta_of(resnet_dual, image_px=64), int8=int8
    )
    assert "a tensor that nobody knows" in done.int8_reason
    assert {path.name for path in tmp_path.iterdir()} == {
        MODEL_FILE,
        REFERENCE_FILE,
        "manifest.json",
    }
    assert done.manifest.architectures == {MODEL_FILE: done.info.architecture}
    assert done.manifest.precisions == ["fp32"]


def test_what_an_earlier_export_left_is_not_taken_for_its_own(
    resnet_dual: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*INT8_FILES.values(), "manifest.json"):
        (tmp_path / name).write_text("of another network")
    meta = meta_of(resnet_dual, image_px=64)
    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "write_reference", _dies)
        with pytest.raises(KeyboardInterrupt):
            export_folder(resnet_dual, "seg", tmp_path, meta=meta)
    # Interrupted: no manifest that would make it look finished.
    assert {path.name for path in tmp_path.iterdir()} == {MODEL_FILE}


def _dies(*_given: Any, **_more: Any) -> Any:
    raise KeyboardInterrupt


def test_data_of_other_classes_is_refused(
    resnet_dual: Network, int8: Calibration, tmp_path: Path
) -> None:
    meta = meta_of(resnet_dual, image_px=64, classes=["cat", "dog", "goose"])
    with pytest.raises(ExportError, match=r"'pond' has the classes cat, dog, rubber duck.*goose"):
        export_folder(resnet_dual, "seg", tmp_path, meta=meta, int8=int8)
    assert CLASSES == int8.pack.classes.names
    with pytest.raises(ExportError, match="images=0 must be at least 1"):
        Calibration(pack=int8.pack, images=0)
