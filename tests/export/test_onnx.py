"""Exported files are the network: same outputs, sound graph, and told apart by architecture."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sharedenc.data.batch import eval_batches, normalise
from sharedenc.data.packed import PackedDataset
from sharedenc.errors import ExportError, SpecError
from sharedenc.export.metadata import read_metadata
from sharedenc.export.onnx import OUTPUTS, ExportInfo, export_graph, read_model
from sharedenc.export.parity import check_parity, natural_images, open_session, photos
from sharedenc.export.predict import read_image
from sharedenc.models.network import Network
from sharedenc.models.weights import load_encoder_weights, resolve_weights
from sharedenc.spec import BACKBONES, GRAPHS, Graph, Recipe
from tests.export.conftest import CLASSES, alive_network, meta_of


def run_file(path: Path, images: torch.Tensor) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


def assert_file_is_network(path: Path, graph: Graph, network: Network) -> None:
    image = natural_images(1, 320, seed=5)
    with torch.no_grad():
        expected = network.encoder(image) if graph == "encoder" else network(image)
    outputs = run_file(path, image)
    assert list(outputs) == list(OUTPUTS[graph])
    for name, values in outputs.items():
        wanted = expected[name].numpy()
        assert values.shape == wanted.shape
        assert wanted.std() > 0.01
        # ONNX Runtime and torch sum in another order; how far that goes depends on the processor.
        assert np.abs(values - wanted).max() < 2e-3 * wanted.std()


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_file_computes_what_the_network_computes(
    graph: Graph, exported: Callable[[Graph], ExportInfo], resnet_dual: Network
) -> None:
    info = exported(graph)
    assert_file_is_network(info.path, graph, resnet_dual)
    model = onnx.load(str(info.path))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 12)]
    (given,) = model.graph.input
    assert given.name == "images"
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [1, 3, 320, 320]
    assert info.sha256 == hashlib.sha256(info.path.read_bytes()).hexdigest()
    assert list(info.parity) == list(OUTPUTS[graph])
    for numbers in info.parity.values():
        assert numbers["std"] > 0.01
        assert numbers["relative"] <= numbers["limit"]
        assert numbers["limit"] == pytest.approx(max(1e-4, 4 * numbers["torch_rounding"]))


def test_each_graph_of_a_network_is_an_architecture_of_its_own(
    exported: Callable[[Graph], ExportInfo],
) -> None:
    assert len({exported(graph).architecture for graph in GRAPHS}) == len(GRAPHS)


def test_two_trainings_are_one_architecture_and_other_classes_another(
    resnet_dual: Network, tmp_path: Path
) -> None:
    def export(network: Network, graph: Graph, **more: Any) -> ExportInfo:
        meta = meta_of(network, **more)
        return export_graph(network, graph, tmp_path / "x.onnx", meta=meta, image_px=64)

    first = {graph: export(resnet_dual, graph) for graph in ("dual", "encoder")}
    trained = copy.deepcopy(resnet_dual)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in trained.state_dict().values():
            if tensor.dtype == torch.float32:
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(1 + 0.02 * noise).add_(0.002 * noise)
    again = export(trained, "dual", key="2" * 64, data="Lake")
    assert again.sha256 != first["dual"].sha256
    assert again.architecture == first["dual"].architecture

    wider = alive_network("resnet18", ("det", "seg"), classes=5)
    assert export(wider, "dual").architecture != first["dual"].architecture
    # The same encoder under other heads is the same thing to time.
    assert export(wider, "encoder").architecture == first["encoder"].architecture


def test_mobilenet_exports_its_single_task_graphs(tmp_path: Path) -> None:
    network = alive_network("mobilenet_v3_large", ("det",))
    info = export_graph(network, "det", tmp_path / "det.onnx", meta=meta_of(network))
    assert_file_is_network(info.path, "det", network)
    with pytest.raises(ExportError, match=r"'seg' needs the tasks seg; this network has det"):
        export_graph(network, "seg", tmp_path / "seg.onnx", meta=meta_of(network))
    with pytest.raises(SpecError, match="Did you mean 'dual'"):
        export_graph(network, "duall", tmp_path / "x.onnx", meta={})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_gives_four_graphs(backbone: str, tmp_path: Path) -> None:
    network = alive_network(backbone, ("det", "seg"))
    for graph in GRAPHS:
        info = export_graph(network, graph, tmp_path / f"{graph}.onnx", meta=meta_of(network))
        assert_file_is_network(info.path, graph, network)


def test_export_leaves_the_network_as_it_was(resnet_dual: Network, tmp_path: Path) -> None:
    network = copy.deepcopy(resnet_dual).to(memory_format=torch.channels_last).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export_graph(network, "seg", tmp_path / "seg.onnx", meta=meta_of(network), image_px=64)
    assert network.training
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


def test_the_metadata_says_how_to_use_the_file(
    exported: Callable[[Graph], ExportInfo], resnet_dual: Network
) -> None:
    raw = open_session(exported("dual").path).get_modelmeta().custom_metadata_map
    given = read_metadata(raw, "dual")
    assert given.labels == ("background", *CLASSES)
    assert given.image_px == 320
    assert given.mean == (0.485, 0.456, 0.406)
    assert resnet_dual.det_head is not None
    assert given.anchors is not None
    assert given.anchors.tolist() == resnet_dual.det_head.anchors(320).tolist()
    assert given.postprocess is not None
    assert given.postprocess.nms_iou == 0.55
    boxes = json.loads(raw["sharedenc.boxes"])
    assert sum(6 * side**2 for side in boxes["generator"]["grids"]) == boxes["count"] == 3234
    assert json.loads(raw["sharedenc.outputs"])["seg_logits"] == [1, len(CLASSES) + 1, 320, 320]
    assert raw["sharedenc.architecture"] == exported("dual").architecture
    assert raw["sharedenc.key"] == "0" * 64
    assert raw["sharedenc.data"] == "Pond"

    seg = open_session(exported("seg").path).get_modelmeta().custom_metadata_map
    assert read_metadata(seg, "seg").anchors is None
    boxes["anchors_sha256"] = "0" * 64
    damaged = {**raw, "sharedenc.boxes": json.dumps(boxes)}
    with pytest.raises(ExportError, match="anchors do not match"):
        read_metadata(damaged, "damaged")
    with pytest.raises(ExportError, match="lacks the metadata of a sharedenc export"):
        read_metadata({}, "foreign")


def test_a_dead_output_is_refused_and_leaves_no_file(resnet_dual: Network, tmp_path: Path) -> None:
    network = copy.deepcopy(resnet_dual)
    meta, path = meta_of(network), tmp_path / "seg.onnx"
    assert network.seg_head is not None
    with torch.no_grad():
        for parameter in network.seg_head.parameters():
            parameter.zero_()
    with pytest.raises(ExportError, match="'seg_logits' is dead"):
        export_graph(network, "seg", path, meta=meta, image_px=64)
    with torch.no_grad():
        next(network.seg_head.parameters()).fill_(float("nan"))
    with pytest.raises(ExportError, match="not finite"):
        export_graph(network, "seg", path, meta=meta, image_px=64)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_weight_that_no_pixel_meets_is_settled(
    resnet_dual: Network, tmp_path: Path
) -> None:
    network = copy.deepcopy(resnet_dual)
    meta, path = meta_of(network), tmp_path / "det.onnx"
    # On 64 pixels the last extra map has one pixel: of its 3x3 taps only the middle one meets it.
    name = "det_head.extra.3.1.0.weight"
    tap = network.get_parameter(name)
    with torch.no_grad():
        tap[0, 0, 1, 2] = float("nan")
    export_graph(network, "det", path, meta=meta, image_px=64)
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer]
    assert all(np.isfinite(values).all() for values in stored if values.dtype == np.float32)
    assert torch.isnan(tap[0, 0, 1, 2])  # the network itself is left as it is
    with torch.no_grad():
        tap[0, 0, 1, 1] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        export_graph(network, "det", path, meta=meta, image_px=64)


def test_a_file_of_other_weights_is_refused(
    exported: Callable[[Graph], ExportInfo], resnet_dual: Network
) -> None:
    network = copy.deepcopy(resnet_dual)
    with torch.no_grad():
        next(network.encoder.parameters()).mul_(1.01)

    class Maps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = network.encoder

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.encoder(images)[name] for name in OUTPUTS["encoder"])

    with pytest.raises(ExportError, match="differs from torch"):
        check_parity(
            Maps().eval(), exported("encoder").path, natural_images(1, 320), OUTPUTS["encoder"]
        )


def test_a_damaged_file_is_refused(exported: Callable[[Graph], ExportInfo], tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(exported("seg").path.read_bytes()[:100_000])
    text = tmp_path / "text.onnx"
    text.write_text("this is no model")
    for path in (cut, text):
        with pytest.raises(ExportError, match=f"{path.name} is not an ONNX file"):
            open_session(path)
        with pytest.raises(ExportError, match=str(path.name)):
            read_model(path)
    for read in (open_session, read_model):
        with pytest.raises(ExportError, match="there is no ONNX file"):
            read(tmp_path / "absent.onnx")


def test_photos_of_a_pack_are_what_the_network_is_scored_on(tiny_pack: PackedDataset) -> None:
    images = photos(tiny_pack.root, 2, 96)
    assert images.shape == (2, 3, 96, 96)
    batch = next(iter(eval_batches(tiny_pack.split("test"), Recipe(image_px=96), limit=2)))
    pixels = batch.images[1, :, 40, 50].double() / 255
    expected = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert images[1, :, 40, 50].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_pretrained_encoder_agrees_on_real_photos(shared_data: Path, tmp_path: Path) -> None:
    """MobileNetV3-Large with real weights: batch norms as trained, so nothing is amplified."""
    network = alive_network("mobilenet_v3_large", ("seg",))
    weights = shared_data / "weights" / "mobilenet_v3_large_features_from_rvm_int8.pth"
    load = resolve_weights(str(weights), "mobilenet_v3_large").load
    assert load is not None
    load_encoder_weights(network.encoder, load())
    files = sorted((shared_data / "coco_mini" / "val2017").glob("*.jpg"))[:2]
    pixels = [cv2.resize(read_image(path), (320, 320)) for path in files]
    images = normalise(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    info = export_graph(
        network, "encoder", tmp_path / "e.onnx", meta=meta_of(network), images=images
    )
    assert {name: numbers["relative"] < 1e-4 for name, numbers in info.parity.items()} == {
        "low": True,
        "mid": True,
        "high": True,
    }
