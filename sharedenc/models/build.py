"""Build networks by name and seed, and say what they cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from sharedenc.errors import SpecError, check_choice
from sharedenc.models.counting import forward_flops, parameters_of
from sharedenc.models.detection_head import DetectionHead
from sharedenc.models.encoders import ENCODERS, LEVELS, Encoder, FeatureMap, Level, build_encoder
from sharedenc.models.freeze import FREEZE_MODES
from sharedenc.models.network import Network
from sharedenc.models.segmentation_head import SegmentationHead
from sharedenc.spec import GRAPHS, TASKS, Graph, Task

Part = TypeVar("Part", bound=nn.Module)


def part_seed(seed: int, part: str) -> int:
    """A seed of 63 bits for one part of a network, so that no part depends on the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{part}".encode()).digest()[:8], "big") >> 1


def _seeded(seed: int, build: Callable[[], Part]) -> Part:
    """Build from a random state of its own; the caller's is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def build_network(backbone: str, tasks: Iterable[Task], num_classes: int, *, seed: int) -> Network:
    """A randomly initialised network with the heads of ``tasks``.

    Encoder and heads are drawn from seeds of their own: the detection head of a baseline, of a
    shared and of a dual network with the same seed starts from the same values.

    Raises:
        SpecError: unknown backbone or task, no task, or fewer than two classes.
    """
    wanted = tuple(tasks)
    for task in wanted:
        check_choice("task", task, TASKS)
    if not wanted:
        raise SpecError(f"a network needs at least one task of {', '.join(TASKS)}")
    if num_classes < 2:
        raise SpecError(
            f"num_classes={num_classes} must be at least 2: the background and one class"
        )
    encoder = _seeded(part_seed(seed, "encoder"), lambda: build_encoder(backbone))
    low, mid, high = (encoder.feature_maps[level] for level in LEVELS)

    def det_head() -> DetectionHead:
        return DetectionHead(
            mid.channels,
            high.channels,
            num_classes,
            mid_stride=mid.stride,
            high_stride=high.stride,
        )

    def seg_head() -> SegmentationHead:
        return SegmentationHead(low.channels, high.channels, num_classes)

    return Network(
        encoder,
        det_head=_seeded(part_seed(seed, "det"), det_head) if "det" in wanted else None,
        seg_head=_seeded(part_seed(seed, "seg"), seg_head) if "seg" in wanted else None,
        num_classes=num_classes,
        backbone=backbone,
    )


def meta_network(backbone: str, num_classes: int) -> Network:
    """A dual network without memory behind its tensors, for counting."""
    with torch.device("meta"):
        return build_network(backbone, TASKS, num_classes, seed=0)


def feature_maps(backbone: str) -> dict[Level, FeatureMap]:
    """The taps of a backbone's encoder, from ``low`` to ``high``."""
    with torch.device("meta"):
        maps = build_encoder(backbone).feature_maps
    return {level: maps[level] for level in LEVELS}


def trainable_parameters(encoder: Encoder, freeze: str, bias_set: str = "named") -> int:
    """Number of the encoder's parameters that train under a freeze mode."""
    names = FREEZE_MODES[freeze](encoder, bias_set)
    return sum(p.numel() for name, p in encoder.named_parameters() if name in names)


def _heads(graph: Graph) -> tuple[Task, ...]:
    if graph == "encoder":
        return ()
    return TASKS if graph == "dual" else (graph,)


def _row(network: Network, flops: dict[str, int], graph: Graph) -> dict[str, Any]:
    parts = {"det": network.det_head, "seg": network.seg_head}
    heads = sum(parameters_of(parts[task]) for task in _heads(graph))
    return {
        "backbone": network.backbone,
        "graph": graph,
        "num_classes": network.num_classes,
        "parameters": parameters_of(network.encoder) + heads,
        "gflops": (flops["encoder"] + sum(flops[task] for task in _heads(graph))) / 1e9,
        "trainable": {
            mode: heads + trainable_parameters(network.encoder, mode) for mode in FREEZE_MODES
        },
    }


def model_rows(
    num_classes: int = 21, backbones: Iterable[str] | None = None, image_px: int = 320
) -> list[dict[str, Any]]:
    """One row per backbone and graph: parameters, GFLOPs per image, what trains per freeze mode.

    ``num_classes`` counts the background. A graph's parameters are those of its encoder and heads.
    """
    rows = []
    for backbone in ENCODERS if backbones is None else backbones:
        network = meta_network(backbone, num_classes)
        flops = forward_flops(network, image_px)
        rows += [_row(network, flops, graph) for graph in GRAPHS]
    return rows


def count_parameters(backbone: str, graph: str, num_classes: int) -> int:
    """Number of parameters of one graph of a backbone.

    Raises:
        SpecError: unknown backbone or graph.
    """
    check_choice("graph", graph, GRAPHS)
    network = meta_network(backbone, num_classes)
    parts = {"det": network.det_head, "seg": network.seg_head}
    heads = TASKS if graph == "dual" else [task for task in TASKS if task == graph]
    return parameters_of(network.encoder) + sum(parameters_of(parts[task]) for task in heads)
