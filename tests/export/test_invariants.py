"""What must hold of a file before it is registered, on small graphs that break one rule each."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jetson_agent.protocol import Int8Recipe
from sharedenc.errors import ExportError
from sharedenc.export.invariants import check_float, check_int8


def qdq_model(
    *,
    kind: Any = np.int8,
    zero: int = 0,
    scale: float = 0.1,
    opset: int = 13,
    ir: int = 8,
    domain: str = "",
    bias: Any = None,
) -> onnx.ModelProto:
    """images -> Q -> DQ -> Relu -> y, with an int32 bias through DQ if asked for."""
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantise"),
        helper.make_node("Relu", ["d"], ["r"], "relu", domain=domain),
    ]
    tensors = {"s": np.float32(scale), "z": kind(zero)}
    if bias is not None:
        tensors["b"] = np.array([3], dtype=bias)
        nodes.append(helper.make_node("DequantizeLinear", ["b", "s"], ["f"], "bias_dequantise"))
        nodes.append(helper.make_node("Add", ["r", "f"], ["y"]))
    else:
        nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def swish_model(*, identity: bool) -> onnx.ModelProto:
    model = qdq_model()
    model.graph.node[2].CopyFrom(helper.make_node("Sigmoid", ["d"], ["s1"], "sigmoid"))
    name = "inner" if identity else "y"
    model.graph.node.append(helper.make_node("Mul", ["s1", "d"], [name], "swish"))
    if identity:
        model.graph.node.append(helper.make_node("Identity", ["inner"], ["y"]))
    return model


def test_the_small_graph_itself_passes() -> None:
    check_int8(qdq_model(), "trt")
    check_int8(qdq_model(kind=np.uint8, zero=128, bias=np.int32), "cpu")


@pytest.mark.parametrize(
    ("model", "recipe", "names"),
    [
        (qdq_model(bias=np.int32), "trt", "bias_dequantise .INT32"),
        (qdq_model(kind=np.uint8), "trt", "quantise .UINT8"),
        (qdq_model(zero=3), "trt", "zero points other than 0: quantise, dequantise"),
        (qdq_model(opset=12), "trt", r"opset \[12\]; 13 to 20"),
        (qdq_model(opset=21), "cpu", r"opset \[21\]; 13 to 20"),
        (qdq_model(ir=11), "cpu", "IR version 11; at most 10"),
        (qdq_model(domain="com.microsoft"), "cpu", "operator set com.microsoft, relu"),
        (qdq_model(scale=0.0), "cpu", "scales .* quantise, dequantise"),
        (qdq_model(scale=np.inf), "trt", "scales .* quantise, dequantise"),
        (swish_model(identity=False), "trt", r"x \* Sigmoid\(x\): y"),
    ],
)
def test_a_broken_rule_is_told_with_the_nodes_names(
    model: onnx.ModelProto, recipe: Int8Recipe, names: str
) -> None:
    with pytest.raises(ExportError, match=names):
        check_int8(model, recipe)


def test_an_identity_behind_swish_is_enough() -> None:
    check_int8(swish_model(identity=True), "trt")


def test_a_file_without_quantised_layers_is_no_int8_file() -> None:
    model = qdq_model()
    del model.graph.node[:2]
    model.graph.node[0].input[0] = "images"
    check_float(model)
    with pytest.raises(ExportError, match="nothing in it is quantised"):
        check_int8(model, "trt")


def test_a_float_file_must_be_float_and_whole() -> None:
    with pytest.raises(ExportError, match="quantised already: quantise, dequantise"):
        check_float(qdq_model())
    model = qdq_model()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ExportError, match="in other files: s"):
        check_int8(model, "trt")


def test_only_the_first_of_many_offenders_are_named() -> None:
    model = qdq_model()
    for at in range(9):
        model.graph.node.append(helper.make_node("Gelu", ["images"], [f"g{at}"], f"gelu{at}"))
        model.graph.node[-1].domain = "com.microsoft"
    with pytest.raises(ExportError, match="gelu4 and 4 more"):
        check_float(model)
