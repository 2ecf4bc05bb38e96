"""A network by hand that tells the classes of a drawn data set by their colours, without training.

Its masks and boxes are right often enough for scores that are neither 0 nor 1.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sharedenc.data.batch import IMAGENET_MEAN, IMAGENET_STD
from sharedenc.data.classes import ClassList
from sharedenc.export.metadata import describe, describe_boxes
from sharedenc.models.boxes import MAX_LOG_SCALE, WEIGHTS

CLASSES = ClassList("shapes", ("red one", "green one", "blue one"))
IMAGE_PX = 96
CELL, STEP = 48, 8
GRID = (IMAGE_PX - CELL) // STEP + 1
GREY = (0.45, 0.42, 0.4)


def colours() -> Any:
    """The mean colour of each label, ``[C, 3]`` in 0..1; the background is grey."""
    rows = [GREY]
    for index in range(len(CLASSES.names)):
        hue, saturation = index / len(CLASSES.names), (0.95, 0.6)[index % 2]
        rows.append(tuple(colorsys.hsv_to_rgb(hue, saturation, 0.75)))
    return np.array(rows)


def anchors() -> Any:
    at = np.arange(GRID) * STEP
    left, top = np.meshgrid(at, at)
    corners = np.stack([left, top, left + CELL, top + CELL], -1).reshape(-1, 4)
    return corners.astype(np.float32)


def nearest_colour() -> tuple[Any, Any]:
    """Weights ``[C, 3, 1, 1]`` and bias of ``30 (2 c.p - c.c)``: the logit of the nearest colour.

    The pixel p is 0..1, what comes in is normalised.
    """
    mean, std, rows = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD), colours()
    weights = 60 * rows * std
    bias = 60 * rows @ mean - 30 * (rows**2).sum(axis=1)
    return weights[:, :, None, None].astype(np.float32), bias.astype(np.float32)


def write_colour_network(
    path: Path, *, names: tuple[str, ...] = CLASSES.names, more: Mapping[str, str] | None = None
) -> Path:
    """Write graph ``dual`` to `path`; `more` is further metadata."""
    labels = len(names) + 1
    weights, bias = nearest_colour()
    offsets = np.random.default_rng(0).normal(0, 0.5, (4, labels, 1, 1)).astype(np.float32)
    count = GRID * GRID
    shapes = {
        "cls_logits": [1, count, labels],
        "bbox_regression": [1, count, 4],
        "seg_logits": [1, labels, IMAGE_PX, IMAGE_PX],
    }
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["images", "w", "b"], ["seg_logits"], kernel_shape=[1, 1]),
            node("Softmax", ["seg_logits"], ["shares"], axis=1),
            node(
                "AveragePool",
                ["shares"],
                ["pooled"],
                kernel_shape=[CELL, CELL],
                strides=[STEP, STEP],
            ),
            node("Mul", ["pooled", "gain"], ["scaled"]),
            node("Transpose", ["scaled"], ["last"], perm=[0, 2, 3, 1]),
            node("Reshape", ["last", "by_class"], ["cls_logits"]),
            node("Conv", ["pooled", "o"], ["moved"], kernel_shape=[1, 1]),
            node("Transpose", ["moved"], ["moved_last"], perm=[0, 2, 3, 1]),
            node("Reshape", ["moved_last", "by_side"], ["bbox_regression"]),
        ],
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, IMAGE_PX, IMAGE_PX])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ],
        [
            numpy_helper.from_array(value, name)
            for name, value in {
                "w": weights,
                "b": bias,
                "o": offsets,
                "gain": np.float32(12),
                "by_class": np.array([1, count, labels]),
                "by_side": np.array([1, count, 4]),
            }.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    boxes = describe_boxes(anchors(), coder_weights=WEIGHTS, clip=MAX_LOG_SCALE, generator={})
    meta = {"classes": list(names), "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "recipe": {}}
    entries = describe(
        graph="dual",
        meta=meta,
        image_px=IMAGE_PX,
        outputs=shapes,
        boxes=boxes,
        architecture="0" * 64,
    )
    helper.set_model_props(model, {**entries, **(more or {})})
    onnx.save(model, path)
    return path
