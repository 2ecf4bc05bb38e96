"""Predictions: one picture, through torch and through ONNX, at the picture's own size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from sharedenc.cli import main
from sharedenc.errors import DataError, ExportError
from sharedenc.export.load import load, load_with_meta
from sharedenc.export.onnx import ExportInfo
from sharedenc.export.parity import natural_images
from sharedenc.export.predict import onnx_predictor, read_image, torch_predictor
from sharedenc.models.network import Network
from sharedenc.spec import Graph
from sharedenc.training.checkpoint import save_network
from tests.export.conftest import CLASSES, meta_of


@pytest.fixture(scope="module")
def checkpoint(resnet_dual: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    save_network(resnet_dual, path, meta_of(resnet_dual))
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG that is neither square nor of the network's size."""
    image = natural_images(1, 320, seed=2)[0].permute(1, 2, 0).numpy()
    pixels = ((image - image.min()) / (image.max() - image.min()) * 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "pond.jpg"
    assert cv2.imwrite(str(path), cv2.resize(pixels, (500, 260)))
    return path


def test_torch_and_onnx_predict_alike(
    checkpoint: Path, picture: Path, exported: Callable[[Graph], ExportInfo]
) -> None:
    image = read_image(picture)
    ours = torch_predictor(load_with_meta(checkpoint))(image, 0.05)
    theirs = onnx_predictor(exported("dual").path)(image, 0.05)
    assert ours.mask is not None
    assert theirs.mask is not None
    assert ours.mask.shape == theirs.mask.shape == (260, 500)
    assert (ours.mask == theirs.mask).mean() > 0.99
    assert len(ours.boxes) > 0
    assert abs(len(ours.boxes) - len(theirs.boxes)) <= max(2, len(ours.boxes) // 10)
    # Boxes are in the picture's own pixels: wider than high, and within it.
    assert ours.boxes[:, [0, 2]].max() > 260
    assert ours.boxes[:, [0, 2]].max() <= 500
    assert ours.boxes[:, [1, 3]].max() <= 260
    assert (ours.scores >= 0.05).all()
    seg = onnx_predictor(exported("seg").path)(image)
    assert len(seg.boxes) == 0
    assert seg.mask is not None
    assert (seg.mask == theirs.mask).mean() > 0.99
    with pytest.raises(ExportError, match="encoder without heads"):
        onnx_predictor(exported("encoder").path)


def test_load_gives_the_network_of_a_checkpoint(checkpoint: Path, resnet_dual: Network) -> None:
    network = load(checkpoint)
    assert not network.training
    theirs = resnet_dual.state_dict()
    assert all(tensor.equal(theirs[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(ExportError, match="no checkpoint file, no run id"):
        load(checkpoint.parent / "absent.safetensors")


def test_pictures_that_cannot_be_read_are_told_apart(picture: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(picture.read_bytes()[:-400])
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in (cut, empty):
        with pytest.raises(DataError, match=f"{path.name} is not a picture"):
            read_image(path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_image(tmp_path / "absent.jpg")


def test_predict_draws_what_it_can_and_says_what_it_could_not(
    picture: Path, exported: Callable[[Graph], ExportInfo], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    twin = tmp_path / "pond.jpg"
    twin.write_bytes(picture.read_bytes())
    out = tmp_path / "drawn"
    arguments = ["predict", str(exported("dual").path), str(picture), str(bad), str(twin)]
    arguments += ["--out", str(out), "--min-score", "0.05", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == DataError.exit_code
    assert "bad.jpg is not a picture" in result.stderr
    rows = json.loads(result.stdout)["images"]
    assert [Path(row["image"]).name for row in rows] == ["pond.jpg", "bad.jpg", "pond.jpg"]
    assert "error" in rows[1]
    assert rows[0]["output"] != rows[2]["output"]
    assert rows[0]["detections"] == rows[2]["detections"]
    assert {found["class"] for found in rows[0]["detections"]} <= set(CLASSES)
    assert sum(rows[0]["mask_shares"].values()) == pytest.approx(1)
    drawn = read_image(Path(rows[0]["output"]))
    assert drawn.shape == (260, 500, 3)
    assert np.abs(drawn.astype(int) - read_image(picture)).mean() > 1


def test_predict_refuses_a_file_that_is_no_network(picture: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x07 and then nothing")
    arguments = ["predict", str(broken), str(picture), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == ExportError.exit_code
    assert "broken.onnx is not an ONNX file" in result.stderr
    assert not (tmp_path / "out").exists()
