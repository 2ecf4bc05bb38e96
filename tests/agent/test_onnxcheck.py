"""What may reach a loader, and what is refused before."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from jetson_agent import onnxcheck
from jetson_agent.onnxcheck import ModelRefused, check_file
from jetson_agent.protocol import INT8_RECIPES, Int8Recipe
from tests.agent import models

Edit = Callable[[onnx.ModelProto], None]
WEIGHTS = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)


def constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def value_info(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def float_model() -> onnx.ModelProto:
    """``y = conv(images)`` with the metadata of an export."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])],
        "convolution",
        [value_info("images", [1, 3, 8, 8])],
        [value_info("y", [1, 4, 8, 8])],
        [constant("w", WEIGHTS)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    entries = {"graph": "seg", "backbone": "resnet18", "architecture": "a" * 64}
    helper.set_model_props(model, {f"sharedenc.{name}": v for name, v in entries.items()})
    return model


def int8_model(kind: type[np.generic] = np.int8, zero: int = 0) -> onnx.ModelProto:
    """The same with Q/DQ before the convolution and DQ of stored int8 weights."""
    quantised = np.clip(np.round(WEIGHTS * 40), -127, 127).astype(np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], name="quantise"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], name="back"),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], name="weights", axis=0),
            helper.make_node("Conv", ["x", "wf"], ["y"], name="conv", pads=[1, 1, 1, 1]),
        ],
        "int8",
        [value_info("images", [1, 3, 8, 8])],
        [value_info("y", [1, 4, 8, 8])],
        [
            constant("s", np.float32(0.05)),
            constant("z", np.array(zero, kind)),
            constant("w", quantised),
            constant("ws", np.full(4, 0.025, np.float32)),
            constant("wz", np.zeros(4, np.int8)),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def saved(folder: Path, model: onnx.ModelProto, edit: Edit | None = None) -> Path:
    if edit is not None:
        edit(model)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path, quantised: Int8Recipe | None = None) -> str:
    with pytest.raises(ModelRefused) as caught:
        check_file(path, quantised=quantised)
    return str(caught.value)


def test_a_good_file_says_what_it_is(tmp_path: Path) -> None:
    facts = check_file(saved(tmp_path, float_model()))
    assert (facts.opset, facts.ir) == (12, 8)
    assert [(i.name, i.shape, i.dtype) for i in facts.inputs] == [
        ("images", (1, 3, 8, 8), "float32")
    ]
    assert [(i.name, i.shape, i.dtype) for i in facts.outputs] == [("y", (1, 4, 8, 8), "float32")]
    assert (facts.graph, facts.backbone, facts.architecture) == ("seg", "resnet18", "a" * 64)
    assert facts.int8 is None
    assert facts.metadata["sharedenc.graph"] == "seg"


@pytest.mark.parametrize("recipe", ["trt", "cpu"])
def test_a_good_quantised_file_says_how_it_was_made(tmp_path: Path, recipe: Int8Recipe) -> None:
    def edit(model: onnx.ModelProto) -> None:
        entry = {"recipe": recipe, "float_layers": ["conv"]}
        helper.set_model_props(model, {"sharedenc.int8": json.dumps(entry)})

    path = saved(tmp_path, int8_model(), edit)
    assert check_file(path, quantised=recipe).int8 == {"recipe": recipe, "float_layers": ["conv"]}


@pytest.mark.parametrize("maker", [models.convolution, models.doubling, models.not_a_number])
def test_files_of_the_other_tests_pass(maker: Callable[[Path], Path], tmp_path: Path) -> None:
    check_file(maker(tmp_path / "m.onnx"))


def point_outside(tensor: onnx.TensorProto, location: str = "../../etc/passwd") -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "432")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    tensor.ClearField("raw_data")


def outside(name: str = "w") -> onnx.TensorProto:
    tensor = constant(name, WEIGHTS)
    point_outside(tensor)
    return tensor


def body() -> onnx.GraphProto:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["out"])],
        "body",
        [],
        [value_info("out", [4, 3, 3, 3])],
        [outside("inner")],
    )
    return graph


def external_initializer(model: onnx.ModelProto) -> None:
    point_outside(model.graph.initializer[0])


def external_beside_the_file(model: onnx.ModelProto) -> None:
    point_outside(model.graph.initializer[0], "m.bin")


def external_in_memory(model: onnx.ModelProto) -> None:
    point_outside(model.graph.initializer[0], "*/_ORT_MEM_ADDR_/*")


def external_without_the_mark(model: onnx.ModelProto) -> None:
    point_outside(model.graph.initializer[0])
    model.graph.initializer[0].ClearField("data_location")


def external_constant(model: onnx.ModelProto) -> None:
    model.graph.node.add().CopyFrom(helper.make_node("Constant", [], ["c"], value=outside()))


def external_in_a_list(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="values", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.add().CopyFrom(outside())


def external_in_a_branch(model: onnx.ModelProto) -> None:
    node = helper.make_node("If", ["yes"], ["c"], then_branch=body(), else_branch=body())
    model.graph.node.add().CopyFrom(node)


def external_deep_inside(model: onnx.ModelProto) -> None:
    inner = body()
    for _ in range(8):
        node = helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)
        outer = helper.make_graph([node], "outer", [], [value_info("out", [1])])
        inner = onnx.GraphProto()
        inner.CopyFrom(outer)
    node = helper.make_node("If", ["yes"], ["c"], then_branch=inner, else_branch=body())
    model.graph.node.add().CopyFrom(node)


def external_in_a_function(model: onnx.ModelProto) -> None:
    function = model.functions.add(name="f", domain="own")
    function.node.add().CopyFrom(helper.make_node("Constant", [], ["c"], value=outside()))


def external_sparse_values(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(outside("values"))


def external_sparse_indices(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(constant("v", np.ones(1, np.float32)))
    sparse.indices.CopyFrom(outside("indices"))


def external_for_training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.add().CopyFrom(outside())


EXTERNAL: list[Edit] = [
    external_initializer,
    external_beside_the_file,
    external_in_memory,
    external_without_the_mark,
    external_constant,
    external_in_a_list,
    external_in_a_branch,
    external_deep_inside,
    external_in_a_function,
    external_sparse_values,
    external_sparse_indices,
    external_for_training,
]


@pytest.mark.parametrize("edit", EXTERNAL)
def test_a_model_that_would_read_other_files_is_refused(
    edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, float_model(), edit)
    # A file that is there and would fit: it must not be read either.
    (tmp_path / "m.bin").write_bytes(WEIGHTS.tobytes())
    opened: list[str] = []
    original = Path.read_bytes

    def note(file: Path) -> bytes:
        opened.append(file.name)
        return original(file)

    monkeypatch.setattr(Path, "read_bytes", note)
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail(f"opened {a}"))
    text = refusal(path)
    assert "lies in another file" in text
    assert "not loaded" in text
    assert opened == ["m.onnx"]


def opset(version: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return edit


def open_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def open_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].ClearField("dim_value")


def no_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1


def half_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def huge_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 2**40


def vendor_node(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)
    node = helper.make_node("EPContext", ["images"], ["e"], name="ctx", domain="com.microsoft")
    model.graph.node.add().CopyFrom(node)


def plugin_node(model: onnx.ModelProto) -> None:
    model.graph.node.add().CopyFrom(helper.make_node("EfficientNMS_TRT", ["images"], ["e"]))


def vendor_node_in_a_branch(model: onnx.ModelProto) -> None:
    node = helper.make_node("Gelu", ["images"], ["out"], domain="com.microsoft")
    branch = helper.make_graph([node], "branch", [], [value_info("out", [1])])
    outer = helper.make_node("If", ["yes"], ["c"], then_branch=branch, else_branch=branch)
    model.graph.node.add().CopyFrom(outer)


def own_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="swish", domain="own")


def newer_operator(model: onnx.ModelProto) -> None:
    model.graph.node.add().CopyFrom(helper.make_node("GroupNormalization", ["images"], ["g"]))


def future_format(model: onnx.ModelProto) -> None:
    model.ir_version = 13


def loose_end(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "nothing"


def no_output(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def quantised(model: onnx.ModelProto) -> None:
    model.CopyFrom(int8_model())
    model.opset_import[0].version = 13


def damaged_note(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {"sharedenc.int8": "[" * 100_000})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (opset(8), ["opset 8", "9 to 20 are allowed"]),
        (opset(21), ["opset 21", "9 to 20 are allowed"]),
        (open_batch, ["input 'images'", "'batch'", "without dynamic axes"]),
        (open_output, ["output 'y'", "only fixed sizes"]),
        (no_size, ["input 'images'", "-1"]),
        (half_input, ["input 'images'", "float16", "only float32"]),
        (huge_input, ["input 'images'", "values; at most"]),
        (vendor_node, ["com.microsoft::EPContext", "'ctx'", "without vendor operators"]),
        (plugin_node, ["EfficientNMS_TRT", "opset 12"]),
        (vendor_node_in_a_branch, ["com.microsoft::Gelu"]),
        (own_function, ["operator of its own", "'swish'"]),
        (newer_operator, ["GroupNormalization", "opset 12"]),
        (future_format, ["IR version 13", "3 to 10"]),
        (loose_end, ["the ONNX checker refuses m.onnx"]),
        (no_output, ["no input or no output"]),
        (quantised, ["is quantised (3 Q/DQ nodes)", "Give the float file"]),
        (damaged_note, ["sharedenc.int8", "not a JSON object"]),
    ],
)
def test_what_is_not_allowed_is_refused_with_what_came_and_what_to_do(
    edit: Edit, words: list[str], tmp_path: Path
) -> None:
    text = refusal(saved(tmp_path, float_model(), edit))
    for word in words:
        assert word in text


def weights_of_int32(model: onnx.ModelProto) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors["w"].CopyFrom(constant("w", WEIGHTS.astype(np.int32)))
    tensors["wz"].CopyFrom(constant("wz", np.zeros(4, np.int32)))


def no_zero_point(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[2]


def zero_point_of_a_channel(model: onnx.ModelProto) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors["wz"].CopyFrom(constant("wz", np.array([0, 0, -3, 0], np.int8)))


def computed_zero_point(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["z"], ["z2"])
    model.graph.node.insert(0, node)
    model.graph.node[1].input[2] = "z2"


def constant_zero_point(model: onnx.ModelProto) -> None:
    value = constant("", np.array(5, np.int8))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["z2"], value=value))
    model.graph.node[1].input[2] = "z2"


def made_for_cpu(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {"sharedenc.int8": json.dumps({"recipe": "cpu"})})


def nothing(_model: onnx.ModelProto) -> None: ...


@pytest.mark.parametrize(
    ("model", "edit", "words"),
    [
        (int8_model(np.uint8, 0), nothing, ["zero point of type uint8", "quantise"]),
        (int8_model(np.int8, 7), nothing, ["has zero point 7"]),
        (int8_model(), weights_of_int32, ["DequantizeLinear 'weights'", "int32"]),
        (int8_model(), no_zero_point, ["QuantizeLinear 'quantise'", "no zero point"]),
        (int8_model(), zero_point_of_a_channel, ["'weights'", "zero point -3"]),
        (int8_model(), computed_zero_point, ["computes its zero point"]),
        (int8_model(), constant_zero_point, ["has zero point 5"]),
        (int8_model(), made_for_cpu, ["recipe 'cpu'", "reads 'trt'", "model.int8-trt.onnx"]),
        (int8_model(), opset(12), ["opset 12", "13 to 20"]),
        (int8_model(), opset(21), ["opset 21", "13 to 20"]),
        (float_model(), opset(13), ["no QuantizeLinear", "int8-unscaled"]),
    ],
)
def test_what_tensorrt_does_not_take_as_int8_is_refused(
    model: onnx.ModelProto, edit: Edit, words: list[str], tmp_path: Path
) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    text = refusal(saved(tmp_path, copy, edit), "trt")
    for word in words:
        assert word in text


def test_the_cpu_recipe_may_be_asymmetric(tmp_path: Path) -> None:
    check_file(saved(tmp_path, int8_model(np.uint8, 128)), quantised="cpu")


def test_files_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "absent.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.onnx")
    path = saved(tmp_path, float_model())
    other = path.rename(tmp_path / "m.pt")
    assert "m.pt is not an .onnx file, and nothing else is loaded" in refusal(other)
    path = saved(tmp_path, float_model())
    monkeypatch.setattr(onnxcheck, "MAX_BYTES", path.stat().st_size - 1)
    assert f"has {path.stat().st_size} bytes; at most" in refusal(path)


def only_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for recipe in (None, *INT8_RECIPES):
        with contextlib.suppress(ModelRefused):
            check_file(path, quantised=recipe)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "m.onnx"


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200))
def test_no_bytes_crash_the_check(scratch: Path, content: bytes) -> None:
    only_refused(scratch, content)


def test_every_cut_of_a_file_is_refused(scratch: Path) -> None:
    whole = float_model().SerializeToString()
    for end in range(0, len(whole), 7):
        scratch.write_bytes(whole[:end])
        # A cut between two fields leaves a file that can be read; its metadata is the last field.
        try:
            facts = check_file(scratch)
        except ModelRefused:
            continue
        assert facts.inputs[0].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_models_are_refused_or_read_but_never_crash(scratch: Path, seed: int) -> None:
    rng = random.Random(seed)
    sources = [model.SerializeToString() for model in (float_model(), int8_model())]
    for _ in range(300):
        content = bytearray(rng.choice(sources))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(content))
            if rng.random() < 0.3:
                content[at:at] = rng.randbytes(rng.randint(1, 9))
            else:
                content[at] = rng.randrange(256)
        only_refused(scratch, bytes(content))


def test_deep_nesting_is_refused_without_recursion(scratch: Path) -> None:
    """GraphProto.node.attribute.g.node.... written by hand: protobuf itself would not."""

    def field(number: int, content: bytes) -> bytes:
        size, digits = len(content), b""
        while size > 127:
            digits += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + digits + bytes([size]) + content

    for depth in (10, 30, 60, 1000):
        graph = field(1, field(4, b"Identity"))
        for _ in range(depth):
            graph = field(1, field(4, b"If") + field(5, field(6, graph)))
        model = b"\x08\x08" + field(7, graph) + field(8, b"\x10\x0c")
        only_refused(scratch, model)
        with pytest.raises(ModelRefused):
            check_file(scratch)
