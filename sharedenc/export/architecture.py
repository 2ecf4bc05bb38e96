"""The digest of what a device runs: an ONNX graph without its trained values.

Two trainings of one cell give one digest, so one timing serves both. Anything that can change the
speed changes the digest: operators, attributes, wiring, shapes, types, and the constants that steer
an operator (axes, target sizes, clip bounds). Names, doc strings, metadata and weights do not.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import onnx
from onnx import numpy_helper

from sharedenc.errors import ExportError

# Float inputs that steer an operator instead of being trained: (operator, input positions).
STEERING_INPUTS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "Pad": (2,),
    "Pow": (1,),
    "Resize": (1, 2),
}
SMALL = 64
_DEFAULT_DOMAIN = ""


def architecture_digest(model: onnx.ModelProto) -> str:
    """SHA-256 (64 hex digits) of the graph that ``model`` describes, its trained values left out.

    Nodes are numbered by a walk back from the outputs, so neither names nor the order in which an
    exporter wrote the nodes matter, and nodes that no output needs are not seen. A constant counts
    as shape and type wherever it is used: whether two equal weights share one stored tensor
    is an accident of their values.

    Raises:
        ExportError: a value without a producer, a cycle, or a node with a sub-graph (``If``,
            ``Loop``), which none of our networks needs.
    """
    canonical = _Canonical(model.graph).describe()
    canonical["opsets"] = sorted(
        [entry.domain or _DEFAULT_DOMAIN, entry.version] for entry in model.opset_import
    )
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Canonical:
    """One graph, renumbered."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants: dict[str, onnx.TensorProto] = {t.name: t for t in graph.initializer}
        self._producers: dict[str, tuple[onnx.NodeProto, int]] = {}
        for node in graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = _constant_value(node)
            elif node.op_type == "Identity" and node.input[0] in self._constants:
                self._constants[node.output[0]] = self._constants[node.input[0]]
            for position, name in enumerate(node.output):
                self._producers[name] = (node, position)
        self._inputs = {
            value.name: position
            for position, value in enumerate(
                v for v in graph.input if v.name not in self._constants
            )
        }
        self._numbers: dict[int, int] = {}
        self._rows: list[Any] = []

    def describe(self) -> dict[str, Any]:
        for output in self._graph.output:
            self._walk(output.name)
        return {
            "inputs": [_signature(v) for v in self._graph.input if v.name in self._inputs],
            "nodes": self._rows,
            "outputs": [
                [_signature(v), self._reference(v.name, None, 0)] for v in self._graph.output
            ],
        }

    def _walk(self, output: str) -> None:
        """Number every node that ``output`` needs, producers first, without recursion."""
        stack: list[tuple[str, bool]] = [(output, False)]
        open_nodes: set[int] = set()
        while stack:
            name, inputs_done = stack.pop()
            node = self._node_of(name)
            if node is None or id(node) in self._numbers:
                continue
            if inputs_done:
                open_nodes.discard(id(node))
                self._rows.append(self._row(node))
                self._numbers[id(node)] = len(self._rows) - 1
                continue
            if id(node) in open_nodes:
                raise ExportError(f"the ONNX graph has a cycle through {node.op_type} {name!r}.")
            open_nodes.add(id(node))
            stack.append((name, True))
            stack.extend(
                (source, False)
                for source in reversed(node.input)
                if source and not self._known(source)
            )

    def _known(self, name: str) -> bool:
        node = self._node_of(name)
        return node is None or id(node) in self._numbers

    def _node_of(self, name: str) -> onnx.NodeProto | None:
        """The node that computes ``name``; ``None`` for an input or a constant."""
        if name in self._constants or name in self._inputs:
            return None
        if name not in self._producers:
            raise ExportError(f"the ONNX graph uses {name!r}, which nothing in it produces.")
        return self._producers[name][0]

    def _row(self, node: onnx.NodeProto) -> Any:
        return [
            node.domain or _DEFAULT_DOMAIN,
            node.op_type,
            sorted(_attribute(a, node) for a in node.attribute),
            [self._reference(name, node, at) for at, name in enumerate(node.input)],
        ]

    def _reference(self, name: str, user: onnx.NodeProto | None, position: int) -> Any:
        if not name:
            return ["absent"]
        if name in self._constants:
            return _constant(self._constants[name], user, position)
        if name in self._inputs:
            return ["input", self._inputs[name]]
        node, output = self._producers[name]
        return ["node", self._numbers[id(node)], output]


def _constant(tensor: onnx.TensorProto, user: onnx.NodeProto | None, position: int) -> Any:
    kind, shape = int(tensor.data_type), [int(d) for d in tensor.dims]
    count = 1
    for size in shape:
        count *= size
    indices = kind in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    steers = user is not None and position in STEERING_INPUTS.get(user.op_type, ())
    if count <= SMALL and (indices or steers):
        return ["constant", kind, shape, numpy_helper.to_array(tensor).ravel().tolist()]
    return ["weights", kind, shape]


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_int", "value_ints"):
        scalar = attribute.name == "value_int"
        return onnx.helper.make_tensor(
            "", onnx.TensorProto.INT64, [] if scalar else [len(value)], [value] if scalar else value
        )
    if attribute.name in ("value_float", "value_floats"):
        scalar = attribute.name == "value_float"
        return onnx.helper.make_tensor(
            "", onnx.TensorProto.FLOAT, [] if scalar else [len(value)], [value] if scalar else value
        )
    raise ExportError(f"an ONNX Constant node with {attribute.name!r} is not supported.")


def _attribute(attribute: onnx.AttributeProto, node: onnx.NodeProto) -> list[Any]:
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise ExportError(
            f"the ONNX graph has a {node.op_type} node with a sub-graph; only plain graphs have an "
            "architecture digest. Remove data-dependent control flow from the network."
        )
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return [attribute.name, json.dumps(_constant(value, None, 0))]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    elif not isinstance(value, int | float):
        value = [v.decode() if isinstance(v, bytes) else v for v in value]
    return [attribute.name, json.dumps(value)]


def _signature(value: onnx.ValueInfoProto) -> Any:
    tensor = value.type.tensor_type
    return [
        value.name,
        int(tensor.elem_type),
        [int(d.dim_value) if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim],
    ]
