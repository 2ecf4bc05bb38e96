"""Resolved numerics, applied: threads, TF32, mixed precision, memory format, and seeds."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharedenc.data.batch import normalise
from sharedenc.models.network import Network
from sharedenc.spec import Numerics
from sharedenc.training.depthwise import use_float32_gradients


@contextlib.contextmanager
def applied(numerics: Numerics) -> Iterator[None]:
    """Set the process-wide switches for one trial and put them back afterwards."""
    threads = torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    cudnn_tf32 = torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    if numerics.cpu_threads > 0:
        torch.set_num_threads(numerics.cpu_threads)
    torch.set_float32_matmul_precision("high" if numerics.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = numerics.tf32
    torch.backends.cudnn.benchmark = numerics.device == "cuda"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = cudnn_tf32
        torch.backends.cudnn.benchmark = benchmark


def seed_everything(seed: int) -> None:
    """Seed every global generator. Data order and augmentation have generators of their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Every global generator, as tensors and plain values for `set_rng_state`."""
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, *rest = numpy_state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
    }


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put generators back to where `rng_state` read them; those that are not named stay."""
    torch.set_rng_state(state["torch"])
    if state.get("cuda") is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if "python" in state:
        random.setstate(state["python"])
    if "numpy" in state:
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def place(network: Network, numerics: Numerics, device: str) -> Network:
    """Move a network to its device and memory format, and choose its kernels."""
    if numerics.device == "cpu" and numerics.precision == "bfloat16":
        use_float32_gradients(network)
    layout = (
        torch.channels_last
        if numerics.memory_format == "channels_last"
        else torch.contiguous_format
    )
    return network.to(device=device, memory_format=layout)  # type: ignore[call-overload,no-any-return]


def fused_optimizer(numerics: Numerics) -> bool:
    """Whether AdamW takes all parameters in one kernel, which rounds differently.

    A CPU's bfloat16 trials do (their revision says so), its float32 trials keep their bits.
    """
    return numerics.device == "cuda" or numerics.precision == "bfloat16"


def encode(network: Network, images: Tensor, numerics: Numerics) -> dict[str, Tensor]:
    """The encoder's maps of uint8 images ``[B, 3, S, S]`` that lie on the network's device."""
    x = normalise(images, memory_format=numerics.memory_format)
    with _mixed(images.device, numerics):
        return network.encode(x)


def decode(network: Network, maps: dict[str, Tensor], numerics: Numerics) -> dict[str, Tensor]:
    """Raw outputs of the heads for `encode`'s maps; see `forward` without ``upsample``."""
    with _mixed(maps["high"].device, numerics):
        return network.decode(maps, None)


def _mixed(device: torch.device, numerics: Numerics) -> torch.autocast:
    mixed = numerics.precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed)


def forward(
    network: Network, images: Tensor, numerics: Numerics, *, upsample: bool = True
) -> dict[str, Tensor]:
    """Run the network on uint8 images ``[B, 3, S, S]`` that lie on its device.

    Args:
        upsample: Give segmentation logits at the images' size; the losses take them on the head's
            grid as well, where they are a sixty-fourth as large.
    """
    if not upsample:
        return decode(network, encode(network, images, numerics), numerics)
    x = normalise(images, memory_format=numerics.memory_format)
    with _mixed(images.device, numerics):
        outputs: dict[str, Tensor] = network(x)
    return outputs
