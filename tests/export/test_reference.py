"""Reference outputs are what ONNX Runtime gives for each file, and can be read without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from jetson_agent.protocol import INT8_FILES, MODEL_FILE, REFERENCE_FILE
from sharedenc.data.packed import PackedDataset
from sharedenc.data.transforms import eval_transform
from sharedenc.errors import DataError
from sharedenc.export.calibration import pack_at_hand, training_photos
from sharedenc.export.reference import cosine, write_reference
from sharedenc.spec import Recipe


def write_scaling_file(path: Path, factor: float, side: int, channels: int) -> None:
    """``small`` is the image times a factor; ``large`` repeats it along the channels."""
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])
    outputs = [
        helper.make_tensor_value_info("small", TensorProto.FLOAT, [1, 3, side, side]),
        helper.make_tensor_value_info("large", TensorProto.FLOAT, [1, channels, side, side]),
    ]
    nodes = [
        helper.make_node("Mul", ["images", "factor"], ["small"]),
        helper.make_node("Tile", ["small", "times"], ["large"]),
    ]
    constants = [
        helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]),
        helper.make_tensor("times", TensorProto.INT64, [4], [1, channels // 3, 1, 1]),
    ]
    graph = helper.make_graph(nodes, "scaling", [given], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))


def test_every_output_of_every_file_is_kept_and_large_ones_thinned(tmp_path: Path) -> None:
    side, channels = 96, 120  # 120 x 96 x 96 is 1.05 times 2^20
    write_scaling_file(tmp_path / MODEL_FILE, 2.0, side, channels)
    write_scaling_file(tmp_path / INT8_FILES["trt"], -3.0, side, channels)
    images = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    files = [MODEL_FILE, INT8_FILES["trt"]]
    cosines = write_reference(tmp_path, images, files, source="noise")
    assert cosines == {
        INT8_FILES["trt"]: {"small": pytest.approx(-1), "large": pytest.approx(-1)},
    }
    with np.load(tmp_path / REFERENCE_FILE, allow_pickle=False) as kept:
        assert kept["images"].dtype == np.float32
        assert np.array_equal(kept["images"], images)
        assert str(kept["source"]) == "noise"
        for name, factor in ((MODEL_FILE, 2), (INT8_FILES["trt"], -3)):
            assert np.allclose(kept[f"{name}:small"], factor * images)
            assert f"{name}:small:stride" not in kept
            stride = int(kept[f"{name}:large:stride"])
            thinned = kept[f"{name}:large"]
            whole = factor * np.tile(images, (1, channels // 3, 1, 1))
            assert stride > 1
            assert np.allclose(thinned, whole[:, :, ::stride, ::stride])
            assert thinned[0].size <= 2**18


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    write_scaling_file(tmp_path / MODEL_FILE, 2.0, 8, 3)
    images = np.ones((1, 3, 8, 8), np.float32)
    written = []
    for _ in range(2):
        write_reference(tmp_path, images, [MODEL_FILE], source="ones")
        written.append((tmp_path / REFERENCE_FILE).read_bytes())
    assert written[0] == written[1]


def test_the_file_for_tensorrt_is_computed_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused integer kernels saturate on CPUs without VNNI; which this machine has is chance."""
    asked: dict[str, str] = {}
    open_file = onnxruntime.InferenceSession

    def record(path: str, options: Any, **more: Any) -> Any:
        asked[Path(path).name] = options.get_session_config_entry("session.disable_quant_qdq")
        return open_file(path, options, **more)

    monkeypatch.setattr("sharedenc.export.parity.onnxruntime.InferenceSession", record)
    files = [MODEL_FILE, *INT8_FILES.values()]
    for name in files:
        write_scaling_file(tmp_path / name, 2.0, 8, 3)
    write_reference(tmp_path, np.ones((1, 3, 8, 8), np.float32), files, source="ones")
    assert asked == {MODEL_FILE: "0", INT8_FILES["trt"]: "1", INT8_FILES["cpu"]: "0"}


def test_the_cosine_is_that_of_whole_arrays() -> None:
    ones = np.array([[3, 0], [0, 4]], np.float32)
    assert cosine(ones, ones * 7) == pytest.approx(1)
    assert cosine(ones, np.array([[4, 0], [0, -3]], np.float32)) == pytest.approx(0)
    assert cosine(ones, np.array([[3, 4], [0, 0]], np.float32)) == pytest.approx(9 / 25)
    assert cosine(ones, np.zeros((2, 2), np.float32)) == 0


def test_photos_are_a_seeded_draw_from_the_training_split(pond: PackedDataset) -> None:
    split = pond.split("train")
    photos = [*training_photos(split, 5, 64)]
    again = [*training_photos(split, 5, 64)]
    assert len(photos) == 5
    assert all(np.array_equal(a, b) for a, b in zip(photos, again, strict=True))
    others = [*training_photos(split, 5, 64, seed=1)]
    assert not all(np.array_equal(a, b) for a, b in zip(photos, others, strict=True))
    # Fewer are the beginning of more, more than there are is all, and none comes twice.
    assert np.array_equal(next(training_photos(split, 1, 64)), photos[0])
    everything = {photo.tobytes() for photo in training_photos(split, 100, 64)}
    assert len(everything) == len(split) == 8
    pixels = eval_transform(Recipe(image_px=64))(split[0]).image.double().numpy() / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    first = (pixels - mean[:, None, None]) / std[:, None, None]
    assert any(
        np.abs(np.frombuffer(photo, np.float32) - first.ravel()).max() < 1e-4
        for photo in everything
    )


def test_an_empty_training_split_is_refused() -> None:
    class Empty(list[object]):
        split = "train"

    with pytest.raises(DataError, match="train split has no images"):
        next(training_photos(Empty(), 5, 64))  # type: ignore[arg-type]


def test_the_pack_of_a_network_is_found_in_the_cache(pond: PackedDataset) -> None:
    cache = pond.root.parents[1]
    found = pack_at_hand({"data_digest": pond.digest}, cache)
    assert found is not None
    assert found.root == pond.root
    assert pack_at_hand({"data_digest": pond.digest[:16] + "0" * 48}, cache) is None
    assert pack_at_hand({"data_digest": "1" * 64}, cache) is None
    assert pack_at_hand({}, cache) is None
