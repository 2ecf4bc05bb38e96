"""INT8 files: the float network nearly, the same bytes each time, one architecture per graph."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from jetson_agent.protocol import INT8_RECIPES, Int8Recipe
from sharedenc.data.packed import PackedDataset
from sharedenc.data.transforms import eval_transform
from sharedenc.errors import ExportError, SpecError
from sharedenc.export import float_layers as table
from sharedenc.export import sensitivity
from sharedenc.export.architecture import architecture_digest
from sharedenc.export.calibrate import Ranges, calibrate
from sharedenc.export.float_layers import float_layers, patterns
from sharedenc.export.graph_parts import gate_convolutions, is_swish, producers, residual_additions
from sharedenc.export.onnx import export_graph
from sharedenc.export.parity import natural_images, open_session
from sharedenc.export.quantize import QuantInfo, quantise
from sharedenc.export.sensitivity import sensitivities
from sharedenc.spec import BACKBONES, Graph, Recipe
from tests.export.conftest import alive_network, meta_of

PX = 64
PHOTOS = natural_images(4, PX, seed=3).numpy()


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Float files of small images, by backbone, graph and seed; tests must not change them."""
    folder = tmp_path_factory.mktemp("floats")
    networks: dict[tuple[str, int], Any] = {}

    def export(backbone: str, graph: Graph, seed: int = 0) -> Path:
        path: Path = folder / f"{backbone}-{graph}-{seed}" / "model.onnx"
        if not path.exists():
            key = (backbone, seed)
            if key not in networks:
                networks[key] = alive_network(backbone, ("det", "seg"), seed=seed)
            network = networks[key]
            meta = meta_of(network, image_px=PX)
            # Deep maps of 64 px are one cell; only the graph's form counts here.
            export_graph(network, graph, path, meta=meta, image_px=PX, tolerance=0.1)
        return path

    return export


@pytest.fixture(scope="module")
def resnet(
    floats: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[Int8Recipe, QuantInfo]]:
    """A float file and its two INT8 twins."""
    source = floats("resnet18", "dual")
    out = tmp_path_factory.mktemp("int8")
    made: dict[Int8Recipe, QuantInfo] = {}
    ranges = None
    for recipe in INT8_RECIPES:
        made[recipe] = quantise(
            source,
            out / f"{recipe}.onnx",
            recipe,
            PHOTOS,
            backbone="resnet18",
            graph="dual",
            ranges=ranges,
        )
        ranges = made[recipe].ranges
    return source, made


def outputs(path: Path) -> dict[str, Any]:
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": PHOTOS[:1]}), strict=True))


@pytest.mark.parametrize("recipe", INT8_RECIPES)
def test_an_int8_file_is_nearly_the_float_network(
    resnet: tuple[Path, dict[Int8Recipe, QuantInfo]], recipe: Int8Recipe
) -> None:
    source, made = resnet
    expected, got = outputs(source), outputs(made[recipe].path)
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        error = np.square(got[name] - value).mean() / np.square(value).mean()
        # A network of eight bits, and not the float one: an error, a small one.
        assert 1e-7 < error < 0.05, (name, error)


def test_metadata_is_the_float_files_and_says_how_it_was_quantised(
    resnet: tuple[Path, dict[Int8Recipe, QuantInfo]],
) -> None:
    source, made = resnet
    before = {p.key: p.value for p in onnx.load(str(source)).metadata_props}
    for recipe, info in made.items():
        model = onnx.load(str(info.path))
        after = {p.key: p.value for p in model.metadata_props}
        told = json.loads(after.pop("sharedenc.int8"))
        assert after.pop("sharedenc.architecture") == info.architecture
        before.pop("sharedenc.architecture", None)
        assert after == before
        assert told["recipe"] == recipe
        assert told["float_layers"] == list(info.float_layers)
        assert told["calibration"]["images"] == len(PHOTOS)
        assert told["calibration"]["split"] == "train"
        assert info.architecture == architecture_digest(model)
    assert made["trt"].architecture != made["cpu"].architecture


def test_the_same_inputs_give_the_same_bytes_and_nothing_else(
    resnet: tuple[Path, dict[Int8Recipe, QuantInfo]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, made = resnet
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    handlers = list(logging.root.handlers)
    for recipe, info in made.items():
        out = tmp_path / recipe / "again.onnx"
        again = quantise(source, out, recipe, PHOTOS, backbone="resnet18", graph="dual")
        assert out.read_bytes() == info.path.read_bytes()
        assert again.sha256 == info.sha256
        assert [path.name for path in out.parent.iterdir()] == ["again.onnx"]
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before
    assert not caplog.records
    assert logging.root.handlers == handlers
    assert capfd.readouterr() == ("", "")


def check_placement(
    floats: Callable[..., Path], tmp_path: Path, backbone: str, graph: Graph
) -> None:
    """Another training, other photos: the same architecture, and another file."""
    digests: dict[Int8Recipe, set[str]] = {recipe: set() for recipe in INT8_RECIPES}
    files = set()
    for seed in (0, 1):
        source = floats(backbone, graph, seed)
        ranges = calibrate(source, PHOTOS[2 * seed : 2 * seed + 2])
        for recipe in INT8_RECIPES:
            info = quantise(
                source,
                tmp_path / f"{recipe}-{seed}.onnx",
                recipe,
                [],
                backbone=backbone,
                graph=graph,
                ranges=ranges,
            )
            digests[recipe].add(info.architecture)
            files.add(info.sha256)
    assert [len(found) for found in digests.values()] == [1, 1]
    assert len(files) == 4


# Of every backbone and graph: tests/export/test_untrained.py.
def test_placement_does_not_depend_on_weights_or_ranges(
    floats: Callable[..., Path], tmp_path: Path
) -> None:
    check_placement(floats, tmp_path, "mobilenet_v3_large", "dual")


def test_dead_ranges_do_not_move_a_node(floats: Callable[..., Path], tmp_path: Path) -> None:
    source = floats("resnet18", "encoder")
    alive = calibrate(source, PHOTOS[:1])
    dead = Ranges(values=dict.fromkeys(alive.values, (0.0, 0.0)), images=1)
    for recipe in INT8_RECIPES:
        made = [
            quantise(
                source,
                tmp_path / "model.onnx",
                recipe,
                [],
                backbone="resnet18",
                graph="encoder",
                ranges=ranges,
            ).architecture
            for ranges in (alive, dead)
        ]
        assert made[0] == made[1]


def test_trt_files_quantise_weights_per_channel_and_nothing_in_gates(
    floats: Callable[..., Path], tmp_path: Path
) -> None:
    source = floats("mobilenet_v3_large", "dual")
    info = quantise(
        source,
        tmp_path / "model.onnx",
        "trt",
        PHOTOS[:1],
        backbone="mobilenet_v3_large",
        graph="dual",
    )
    graph = onnx.load(str(info.path)).graph
    makers = producers(graph)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            kept = node.name in info.float_layers
            source_node = makers.get(node.input[1])
            assert (source_node is None) == kept, node.name
            if source_node is not None:
                channels = constants[makers[source_node.input[0]].input[0]].shape[0]
                assert constants[source_node.input[1]].shape == (channels,)
        if node.op_type in ("Mul", "HardSigmoid", "Sigmoid"):
            assert not [n for n in node.input if makers[n].op_type == "DequantizeLinear"]
    # Eight blocks with two gate convolutions each (Howard et al. 2019, table 1) and LR-ASPP's one.
    assert len(gate_convolutions(onnx.load(str(source)).graph)) == 8 * 2 + 1


def test_of_a_residual_addition_only_the_skipping_input_is_quantised(
    resnet: tuple[Path, dict[Int8Recipe, QuantInfo]],
) -> None:
    source, made = resnet
    found = residual_additions(onnx.load(str(source)).graph)
    # Two per stage of ResNet-18, and the sum of LR-ASPP's two classifiers.
    assert len(found) == 9
    graph = onnx.load(str(made["trt"].path)).graph
    makers = producers(graph)
    for node in graph.node:
        if node.op_type == "Add":
            kinds = [makers[name].op_type for name in node.input]
            if node.name.startswith("/seg_head"):
                assert kinds == ["Conv", "Conv"]
            else:
                assert kinds == ["Conv", "DequantizeLinear"]


@pytest.mark.slow
def test_an_encoder_that_ends_in_swish_gets_an_identity_for_trt_alone(
    floats: Callable[..., Path], tmp_path: Path
) -> None:
    source = floats("efficientnet_v2_s", "encoder")
    model = onnx.load(str(source))
    makers = producers(model.graph)
    assert [is_swish(makers[o.name], makers) for o in model.graph.output] == [False, True, True]
    for recipe, ends in (("trt", "Identity"), ("cpu", "DequantizeLinear")):
        info = quantise(
            source,
            tmp_path / f"{recipe}.onnx",
            recipe,
            PHOTOS[:1],
            backbone="efficientnet_v2_s",
            graph="encoder",
        )
        made = onnx.load(str(info.path))
        assert [o.name for o in made.graph.output] == ["low", "mid", "high"]
        ends_in = producers(made.graph)
        assert ends_in["high"].op_type == ends
        # The map in the middle is read on, by a quantised convolution.
        assert ends_in["mid"].op_type == "DequantizeLinear"


def test_an_identity_on_an_activation_counts_as_a_node() -> None:
    def model(end: str) -> onnx.ModelProto:
        nodes = [helper.make_node("Relu", ["images"], [end])]
        if end != "y":
            nodes.append(helper.make_node("Identity", [end], ["y"]))
        info = helper.make_tensor_value_info
        graph = helper.make_graph(nodes, "g", [info("images", 1, [1])], [info("y", 1, [1])])
        return helper.make_model(graph)

    assert architecture_digest(model("y")) != architecture_digest(model("inner"))


def test_ranges_are_percentiles_that_hold_most_photos(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["images"], ["r"]),
            helper.make_node("Neg", ["r"], ["y"]),
        ],
        "g",
        [info("images", 1, [1, 3, 100, 100])],
        [info("y", 1, [1, 3, 100, 100])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)]), str(path))
    # 30,000 values each: 0.01 % is three of them, so the fourth largest is the percentile.
    ramp = np.arange(30_000, dtype=np.float32).reshape(3, 100, 100)
    seen: list[int] = []
    found = calibrate(path, iter([ramp, 3 * ramp]), progress=seen.append)
    # The photos' own are 29,996 and three times that; nine tenths of the way lies 2.8 times.
    high = pytest.approx(2.8 * 29_996.0)
    assert found.values["r"] == (0.0, high)
    assert found.values["y"] == (pytest.approx(-2.8 * 29_996.0), 0.0)
    assert found.values["images"][1] == high
    assert seen == [1, 2]
    assert found.images == 2
    assert Ranges.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_what_cannot_be_quantised_says_why(
    resnet: tuple[Path, dict[Int8Recipe, QuantInfo]], tmp_path: Path
) -> None:
    source, made = resnet
    out = tmp_path / "model.onnx"
    names: dict[str, Any] = {"backbone": "resnet18", "graph": "dual"}
    with pytest.raises(SpecError, match="recipe='tflite' is not one of cpu, trt"):
        quantise(source, out, "tflite", PHOTOS, **names)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="no calibration photo"):
        quantise(source, out, "trt", [], **names)
    with pytest.raises(ExportError, match=r"is \[3, 32, 32\], but model.onnx takes \[3, 64, 64\]"):
        quantise(source, out, "trt", PHOTOS[:, :, :32, :32], **names)
    with pytest.raises(ExportError, match=r"value 'images' .* is not finite"):
        quantise(source, out, "trt", PHOTOS * np.float32(np.nan), **names)
    with pytest.raises(ExportError, match="quantised already"):
        quantise(made["trt"].path, out, "trt", PHOTOS, **names)
    with pytest.raises(ExportError, match="calibrate this very file again"):
        quantise(source, out, "trt", [], ranges=Ranges(values={}, images=1), **names)
    with pytest.raises(ExportError, match="ranges are damaged"):
        Ranges.from_dict({"values": {"a": 1}})
    assert not list(tmp_path.iterdir())


def test_every_backbone_has_a_list_and_every_pattern_names_a_layer(
    floats: Callable[..., Path],
) -> None:
    assert set(table.ENCODERS) == set(BACKBONES)
    model = onnx.load(str(floats("mobilenet_v3_large", "dual")))
    gates = set(gate_convolutions(model.graph))
    for pattern in patterns("mobilenet_v3_large", "dual"):
        alone = [
            name for name in float_layers(model, "mobilenet_v3_large", "dual") if name not in gates
        ]
        assert any(table.fnmatchcase(name, pattern) for name in alone), pattern
    assert patterns("mobilenet_v3_large", "encoder") == table.ENCODERS["mobilenet_v3_large"]


def test_a_plugins_backbone_keeps_the_last_convolutions_of_its_detection_head(
    floats: Callable[..., Path],
) -> None:
    model = onnx.load(str(floats("resnet18", "dual")))
    more = set(float_layers(model, "a_plugin", "dual")) - set(
        float_layers(model, "resnet18", "dual")
    )
    # Six maps, one convolution for classes and one for boxes each.
    assert len(more) == 12
    assert {name.split("/")[1] for name in more} == {"det_head"}


@pytest.mark.slow
def test_sensitivity_finds_the_layer_that_was_spoilt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {f"w{at}": rng.normal(size=(8, 8, 3, 3)).astype(np.float32) / 9 for at in range(4)}
    # The same function, but what layer 2 reads has one channel 200 times as large as the others.
    weights["w1"][0] *= 200.0
    weights["w2"][:, 0] /= 200.0
    weights["w0"] = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    names = ["images", "a", "b", "c", "y"]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node(
                "Conv",
                [names[at], f"w{at}"],
                [names[at + 1]],
                f"/net/layer{at}/Conv",
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
            )
            for at in range(4)
        ],
        "g",
        [info("images", 1, [1, 3, PX, PX])],
        [info("y", 1, [1, 8, PX, PX])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    onnx.save(model, str(path))
    whole, rows = sensitivities(path, PHOTOS[:2], PHOTOS[2:], depth=2)
    assert rows[0].group == "/net/layer2"
    assert {row.group for row in rows} == {f"/net/layer{at}" for at in range(4)}
    assert all(row.alone_db["y"] > whole["y"] - 0.5 for row in rows)
    assert min(rows, key=lambda row: row.alone_db["y"]).group == "/net/layer2"


@pytest.mark.parametrize(
    ("more", "split", "first"), [([], "val", 0), (["--split", "train"], "train", 5)]
)
def test_the_split_that_is_scored_chooses_no_layer(
    pond: PackedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    split: str,
    first: int,
) -> None:
    asked: list[list[Any]] = []

    def measure(path: Path, *photos: list[Any], **more: Any) -> Any:
        asked.extend(photos)
        return {"y": 20.0}, []

    monkeypatch.setattr(sensitivity, "sensitivities", measure)
    info = helper.make_tensor_value_info
    node = helper.make_node("Relu", ["images"], ["y"])
    shape = [1, 3, PX, PX]
    graph = helper.make_graph([node], "g", [info("images", 1, shape)], [info("y", 1, shape)])
    onnx.save(helper.make_model(graph, ir_version=8), str(tmp_path / "model.onnx"))
    words = [str(tmp_path / "model.onnx"), "--pack", str(pond.root), "--calibration", "5"]
    sensitivity.main([*words, "--photos", "3", *more])
    calibration, compared = asked
    assert (len(calibration), len(compared)) == (5, 3)
    pixels = eval_transform(Recipe(image_px=PX))(pond.split(split)[first]).image.numpy() / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    assert np.allclose(compared[0], expected, atol=1e-4)
    assert f"on 3 photos of the {split} split" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sensitivity.main([*words, "--split", "test"])
    with pytest.raises(SystemExit):  # all eight calibrate
        sensitivity.main([*words[:3], "--calibration", "8", "--split", "train"])
    assert "no photo left" in capsys.readouterr().err
