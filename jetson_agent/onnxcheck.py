"""Is this ONNX file one that a loader may be given? Read without loading anything it points to.

A model that would read files of its own choice (external data), that brings operators of a vendor,
or whose shapes are open, never reaches ONNX Runtime or TensorRT.
Source of the INT8 rules: TensorRT's parser takes explicit Q/DQ that is symmetric (zero points 0)
and int8 throughout; an int32 bias behind DequantizeLinear is refused by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetson_agent.backends.base import TensorInfo
from jetson_agent.errors import AgentError
from jetson_agent.protocol import Int8Recipe

# Protobuf ends at 2 GiB; the largest network of ours has 0.1 GiB, and a board has to hold it twice.
MAX_BYTES = 1 << 30
# TensorRT 8.2 to 10 read them all; per-channel Q/DQ came with 13, new types with 21.
FLOAT_OPSETS = range(9, 21)
INT8_OPSETS = range(13, 21)
IR_VERSIONS = range(3, 11)
STANDARD_DOMAINS = ("", "ai.onnx")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
PREFIX = "sharedenc."


class ModelRefused(AgentError):
    """A file that is no model, or one that is not loaded, with the reason and what to do."""


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """What a file says about itself.

    `graph`, `backbone` and `architecture` are empty, and `int8` is None, where its metadata does
    not tell; `metadata` is all of it, under the keys that it has in the file.
    """

    opset: int
    ir: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    graph: str
    backbone: str
    architecture: str
    int8: dict[str, Any] | None
    metadata: dict[str, str]


def check_file(path: Path, *, quantised: Int8Recipe | None = None) -> OnnxFacts:
    """Read `path` as an ONNX model and check that it may be loaded.

    Args:
        quantised: The recipe that its Q/DQ must follow; None for a float model.

    Raises:
        ModelRefused: it may not; the text says what came, what is allowed and what to do.
    """
    model = _parse(path)
    for message in _messages(model):
        if type(message).__name__ == "TensorProto":
            _refuse_external(message, path)
    opset = _versions(model, path, FLOAT_OPSETS if quantised is None else INT8_OPSETS)
    _operators(model, path, opset)
    _well_formed(model, path)
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in constants]
    metadata = {str(entry.key): str(entry.value) for entry in model.metadata_props}
    facts = OnnxFacts(
        opset=opset,
        ir=int(model.ir_version),
        inputs=tuple(_tensor("input", value, path) for value in given),
        outputs=tuple(_tensor("output", value, path) for value in model.graph.output),
        graph=metadata.get(PREFIX + "graph", ""),
        backbone=metadata.get(PREFIX + "backbone", ""),
        architecture=metadata.get(PREFIX + "architecture", ""),
        int8=_int8_metadata(metadata, path),
        metadata=metadata,
    )
    if not facts.inputs or not facts.outputs:
        raise ModelRefused(f"{path.name} has no input or no output. Export it again.")
    for info in facts.inputs:
        if info.dtype != "float32":
            raise ModelRefused(
                f"input {info.name!r} of {path.name} is {info.dtype}; only float32 is allowed. "
                "Export it with float32 inputs."
            )
    _quantisation(model, path, quantised, facts.int8)
    return facts


def _parse(path: Path) -> Any:
    import onnx

    if path.suffix != ".onnx":
        raise ModelRefused(
            f"{path.name} is not an .onnx file, and nothing else is loaded. Export the model."
        )
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelRefused(
                f"{path.name} has {size} bytes; at most {MAX_BYTES} are allowed. Export a smaller "
                "model."
            )
        data = path.read_bytes()
    except OSError as error:
        raise ModelRefused(
            f"{path} cannot be read: {error.strerror or error}. Check the path."
        ) from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is private to its implementation
        raise ModelRefused(
            f"{path.name} is not an ONNX file, or was cut ({_line(error)}). Copy it again, or "
            "export it again."
        ) from error
    if not model.ir_version or not model.graph.node:
        raise ModelRefused(
            f"{path.name} is not an ONNX file: it holds no graph. Copy or export it again."
        )
    return model


def _messages(root: Any) -> Iterator[Any]:
    """`root` and every message inside it, whatever field it hides in; without recursion."""
    stack = [root]
    while stack:
        message = stack.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                stack.extend([value] if hasattr(value, "ListFields") else value)


def _refuse_external(tensor: Any, path: Path) -> None:
    if tensor.data_location or tensor.external_data:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        raise ModelRefused(
            f"tensor {tensor.name!r} of {path.name} lies in another file "
            f"({entries.get('location', '')!r}); models that read files besides their own are "
            "not loaded. Save it as one file: onnx.save(model, path, save_as_external_data=False)."
        )


def _versions(model: Any, path: Path, opsets: range) -> int:
    found = [int(e.version) for e in model.opset_import if e.domain in STANDARD_DOMAINS]
    if len(found) != 1 or found[0] not in opsets:
        raise ModelRefused(
            f"{path.name} has opset {', '.join(map(str, found)) or 'none'}; {opsets[0]} to "
            f"{opsets[-1]} are allowed. Export it again with one of these."
        )
    if model.ir_version not in IR_VERSIONS:
        raise ModelRefused(
            f"{path.name} has IR version {model.ir_version}; {IR_VERSIONS[0]} to "
            f"{IR_VERSIONS[-1]} are allowed. Set model.ir_version and save it again."
        )
    return found[0]


def _operators(model: Any, path: Path, opset: int) -> None:
    from onnx import defs

    for message in _messages(model):
        kind = type(message).__name__
        if kind == "FunctionProto":
            raise ModelRefused(
                f"{path.name} defines an operator of its own ({message.name!r}); only those of "
                "ONNX are allowed. Export it without functions."
            )
        if kind != "NodeProto":
            continue
        # A name that is not UTF-8 comes as bytes.
        known = message.domain in STANDARD_DOMAINS and defs.has(str(message.op_type), opset, "")
        if not known:
            name = f"{message.domain}::{message.op_type}" if message.domain else message.op_type
            raise ModelRefused(
                f"{path.name} has the operator {name!r} (node {message.name!r}); only those of "
                f"ONNX's opset {opset} are allowed. Export it without vendor operators."
            )


def _well_formed(model: Any, path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, and others for text that is not UTF-8
        raise ModelRefused(
            f"the ONNX checker refuses {path.name}: {_line(error)}. Export it again."
        ) from error


def _tensor(what: str, value: Any, path: Path) -> TensorInfo:
    from onnx import TensorProto, helper

    tensor = value.type.tensor_type
    kind = int(tensor.elem_type)
    if not value.type.HasField("tensor_type") or kind not in TensorProto.DataType.values():
        raise ModelRefused(f"{what} {value.name!r} of {path.name} is no tensor. Export it again.")
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    if not tensor.HasField("shape") or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ModelRefused(
            f"{what} {value.name!r} of {path.name} has the open shape {sizes}; only fixed sizes "
            "are allowed. Export it without dynamic axes."
        )
    if math.prod(sizes) * 4 > MAX_BYTES:
        raise ModelRefused(
            f"{what} {value.name!r} of {path.name} has {math.prod(sizes)} values; at most "
            f"{MAX_BYTES // 4} are allowed. Export it with a smaller shape."
        )
    try:
        dtype = str(helper.tensor_dtype_to_np_dtype(kind))
    except KeyError:
        raise ModelRefused(
            f"{what} {value.name!r} of {path.name} has element type {kind}, which numpy lacks. "
            "Export it with float32."
        ) from None
    return TensorInfo(name=str(value.name), shape=tuple(sizes), dtype=dtype)


def _int8_metadata(metadata: Mapping[str, str], path: Path) -> dict[str, Any] | None:
    if (text := metadata.get(PREFIX + "int8")) is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelRefused(
            f"the metadata {PREFIX}int8 of {path.name} is not a JSON object. Export it again."
        )
    return found


def _quantisation(
    model: Any, path: Path, recipe: Int8Recipe | None, said: Mapping[str, Any] | None
) -> None:
    nodes = [m for m in _messages(model) if type(m).__name__ == "NodeProto"]
    pairs = [node for node in nodes if node.op_type in QUANTIZERS]
    if recipe is None:
        if pairs:
            raise ModelRefused(
                f"{path.name} is quantised ({len(pairs)} Q/DQ nodes); this precision reads a float "
                "model. Give the float file, or ask for int8."
            )
        return
    if not pairs:
        raise ModelRefused(
            f"{path.name} has no QuantizeLinear and no DequantizeLinear; int8 needs a file with "
            "them. Make one with `sharedenc export --int8`, or ask for int8-unscaled."
        )
    made_as = (said or {}).get("recipe", recipe)
    if made_as != recipe:
        raise ModelRefused(
            f"{path.name} was quantised with recipe {made_as!r}; this backend reads {recipe!r}. "
            f"Give model.int8-{recipe}.onnx."
        )
    if recipe == "trt":
        _symmetric_int8(model, nodes, pairs, path)


def _symmetric_int8(model: Any, nodes: list[Any], pairs: list[Any], path: Path) -> None:
    from onnx import TensorProto, numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    allowed = (
        "TensorRT reads int8 with zero points 0 only: quantise it with recipe trt "
        "(`sharedenc export --int8`)."
    )
    for node in pairs:
        where = f"{node.op_type} {node.name!r} of {path.name}"
        data = constants.get(node.input[0])
        if node.op_type == "DequantizeLinear" and data is not None:
            if data.data_type != TensorProto.INT8:
                kind = TensorProto.DataType.Name(data.data_type).lower()
                raise ModelRefused(f"{where} reads {kind} constants. {allowed}")
        if len(node.input) < 3 or not node.input[2]:
            # Without one, QuantizeLinear gives uint8.
            if node.op_type == "QuantizeLinear" or data is None:
                raise ModelRefused(f"{where} has no zero point, so its type is open. {allowed}")
            continue
        zero = constants.get(node.input[2])
        if zero is None:
            raise ModelRefused(f"{where} computes its zero point. {allowed}")
        if zero.data_type != TensorProto.INT8:
            kind = TensorProto.DataType.Name(zero.data_type).lower()
            raise ModelRefused(f"{where} has a zero point of type {kind}. {allowed}")
        try:
            value = numpy_helper.to_array(zero)
        except Exception as error:  # a shape that its data does not fill
            raise ModelRefused(f"{where} has a damaged zero point. {allowed}") from error
        if value.any():
            raise ModelRefused(f"{where} has zero point {int(value[value != 0][0])}. {allowed}")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
