"""What one image costs: operations and memory traffic by cell, and seconds on a kind of device.

The first guess of a trial's duration, before anything was measured. Operations are counted
(`sharedenc.models.counting`; a test holds the table to it), speeds are assumptions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from sharedenc.spec import Cell, Recipe

REFERENCE_PX = 320


@dataclass(frozen=True)
class Forward:
    """GFLOP of one 320 px image forward (1 multiply-add = 2), through encoder and heads.

    ``traffic``: MB moved by a whole step of both heads in float32, without fusion.
    """

    encoder: float
    det: float
    seg: float
    traffic: float


# 21 classes; the heads' share hardly depends on their number.
FORWARD: dict[str, Forward] = {
    "resnet18": Forward(7.402, 0.095, 0.030, 442),
    "mobilenet_v3_large": Forward(0.871, 0.189, 0.036, 707),
    "efficientnet_v2_s": Forward(11.619, 0.255, 0.046, 2216),
    "densenet121": Forward(11.564, 0.241, 0.044, 2364),
}

# Passes through the encoder in a training step: forward, gradient of inputs, gradient of weights.
PASSES = {"frozen": 1, "bias": 2, "none": 3}
HEAD_PASSES = 3

# One core of a recent server CPU. Measured: seconds of a step of both heads, per image, by
# torch 2.14 in bfloat16 and channels_last (`resources.COSTS` has the memory of the same runs).
CPU_SECONDS = {
    "resnet18": 0.20,
    "mobilenet_v3_large": 0.17,
    "efficientnet_v2_s": 0.50,
    "densenet121": 0.45,
}
CPU_FLOPS = 80e9
# Part of a full step's time on a CPU: more than its share of operations, for a frozen encoder too
# has its images to prepare.
CPU_FREEZE = {"frozen": 0.4, "bias": 0.75, "none": 1.0}
CPU_EVALUATION = 0.4

# A current data centre GPU at what plain training reaches of it: assumptions, a third of an
# A100's bfloat16 rate and bandwidth. Most steps are bound by the bandwidth.
GPU_FLOPS = 100e12
GPU_BYTES = 0.6e12


def forward_cost(backbone: str) -> Forward:
    """The table's entry, or a count on the meta device for a backbone from outside."""
    known = FORWARD.get(backbone)
    return known if known is not None else _counted(backbone)


@functools.cache
def _counted(backbone: str) -> Forward:
    """Count a plugin's backbone; the traffic is that of the known one with most per operation."""
    import torch

    from sharedenc.models.build import build_network
    from sharedenc.models.counting import forward_flops

    with torch.device("meta"):
        flops = forward_flops(build_network(backbone, ("det", "seg"), 21, seed=0), REFERENCE_PX)
    gflop = {name: count / 1e9 for name, count in flops.items()}
    return Forward(gflop["encoder"], gflop["det"], gflop["seg"], 200 * gflop["encoder"] + 400)


def training_gflop(cell: Cell, image_px: int = REFERENCE_PX) -> float:
    """GFLOP of one image's training step, by strategy and freeze mode."""
    cost = forward_cost(cell.backbone)
    heads = sum({"det": cost.det, "seg": cost.seg}[task] for task in cell.tasks)
    passes = PASSES.get(cell.freeze, PASSES["none"])
    return _pixels(image_px) * (passes * cost.encoder + HEAD_PASSES * heads)


def seconds_per_image(cell: Cell, recipe: Recipe, device: str) -> tuple[float, float]:
    """Seconds of one image's training step and of its evaluation; on a CPU, of one core.

    Args:
        device: ``cpu`` or ``cuda``, as in `Numerics`.
    """
    if device == "cpu":
        return _cpu_seconds(cell, recipe)
    cost = forward_cost(cell.backbone)
    passes = PASSES.get(cell.freeze, PASSES["none"])
    pixels = _pixels(recipe.image_px)
    width = 1.0 if recipe.precision == "float32" else 0.5
    moved = pixels * width * cost.traffic * 1e6 / GPU_BYTES
    step = max(training_gflop(cell, recipe.image_px) * 1e9 / GPU_FLOPS, moved * passes / 3)
    evaluation = max(pixels * cost.encoder * 1e9 / GPU_FLOPS, moved / 3)
    return step, evaluation


def _cpu_seconds(cell: Cell, recipe: Recipe) -> tuple[float, float]:
    whole = CPU_SECONDS.get(cell.backbone)
    if whole is None:
        dual = Cell(strategy="dual", backbone=cell.backbone)
        whole = training_gflop(dual) * 1e9 / CPU_FLOPS
    whole *= _pixels(recipe.image_px)
    return whole * CPU_FREEZE.get(cell.freeze, 1.0), whole * CPU_EVALUATION


def _pixels(image_px: int) -> float:
    return float((image_px / REFERENCE_PX) ** 2)
