"""Parts of an ONNX graph that quantisation treats apart, found by structure alone."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

# What lies between a global pooling and the Mul that applies the gate.
_GATE_STEPS = ("Conv", "Relu", "Sigmoid", "HardSigmoid", "Clip", "HardSwish")


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that computes each value, by the value's name."""
    return {name: node for node in graph.node for name in node.output}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each value, by the value's name."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def is_swish(node: onnx.NodeProto | None, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether ``node`` is the Mul of ``x * Sigmoid(x)``."""
    if node is None or node.op_type != "Mul":
        return False
    for gate, value in (node.input, reversed(node.input)):
        maker = makers.get(gate)
        if maker is not None and maker.op_type == "Sigmoid" and maker.input[0] == value:
            return True
    return False


def gate_convolutions(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Names of the convolutions of squeeze-and-excitation gates and the like, in the graph's order.

    A gate is what follows a GlobalAveragePool up to the Mul that applies it: convolutions of a map
    of one cell, whose rounding would scale whole channels and whose speed does not matter.
    """
    makers = producers(graph)
    inside: set[str] = set()
    found = []
    for node in graph.node:  # ONNX lists producers first
        if node.op_type == "GlobalAveragePool":
            inside.update(node.output)
            continue
        step = node.op_type in _GATE_STEPS and node.input[0] in inside
        if step or (is_swish(node, makers) and inside.issuperset(node.input)):
            inside.update(node.output)
            if node.op_type == "Conv":
                found.append(node.name)
    return tuple(found)


def residual_additions(graph: onnx.GraphProto) -> dict[str, int]:
    """Additions that a convolution ends in: name to the position of the convolution's output.

    TensorRT fuses such an addition into the convolution when the *other* input is quantised.
    Of two convolutions (a block with a projection) the first input's is the main branch.
    Source: NVIDIA TensorRT developer guide, "Q/DQ placement recommendations", residual networks.
    """
    makers = producers(graph)
    found = {}
    for node in graph.node:
        if node.op_type == "Add":
            kinds = [makers[name].op_type if name in makers else "" for name in node.input]
            if "Conv" in kinds:
                found[node.name] = kinds.index("Conv")
    return found
