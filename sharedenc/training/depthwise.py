"""Gradients of some depthwise convolutions in float32 where the rest computes in bfloat16.

oneDNN has no fast bfloat16 kernel for the gradients of depthwise convolutions with a stride or with
5x5 kernels: they take 5 to 40 times as long as in float32, together more than a third of a
MobileNetV3's training step. Their outputs stay bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def use_float32_gradients(network: nn.Module) -> None:
    """Let those convolutions of a network compute gradients in float32 under CPU autocast.

    The modules stay what they are to everyone else: names, parameters and state dict included.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and is_slow(module):
            module.__class__ = Float32GradientConv2d


def is_slow(convolution: nn.Conv2d) -> bool:
    """Whether its gradients are slower in bfloat16 than in float32."""
    depthwise = convolution.groups == convolution.in_channels > 1
    far = max(convolution.stride) > 1 or max(convolution.kernel_size) > 3
    return depthwise and far and convolution.bias is None and convolution.padding_mode == "zeros"


class Float32GradientConv2d(nn.Conv2d):
    """A depthwise convolution without bias, as `use_float32_gradients` makes it."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        output = _Float32Gradient.apply(
            input, weight, self.stride, self.padding, self.dilation, self.groups
        )
        return output


class _Float32Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry = geometry
        # Autocast holds in here too: input and weight are rounded to bfloat16.
        return torch.conv2d(input, weight, None, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        gradients = torch.ops.aten.convolution_backward(
            grads[0].float(),
            input.float(),
            # What the forward pass used.
            weight.bfloat16().float(),
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [*ctx.needs_input_grad[:2], False],
        )
        kinds = (input.dtype, weight.dtype)
        found = [
            gradient.to(kind) if wanted else None
            for gradient, kind, wanted in zip(gradients, kinds, ctx.needs_input_grad, strict=False)
        ]
        return (*found, None, None, None, None)
