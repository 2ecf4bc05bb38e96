"""What this machine can do at most, on one thread, and what a training step needs of it.

A step cannot be faster than its arithmetic at the rate of the best matrix product, nor than its
memory traffic at the rate of a copy. The traffic is that of a program that fuses nothing: each
operation reads its inputs and writes its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.dispatch import Operations
from benchmarks.protocol import timed
from sharedenc.models.build import build_network
from sharedenc.models.counting import training_flops
from sharedenc.models.network import Network

ROUNDS = 5
GEMM = 1024
CONV_CHANNELS, CONV_SIDE = 256, 40
COPY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Roofs:
    """Rates of one thread: convolution and matrix product in FLOP/s, copy in bytes/s."""

    conv_float32: float
    gemm_bfloat16: float
    copy: float

    def step_s(self, demand: Demand, precision: str) -> float:
        """Seconds of one image's training step at the least, in ``float32`` or ``bfloat16``."""
        if precision == "float32":
            return max(demand.flops / self.conv_float32, demand.bytes / self.copy)
        return max(demand.flops / self.gemm_bfloat16, demand.bytes / 2 / self.copy)


@dataclass(frozen=True)
class Demand:
    """One image's forward and backward pass: FLOPs, and bytes of traffic in float32."""

    flops: float
    bytes: float


def measure(rounds: int = ROUNDS) -> Roofs:
    """The best of some rounds each, in CPU time of the calling thread's one thread."""
    left = torch.randn(GEMM, GEMM).bfloat16()
    images = torch.randn(4, CONV_CHANNELS, CONV_SIDE, CONV_SIDE)
    images = images.to(memory_format=torch.channels_last)
    weight = torch.randn(CONV_CHANNELS, CONV_CHANNELS, 3, 3).to(memory_format=torch.channels_last)
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    with torch.no_grad():
        gemm_s = _best(lambda: left @ left, rounds)
        conv_s = _best(lambda: F.conv2d(images, weight, padding=1), rounds)
        copy_s = _best(lambda: target.copy_(source), rounds)
    conv_flops = 2 * 9 * CONV_CHANNELS**2 * images[:, 0].numel()
    # A copy reads each byte and writes it.
    return Roofs(conv_flops / conv_s, 2 * GEMM**3 / gemm_s, 2 * COPY_BYTES / copy_s)


def _best(work: Callable[[], Any], rounds: int) -> float:
    work()
    return min(timed(work).figure for _ in range(rounds))


def demand(backbone: str, num_classes: int, image_px: int) -> Demand:
    """What one image of a dual training needs, counted without computing."""
    with torch.device("meta"):
        network = build_network(backbone, ("det", "seg"), num_classes, seed=0)
    return Demand(training_flops(network, image_px), traffic_bytes(network, image_px))


def traffic_bytes(network: Network, image_px: int) -> float:
    """Bytes that the operations of one image's forward and backward pass read and write."""
    batch = 2
    network.train()
    with Operations() as traffic:
        images = torch.zeros(batch, 3, image_px, image_px, device="meta")
        outputs = network.decode(network.encode(images), None)
        torch.stack([output.sum() for output in outputs.values()]).sum().backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)
    return float(traffic.bytes) / batch
