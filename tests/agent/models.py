"""Tiny ONNX files, each with one property that a test needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
SHAPE = [1, 3, 8, 8]


def _save(path: Path, graph: onnx.GraphProto) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def _value(name: str, shape: list[int] | list[str], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def convolution(path: Path, seed: int = 0) -> Path:
    """``y = conv(images)``, four channels, seeded weights."""
    weights = np.random.default_rng(seed).standard_normal((4, 3, 3, 3)).astype(np.float32)
    return _save(
        path,
        helper.make_graph(
            [helper.make_node("Conv", ["images", "w"], ["y"], pads=[1, 1, 1, 1])],
            "convolution",
            [_value("images", SHAPE)],
            [_value("y", [1, 4, 8, 8])],
            [helper.make_tensor("w", FLOAT, weights.shape, weights.ravel())],
        ),
    )


def doubling(path: Path) -> Path:
    """``twice = images + images`` and ``negative = -images``: outputs known by hand."""
    return _save(
        path,
        helper.make_graph(
            [
                helper.make_node("Add", ["images", "images"], ["twice"]),
                helper.make_node("Neg", ["images"], ["negative"]),
            ],
            "doubling",
            [_value("images", SHAPE)],
            [_value("twice", SHAPE), _value("negative", SHAPE)],
        ),
    )


def not_a_number(path: Path) -> Path:
    """The logarithm of normal numbers: about half of them are NaN."""
    return _save(
        path,
        helper.make_graph(
            [helper.make_node("Log", ["images"], ["y"])],
            "log",
            [_value("images", SHAPE)],
            [_value("y", SHAPE)],
        ),
    )


def open_batch(path: Path) -> Path:
    """A model whose batch size is a name."""
    return _save(
        path,
        helper.make_graph(
            [helper.make_node("Neg", ["images"], ["y"])],
            "open",
            [_value("images", ["batch", "3"])],
            [_value("y", ["batch", "3"])],
        ),
    )


def endless(path: Path) -> Path:
    """A loop of 2**62 steps: it hangs in native code, where no Python handler runs."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Neg", ["x"], ["next"]),
        ],
        "body",
        [_value("i", [], TensorProto.INT64), _value("go", [], TensorProto.BOOL), _value("x", [1])],
        [_value("go_on", [], TensorProto.BOOL), _value("next", [1])],
    )
    return _save(
        path,
        helper.make_graph(
            [helper.make_node("Loop", ["steps", "yes", "images"], ["y"], body=body)],
            "endless",
            [_value("images", [1])],
            [_value("y", [1])],
            [
                helper.make_tensor("steps", TensorProto.INT64, [], [2**62]),
                helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
            ],
        ),
    )
