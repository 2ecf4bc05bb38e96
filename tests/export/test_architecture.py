"""The architecture digest sees what changes the speed, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sharedenc.errors import ExportError
from sharedenc.export.architecture import architecture_digest

FLOAT = TensorProto.FLOAT


def model(
    nodes: list[Any], constants: dict[str, Any], *, output: str = "y", opset: int = 12
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info(output, FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def conv(source: str, weights: str, target: str, **attributes: Any) -> Any:
    return helper.make_node("Conv", [source, weights], [target], kernel_shape=[1, 1], **attributes)


def weights(seed: int, channels: int = 2) -> Any:
    return np.random.default_rng(seed).normal(size=(channels, 2, 1, 1)).astype(np.float32)


def two_branches(seed: int = 0, **attributes: Any) -> onnx.ModelProto:
    return model(
        [
            conv("images", "w1", "a", **attributes),
            conv("images", "w2", "b"),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        {"w1": weights(seed), "w2": weights(seed + 1)},
    )


def test_names_order_weights_and_metadata_do_not_count() -> None:
    renamed = model(
        [
            conv("images", "right", "q"),
            conv("images", "left", "p"),
            helper.make_node("Add", ["p", "q"], ["y"], name="sum", doc_string="a line"),
        ],
        {"left": weights(7), "right": weights(8)},
    )
    helper.set_model_props(renamed, {"key": "another training"})
    assert architecture_digest(renamed) == architecture_digest(two_branches())


def test_equal_weights_stored_once_do_not_count() -> None:
    shared = model(
        [
            helper.make_node("Identity", ["w1"], ["w2"]),
            conv("images", "w1", "a"),
            conv("images", "w2", "b"),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        {"w1": weights(0)},
    )
    assert architecture_digest(shared) == architecture_digest(two_branches())


@pytest.mark.parametrize(
    "other",
    [
        two_branches(strides=[1, 1]),
        # One convolution that is used twice costs half of two.
        model(
            [conv("images", "w1", "a"), helper.make_node("Add", ["a", "a"], ["y"])],
            {"w1": weights(0)},
        ),
        model(
            [
                conv("images", "w1", "a"),
                conv("images", "w2", "b"),
                helper.make_node("Mul", ["a", "b"], ["y"]),
            ],
            {"w1": weights(0), "w2": weights(1)},
        ),
        model(
            [
                conv("images", "w1", "a"),
                conv("images", "w2", "b"),
                helper.make_node("Add", ["a", "b"], ["y"]),
            ],
            {"w1": weights(0, 3), "w2": weights(1, 3)},
        ),
        model(
            [
                conv("images", "w1", "a"),
                conv("images", "w2", "b"),
                helper.make_node("Add", ["a", "b"], ["z"]),
            ],
            {"w1": weights(0), "w2": weights(1)},
            output="z",
        ),
    ],
    ids=["attribute", "shared node", "operator", "shape", "output name"],
)
def test_what_can_change_the_speed_counts(other: onnx.ModelProto) -> None:
    assert architecture_digest(other) != architecture_digest(two_branches())


def resized(scale: float) -> onnx.ModelProto:
    scales = np.array([1, 1, scale, scale], np.float32)
    return model(
        [helper.make_node("Resize", ["images", "", "scales"], ["y"], mode="linear")],
        {"scales": scales},
    )


def transposed(axes: list[int], *, as_node: bool = False) -> onnx.ModelProto:
    value = np.array(axes, np.int64)
    nodes = [helper.make_node("Reshape", ["images", "shape"], ["y"])]
    if as_node:
        tensor = numpy_helper.from_array(value)
        return model([helper.make_node("Constant", [], ["shape"], value=tensor), *nodes], {})
    return model(nodes, {"shape": value})


def test_constants_that_steer_an_operator_count_wherever_they_are_stored() -> None:
    assert architecture_digest(resized(2)) != architecture_digest(resized(4))
    assert architecture_digest(transposed([32])) != architecture_digest(transposed([1, 32]))
    assert architecture_digest(transposed([2, 16])) == architecture_digest(
        transposed([2, 16], as_node=True)
    )


def test_nodes_that_no_output_needs_are_not_seen() -> None:
    extra = two_branches()
    extra.graph.node.append(helper.make_node("Relu", ["a"], ["unused"]))
    assert architecture_digest(extra) == architecture_digest(two_branches())


def test_a_graph_that_is_none_is_refused() -> None:
    with pytest.raises(ExportError, match="'nowhere', which nothing in it produces"):
        architecture_digest(model([helper.make_node("Relu", ["nowhere"], ["y"])], {}))
    loop = [helper.make_node("Relu", ["b"], ["y"]), helper.make_node("Relu", ["y"], ["b"])]
    with pytest.raises(ExportError, match="cycle"):
        architecture_digest(model(loop, {}))
    body = helper.make_graph([], "body", [], [])
    branch = helper.make_node("If", ["images"], ["y"], then_branch=body, else_branch=body)
    with pytest.raises(ExportError, match="If node with a sub-graph"):
        architecture_digest(model([branch], {}))
