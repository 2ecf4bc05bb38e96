"""The documented example, which knows nothing of torch, finds what our own code finds."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from sharedenc.data.batch import IMAGENET_MEAN, IMAGENET_STD, normalise
from sharedenc.data.packed import RawSample
from sharedenc.data.transforms import eval_transform
from sharedenc.export.onnx import ExportInfo
from sharedenc.export.parity import natural_images
from sharedenc.export.predict import onnx_predictor
from sharedenc.spec import Graph, Recipe

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "decode_onnx.py"
Found = list[tuple[str, float, list[float]]]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("decode_onnx", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def share_found(ones: Found, others: Found) -> float:
    """The share of ``ones`` that are also in ``others``, in whatever order."""
    left = list(others)
    hits = 0
    for name, score, box in ones:
        for other in left:
            same_score = abs(other[1] - score) < 2e-3
            if other[0] == name and same_score and np.abs(np.subtract(other[2], box)).max() < 0.1:
                left.remove(other)
                hits += 1
                break
    return hits / len(ones)


def picture() -> Any:
    image = natural_images(1, 320, seed=11)[0]
    pixels = (image - image.min()) / (image.max() - image.min()) * 255
    return pixels.byte().permute(1, 2, 0).numpy()


def test_the_example_finds_the_same_objects(
    example: ModuleType, exported: Callable[[Graph], ExportInfo]
) -> None:
    # At the network's own size: one grey level of difference would move an untrained network.
    pixels = picture()
    path = exported("dual").path
    theirs: Found = example.detect(str(path), Image.fromarray(pixels))
    predictor = onnx_predictor(path)
    found = predictor(pixels)
    ours: Found = [
        (predictor.labels[label], float(score), box.tolist())
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]
    assert len(ours) >= 20
    assert share_found(theirs, ours) >= 0.95
    assert share_found(ours, theirs) >= 0.95


def test_the_example_feeds_what_the_network_was_trained_on(example: ModuleType) -> None:
    pixels = cv2.resize(picture(), (500, 260))
    sample = RawSample(
        image=pixels,
        label_map=None,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, np.bool_),
        areas=np.zeros(0, np.float32),
        image_id=0,
    )
    ours = normalise(eval_transform(Recipe())(sample).image[None]).numpy()
    spec = {"shape": [1, 3, 320, 320], "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    theirs = example.prepare(Image.fromarray(pixels), spec)
    # Two libraries round to whole grey levels on their own; one level is 0.0175.
    assert np.abs(theirs - ours).max() < 0.04
    assert np.abs(theirs - ours).mean() < 0.002


def test_the_example_needs_neither_torch_nor_this_package() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    names = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert names <= {"__future__", "base64", "json", "sys", "numpy", "onnxruntime", "PIL"}
