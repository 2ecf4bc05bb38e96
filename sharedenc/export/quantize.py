"""INT8 files with explicit QuantizeLinear/DequantizeLinear nodes, one recipe per runtime.

`trt` for TensorRT: symmetric int8, weights per channel, inputs of convolutions and matrix products
quantised and nothing else but the skipping input of a residual addition, so that TensorRT fuses
convolution, activation and addition into one INT8 kernel; biases, activation functions, gates and
outputs stay float. `cpu` for ONNX Runtime on CPUs: unsigned activations, everything quantised that
has a fast integer kernel there. A file of one recipe is slow on the other runtime.

Which nodes are quantised follows from the graph's structure and from names, never from weights or
ranges: an untrained export has the architecture of the trained one.
Source: NVIDIA, "Working with quantized types" (TensorRT 10); onnxruntime.quantization.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import version_converter

from jetson_agent.protocol import INT8_RECIPES, Int8Recipe
from sharedenc.errors import ExportError, check_choice
from sharedenc.export.architecture import architecture_digest
from sharedenc.export.calibrate import Ranges, calibrate
from sharedenc.export.float_layers import float_layers
from sharedenc.export.graph_parts import consumers, is_swish, producers, residual_additions
from sharedenc.export.invariants import check_float, check_int8
from sharedenc.export.metadata import PREFIX
from sharedenc.export.onnx import check_model, read_model
from sharedenc.files import write_atomic
from sharedenc.models.weights import file_sha256
from sharedenc.spec import Graph

# Per-channel scales need opset 13: at 12 the quantiser writes invalid files without a word.
OPSET = 13
INT8_KEY = PREFIX + "int8"
ARCHITECTURE_KEY = PREFIX + "architecture"
PRODUCTS = ["Conv", "Gemm", "MatMul"]
# Concat (DenseNet) and Resize are left out: measured slower quantised (EfficientNetV2-S 0.50 of
# float's time without, 0.58 with Concat; DenseNet-121 0.62 and 0.66), without Mul and Sigmoid 0.76.
CPU_OPERATORS = [
    *PRODUCTS,
    "Add",
    "AveragePool",
    "Clip",
    "GlobalAveragePool",
    "MaxPool",
    "Mul",
    "Relu",
    "Sigmoid",
]


@dataclass(frozen=True, kw_only=True)
class QuantInfo:
    """One written file; ``ranges`` serve the other recipe of the same float file."""

    path: Path
    recipe: Int8Recipe
    sha256: str
    architecture: str
    float_layers: tuple[str, ...]
    ranges: Ranges


def quantise(
    model: Path,
    out: Path,
    recipe: Int8Recipe,
    images: Iterable[NDArray[np.float32]],
    *,
    backbone: str,
    graph: Graph,
    ranges: Ranges | None = None,
    split: str = "train",
    progress: Callable[[int], None] | None = None,
) -> QuantInfo:
    """Write the INT8 twin ``out`` of the float file ``model``; the same inputs, the same bytes.

    Args:
        images: photos for `calibrate`; not touched when ``ranges`` are given.
        backbone, graph: choose the layers that stay float (`sharedenc.export.float_layers`).
        ranges: of an earlier calibration of this very file.
        split: where the photos come from, for the file's metadata.
        progress: called with the number of photos done.

    Raises:
        ExportError: the float file or the result breaks an invariant, or calibration fails.
        SpecError: ``recipe`` is no recipe.
    """
    check_choice("recipe", recipe, INT8_RECIPES)
    source = read_model(model)
    check_float(source)
    if ranges is None:
        ranges = calibrate(model, images, progress=progress)
    kept = float_layers(source, backbone, graph)
    result = quantised_model(source, recipe, ranges, kept)
    if recipe == "trt":
        _end_in_identity(result.graph)
    architecture = architecture_digest(result)
    entries = {entry.key: entry.value for entry in source.metadata_props}
    entries[INT8_KEY] = json.dumps(
        {
            "recipe": recipe,
            "float_layers": list(kept),
            "calibration": {"images": ranges.images, "split": split, "method": ranges.method},
            "quantizer": f"onnxruntime {onnxruntime.__version__}",
        },
        separators=(",", ":"),
    )
    entries[ARCHITECTURE_KEY] = architecture
    onnx.helper.set_model_props(result, entries)
    check_int8(result, recipe)
    check_model(result, str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, result.SerializeToString(deterministic=True))
    return QuantInfo(
        path=out,
        recipe=recipe,
        sha256=file_sha256(out),
        architecture=architecture,
        float_layers=kept,
        ranges=ranges,
    )


def quantised_model(
    source: onnx.ModelProto, recipe: Int8Recipe, ranges: Ranges, kept: Iterable[str]
) -> onnx.ModelProto:
    """The graph of ``source`` with Q/DQ nodes around all that ``recipe`` quantises but ``kept``.

    Raises:
        ExportError: ``ranges`` are of another graph, or the quantiser fails.
    """
    model = onnx.shape_inference.infer_shapes(version_converter.convert_version(source, OPSET))
    left_out = set(kept)
    additions = {}
    if recipe == "trt":
        convolutions = producers(model.graph)
        nodes = {node.name: node for node in model.graph.node}
        additions = {
            name: main
            for name, main in residual_additions(model.graph).items()
            if convolutions[nodes[name].input[main]].name not in left_out and name not in left_out
        }
        operators = [*PRODUCTS, "Add"]
    else:
        operators = CPU_OPERATORS
    chosen = [
        node.name
        for node in model.graph.node
        if node.op_type in operators
        and node.name not in left_out
        and (recipe != "trt" or node.op_type != "Add" or node.name in additions)
    ]
    result = _insert(model, recipe, ranges, chosen, operators)
    if recipe == "trt":
        _free_main_branches(result.graph, additions)
    _drop_unused(result.graph)
    # Shapes and types that the float graph had are wrong where values were renamed.
    del result.graph.value_info[:]
    result.producer_name, result.producer_version = source.producer_name, source.producer_version
    return result


def _insert(
    model: onnx.ModelProto,
    recipe: Int8Recipe,
    ranges: Ranges,
    nodes: list[str],
    operators: list[str],
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    data = TensorsData(
        CalibrationMethod.MinMax,
        {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in ranges.values.items()
        },
    )
    trt = recipe == "trt"
    options: dict[str, Any] = {"WeightSymmetric": True}
    if trt:
        options |= {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": operators,
        }
    with _quiet_logging():
        try:
            quantizer = QDQQuantizer(
                model,
                True,  # per channel
                False,  # 8 bits, not 7: no fix for CPUs without VNNI, the boards have none of them
                QuantType.QInt8,
                QuantType.QInt8 if trt else QuantType.QUInt8,
                data,
                nodes,
                [],
                operators,
                options,
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        except (ValueError, KeyError, AssertionError) as error:
            broken = _not_finite(model)
            cause = f"weights {', '.join(broken)} are not finite" if broken else str(error)
            raise ExportError(
                f"ONNX Runtime's quantiser fails on recipe {recipe!r}: {cause}. If the ranges were "
                "given, calibrate this very file again."
            ) from error
    result: onnx.ModelProto = quantizer.model.model
    return result


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Keep the quantiser's notes to itself: it logs to the root logger, and so configures it."""
    handlers, level = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers


def _free_main_branches(graph: onnx.GraphProto, additions: dict[str, int]) -> None:
    """Feed the convolution's own, float output to each residual addition."""
    makers = producers(graph)
    for node in graph.node:
        if node.name in additions:
            main = additions[node.name]
            node.input[main] = makers[makers[node.input[main]].input[0]].input[0]


def _end_in_identity(graph: onnx.GraphProto) -> None:
    """Put an Identity behind every output that is ``x * Sigmoid(x)``, its name unchanged.

    TensorRT (8.5 on Orin) finds no INT8 kernel for conv + Swish without a successor.
    Source: NVIDIA/TensorRT issue 3385.
    """
    makers = producers(graph)
    for output in graph.output:
        maker = makers.get(output.name)
        if maker is None or not is_swish(maker, makers):
            continue
        inner = f"{output.name}_before_identity"
        for reader in consumers(graph).get(output.name, []):
            reader.input[:] = [inner if name == output.name else name for name in reader.input]
        maker.output[:] = [inner if name == output.name else name for name in maker.output]
        graph.node.append(
            onnx.helper.make_node("Identity", [inner], [output.name], f"{output.name}/Identity")
        )


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes that no output needs, then tensors that no node reads."""
    while True:
        read = {name for node in graph.node for name in node.input}
        read.update(output.name for output in graph.output)
        dead = [node for node in graph.node if not read.intersection(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _not_finite(model: onnx.ModelProto) -> list[str]:
    """Names of the first few stored weights with a NaN or an infinity."""
    found = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and not np.isfinite(onnx.numpy_helper.to_array(tensor)).all()
    ]
    return found[:3]
