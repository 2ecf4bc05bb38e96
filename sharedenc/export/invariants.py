"""What a file must keep to be registered: rules that TensorRT's parser enforces, and ORT does not.

Source: onnx-tensorrt, docs/operators.md (10.x): opset 9 to 20; zero points 0; no int32 input of
DequantizeLinear, which is what ONNX Runtime's quantiser writes for biases unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from jetson_agent.protocol import Int8Recipe
from sharedenc.errors import ExportError
from sharedenc.export.graph_parts import is_swish, producers

OPSETS_FLOAT = (9, 20)
OPSETS_INT8 = (13, 20)
MAX_IR = 10
QDQ = ("QuantizeLinear", "DequantizeLinear")
# Types that DequantizeLinear may read; int32 are the biases of the `cpu` recipe.
STORED: dict[Int8Recipe, tuple[int, ...]] = {
    "trt": (TensorProto.INT8,),
    "cpu": (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32),
}
SHOWN = 5


def check_float(model: onnx.ModelProto) -> None:
    """Check a file without quantisation.

    Raises:
        ExportError: opset, IR version, a vendor's operator, external data, or Q/DQ nodes.
    """
    _check_container(model, "the float file", OPSETS_FLOAT)
    _refuse(
        (node.name for node in model.graph.node if node.op_type in QDQ),
        "the float file is quantised already",
        "Quantise the file that `sharedenc export` wrote as model.onnx",
    )


def check_int8(model: onnx.ModelProto, recipe: Int8Recipe) -> None:
    """Check a quantised file of ``recipe``: its container, as of a float file, and its Q/DQ nodes.

    `trt`: nothing but int8 with zero points 0, and no output straight from conv + Swish, for which
    TensorRT finds no INT8 kernel (NVIDIA/TensorRT issue 3385). Both: every scale is a positive,
    finite constant.

    Raises:
        ExportError: names the first nodes that break a rule.
    """
    where = f"the INT8 file of recipe {recipe!r}"
    _check_container(model, where, OPSETS_INT8)
    nodes = [node for node in model.graph.node if node.op_type in QDQ]
    if not nodes:
        raise ExportError(f"{where} has no QuantizeLinear node: nothing in it is quantised.")
    types = _Types(model.graph)
    allowed = " or ".join(TensorProto.DataType.Name(kind) for kind in STORED[recipe])
    _refuse(
        (
            f"{node.name} ({TensorProto.DataType.Name(kind)})"
            for node in nodes
            if (kind := types.stored(node)) not in STORED[recipe]
        ),
        f"{where} has Q/DQ nodes of another type than {allowed}",
        "Leave biases in float (QuantizeBias=False) and quantise to the recipe's own types",
    )
    _refuse(
        (node.name for node in nodes if not types.good_scale(node)),
        f"{where} has scales that are no constants above 0",
        "Calibrate with photos on which every layer is alive",
    )
    if recipe == "trt":
        _refuse(
            (node.name for node in nodes if types.shifted(node)),
            f"{where} has zero points other than 0",
            "Quantise activations and weights symmetrically",
        )
        makers = producers(model.graph)
        _refuse(
            (out.name for out in model.graph.output if is_swish(makers.get(out.name), makers)),
            f"{where} has outputs straight from x * Sigmoid(x)",
            "Put an Identity behind them",
        )


def _check_container(model: onnx.ModelProto, where: str, opsets: tuple[int, int]) -> None:
    if model.ir_version > MAX_IR:
        raise ExportError(f"{where} has IR version {model.ir_version}; at most {MAX_IR} is read.")
    vendors = sorted({entry.domain for entry in model.opset_import} - {"", "ai.onnx"})
    foreign = [n.name or n.op_type for n in model.graph.node if n.domain not in ("", "ai.onnx")]
    _refuse(
        [*(f"operator set {name}" for name in vendors), *foreign],
        f"{where} has a vendor's operators",
        "Use those of ONNX itself",
    )
    low, high = opsets
    versions = [entry.version for entry in model.opset_import]
    if not versions or not all(low <= version <= high for version in versions):
        raise ExportError(f"{where} has opset {versions}; {low} to {high} are allowed.")
    _refuse(
        (t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL),
        f"{where} keeps tensors in other files",
        "Store everything in the one file",
    )


def _refuse(names: Iterable[str], what: str, remedy: str) -> None:
    found = list(names)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ExportError(f"{what}: {', '.join(found[:SHOWN])}{more}. {remedy}.")


class _Types:
    """What the Q/DQ nodes of one graph store, read from its constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self._makers = producers(graph)

    def stored(self, node: onnx.NodeProto) -> int:
        """The type of the integers that ``node`` writes (Q) or reads (DQ); 0 if unknown."""
        if node.op_type == "DequantizeLinear":
            source = self._constants.get(node.input[0])
            if source is not None:
                return int(source.data_type)
            maker = self._makers.get(node.input[0])
            return self.stored(maker) if maker and maker.op_type == "QuantizeLinear" else 0
        point = next(self._inputs(node, 2), None)
        # ONNX: without a zero point the result is uint8.
        return int(point.data_type) if point is not None else int(TensorProto.UINT8)

    def shifted(self, node: onnx.NodeProto) -> bool:
        """Whether the zero point is another value than 0, or not known before the run."""
        if len(node.input) < 3 or not node.input[2]:
            return False
        point = next(self._inputs(node, 2), None)
        return point is None or bool(numpy_helper.to_array(point).any())

    def good_scale(self, node: onnx.NodeProto) -> bool:
        scale = next(self._inputs(node, 1), None)
        if scale is None:
            return False
        values = numpy_helper.to_array(scale)
        return bool((np.isfinite(values) & (values > 0)).all())

    def _inputs(self, node: onnx.NodeProto, at: int) -> Iterator[onnx.TensorProto]:
        if len(node.input) > at and node.input[at] in self._constants:
            yield self._constants[node.input[at]]
