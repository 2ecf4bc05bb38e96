"""An exported folder as the sweep side writes it, with networks of one convolution."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from jetson_agent.protocol import ExportManifest
from tests.agent import models


def quantised(path: Path, *, symmetric: bool) -> Path:
    """``y = conv(dq(q(images)))``: int8 around 0 as recipe `trt` has it, or uint8 as `cpu`."""
    dtype, kind = (np.int8, TensorProto.INT8) if symmetric else (np.uint8, TensorProto.UINT8)
    zero = helper.make_tensor("zero", kind, [], np.array([0 if symmetric else 128], dtype))
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
            helper.make_node("Conv", ["dq", "w"], ["y"], pads=[1, 1, 1, 1]),
        ],
        "quantised",
        [value("images", TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [0.03]),
            zero,
            helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def export(folder: Path, *, graph: str = "dual", seed: int = 0) -> Path:
    """The folder, with a float file and both quantised ones."""
    folder.mkdir()
    models.convolution(folder / "model.onnx", seed=seed)
    quantised(folder / "model.int8-trt.onnx", symmetric=True)
    quantised(folder / "model.int8-cpu.onnx", symmetric=False)
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.onnx")}
    manifest = ExportManifest(
        data="voc20",
        backbone="resnet18",
        graph=graph,
        architecture=f"{graph}-float",
        files=files,
        study="study",
        cell=f"resnet18/{graph}",
        key="key",
        architectures={name: f"{graph} {name}" for name in files},
        precisions=["fp32", "int8"],
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder
