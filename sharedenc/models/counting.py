"""Parameters and floating-point operations of networks, counted without running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from sharedenc.models.network import Network


def parameters_of(module: nn.Module | None) -> int:
    """Number of parameters, buffers left out; 0 for a head that is not there."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _conv_backward_flops(
    grad_out_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    out_shape: Any = None,
    **_: Any,
) -> int:
    """One forward's worth for the input gradient and one for the weight gradient.

    torch's own formula leaves the groups out of the weight gradient, which counts a depthwise
    convolution as a dense one (up to 5 times too much for a whole EfficientNetV2-S).
    """
    forward = conv_flop_count(
        list(x_shape), list(w_shape), list(grad_out_shape), transposed=transposed
    )
    return int(forward * (int(output_mask[0]) + int(output_mask[1])))


def _counter() -> FlopCounterMode:
    formulas: dict[Any, Any] = {torch.ops.aten.convolution_backward: _conv_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _images_like(module: nn.Module, image_px: int, batch: int) -> Tensor:
    device = next(module.parameters()).device
    return torch.zeros(batch, 3, image_px, image_px, device=device)


def forward_flops(network: Network, image_px: int = 320) -> dict[str, int]:
    """FLOPs of one image through ``encoder``, ``det`` and ``seg`` (1 multiply-add = 2).

    Counted are convolutions and matrix products; the heads' own share does not hold the encoder.
    Build the network under ``torch.device("meta")``, where nothing is computed.
    """
    was_training = network.training
    network.eval()
    flops: dict[str, int] = {}
    with torch.no_grad():
        with _counter() as counter:
            maps = network.encode(_images_like(network, image_px, 1))
        flops["encoder"] = counter.get_total_flops()
        if network.det_head is not None:
            with _counter() as counter:
                network.det_head(maps)
            flops["det"] = counter.get_total_flops()
        if network.seg_head is not None:
            with _counter() as counter:
                network.seg_head(maps, (image_px, image_px))
            flops["seg"] = counter.get_total_flops()
    network.train(was_training)
    return flops


def training_flops(network: Network, image_px: int = 320) -> int:
    """FLOPs of one image's forward and backward pass, under the network's current freeze mode.

    A batch of two is counted and halved: batch normalisation cannot train on a single 1x1 map.
    """
    batch = 2
    was_training = network.training
    network.train()
    with _counter() as counter:
        outputs = network(_images_like(network, image_px, batch))
        total = torch.stack([output.sum() for output in outputs.values()]).sum()
        torch.autograd.backward(total)
    network.zero_grad(set_to_none=True)
    network.train(was_training)
    return int(counter.get_total_flops()) // batch
