"""Write one graph of a network as ONNX: opset 12, float32, raw outputs, checked against torch."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharedenc.errors import ExportError, check_choice
from sharedenc.export.architecture import architecture_digest
from sharedenc.export.metadata import describe, describe_boxes
from sharedenc.export.parity import TOLERANCE, check_parity, natural_images
from sharedenc.models.boxes import MAX_LOG_SCALE, WEIGHTS
from sharedenc.models.detection_head import DetectionHead, _box_generator
from sharedenc.models.network import Network
from sharedenc.models.weights import file_sha256
from sharedenc.spec import GRAPHS, Graph, Task

OPSET = 12
INPUT = "images"
# Outputs of each graph, in the file's order.
OUTPUTS: dict[Graph, tuple[str, ...]] = {
    "encoder": ("low", "mid", "high"),
    "det": ("cls_logits", "bbox_regression"),
    "seg": ("seg_logits",),
    "dual": ("cls_logits", "bbox_regression", "seg_logits"),
}
TASKS_OF: dict[Graph, tuple[Task, ...]] = {
    "encoder": (),
    "det": ("det",),
    "seg": ("seg",),
    "dual": ("det", "seg"),
}
PARITY_IMAGES = 2


@dataclass(frozen=True)
class ExportInfo:
    """One written file: ``parity`` is that of `sharedenc.export.parity.check_parity`."""

    path: Path
    graph: Graph
    sha256: str
    architecture: str
    outputs: tuple[str, ...]
    parity: dict[str, dict[str, float]]


class GraphModule(nn.Module):
    """The part of a network that one graph holds, with its outputs as a tuple in order."""

    def __init__(self, network: Network, graph: Graph, image_px: int) -> None:
        super().__init__()
        self.graph = graph
        self.size = (image_px, image_px)
        self.encoder = network.encoder
        self.det_head = network.det_head if "det" in TASKS_OF[graph] else None
        self.seg_head = network.seg_head if "seg" in TASKS_OF[graph] else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features: dict[str, Tensor] = self.encoder(images)
        outputs = dict(features)
        if self.det_head is not None:
            outputs.update(self.det_head(features))
        if self.seg_head is not None:
            outputs["seg_logits"] = self.seg_head(features, self.size)
        return tuple(outputs[name] for name in OUTPUTS[self.graph])


def graphs_of(network: Network) -> tuple[Graph, ...]:
    """The graphs that can be exported from ``network``; every network has an encoder."""
    return tuple(graph for graph in GRAPHS if set(TASKS_OF[graph]) <= set(network.tasks))


def export_graph(
    network: Network,
    graph: Graph,
    path: Path,
    *,
    meta: Mapping[str, Any],
    image_px: int = 320,
    images: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> ExportInfo:
    """Export ``graph`` of ``network`` to ``path`` and prove the file against the network.

    The input ``images`` is ``[1, 3, image_px, image_px]`` float32, already normalised; outputs are
    raw (`OUTPUTS`). The network itself is left as it is, on its device and in its mode.

    Args:
        meta: the checkpoint's meta (classes, mean, std, cell, key, ...); it becomes the file's
            metadata and never part of the architecture.
        images: normalised photos ``[N, 3, H, W]`` to check with (resized if need be); photo-like
            noise otherwise.
        tolerance: see `check_parity`.

    Raises:
        ExportError: the network lacks a head that the graph needs, an operator cannot be exported,
            the checker refuses the file, or its outputs differ from torch's or are dead.
        SpecError: ``graph`` is no graph.
    """
    check_choice("graph", graph, GRAPHS)
    if graph not in graphs_of(network):
        raise ExportError(
            f"graph {graph!r} needs the tasks {', '.join(TASKS_OF[graph])}; this network has "
            f"{', '.join(network.tasks)}, so it gives {', '.join(graphs_of(network))}."
        )
    # A copy, contiguous float32 on the CPU, whatever training used.
    module = GraphModule(copy.deepcopy(network), graph, image_px).cpu().float().eval()
    module = module.to(memory_format=torch.contiguous_format)
    if images is None:
        images = natural_images(PARITY_IMAGES, image_px)
    images = images.detach().to("cpu", torch.float32).contiguous()
    if images.shape[-2:] != (image_px, image_px):
        images = F.interpolate(images, (image_px, image_px), mode="bilinear")
    settle_unseen_taps(module, images[:1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        _trace(module, images[:1], draft)
        model = onnx.load(str(draft))
        _store_folded_constants(model.graph)
        architecture = architecture_digest(model)
        shapes = {v.name: _shape(v) for v in model.graph.output}
        boxes = None if module.det_head is None else _boxes(module.det_head, image_px)
        entries = describe(
            graph=graph,
            meta=meta,
            image_px=image_px,
            architecture=architecture,
            outputs=shapes,
            boxes=boxes,
        )
        onnx.helper.set_model_props(model, entries)
        check_model(model, str(path))
        onnx.save(model, str(draft))
        parity = check_parity(module, draft, images, OUTPUTS[graph], tolerance)
        os.replace(draft, path)
    return ExportInfo(path, graph, file_sha256(path), architecture, OUTPUTS[graph], parity)


@torch.no_grad()
def settle_unseen_taps(module: nn.Module, image: Tensor) -> list[str]:
    """Set weights that are not finite and that no pixel ever meets to zero, in place.

    On maps of one or two pixels most taps of a 3x3 convolution only ever see padding. Training on
    tiny images was seen to leave a NaN in such a tap: torch skips it, another runtime need not.

    Returns:
        Names of the parameters that were changed; none if an output depends on any of them.
    """
    broken = {
        name: weight
        for name, weight in module.named_parameters()
        if weight.ndim == 4 and not bool(torch.isfinite(weight).all())
    }
    if not broken:
        return []
    kept = {name: weight.clone() for name, weight in broken.items()}
    before = module(image)
    for weight in broken.values():
        weight.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    if all(torch.equal(one, other) for one, other in zip(before, module(image), strict=True)):
        return list(broken)
    for name, weight in broken.items():
        weight.copy_(kept[name])
    return []


def check_model(model: onnx.ModelProto, where: str) -> None:
    """Run ONNX's own checker with full shape inference.

    Raises:
        ExportError: the checker refuses the model.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX checker refuses {where}: {error}") from error


def read_model(path: Path) -> onnx.ModelProto:
    """Load an ONNX file that may be anything.

    Raises:
        ExportError: the file is missing, cut, or no valid ONNX model.
    """
    try:
        model = onnx.load(str(path))
    except FileNotFoundError as error:
        raise ExportError(f"there is no ONNX file {path}.") from error
    except Exception as error:  # protobuf's DecodeError is private to its implementation
        raise ExportError(f"{path} is not an ONNX file ({error}). Export the run again.") from error
    check_model(model, str(path))
    return model


def _trace(module: GraphModule, example: Tensor, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            # torch has marked its TorchScript exporter as old in every call since 2.9; the newer
            # one cannot write opset 12, which the boards' tools read best.
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(
                module,
                (example,),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS[module.graph]),
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ExportError(
            f"torch cannot export graph {module.graph!r} at opset {OPSET}: {error}"
        ) from error


def _store_folded_constants(graph: onnx.GraphProto) -> None:
    """Replace ``Identity`` of a stored tensor by a tensor of its own.

    The exporter stores equal tensors once and points to them through ``Identity`` nodes. Which
    tensors are equal depends on the training (all fresh biases are), the graph must not.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in stored:
            twin = graph.initializer.add()
            twin.CopyFrom(stored[node.input[0]])
            twin.name = node.output[0]
            stored[twin.name] = twin
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        nodes = [copy.deepcopy(node) for node in kept]
        del graph.node[:]
        graph.node.extend(nodes)


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [int(d.dim_value) for d in value.type.tensor_type.shape.dim]


def _boxes(head: DetectionHead, image_px: int) -> dict[str, Any]:
    generator = _box_generator()
    return describe_boxes(
        head.anchors(image_px).numpy(),
        coder_weights=WEIGHTS,
        clip=MAX_LOG_SCALE,
        generator={
            "kind": "SSD default boxes",
            "grids": head.grids(image_px),
            "scales": list(generator.scales),
            "aspect_ratios": [list(ratios) for ratios in generator.aspect_ratios],
        },
    )
