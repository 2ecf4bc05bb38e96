"""Depthwise convolutions whose gradients are float32 against torch's own, and who is one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sharedenc.models.build import build_network
from sharedenc.spec import Recipe, resolve_numerics
from sharedenc.training.depthwise import Float32GradientConv2d, is_slow, use_float32_gradients
from sharedenc.training.numerics import place


def depthwise(kernel: int, stride: int) -> nn.Conv2d:
    torch.manual_seed(kernel + stride)
    return nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False)


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and gradients of its weighted sum with respect to input and weight."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y).bfloat16()
    weight = next(module.parameters())
    dx, dw = torch.autograd.grad(y, (x, weight), weights)
    return y.detach(), dx, dw


@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (5, 1), (3, 2)])
def test_outputs_are_the_same_bits_and_gradients_the_exact_ones(kernel: int, stride: int) -> None:
    ours, theirs = depthwise(kernel, stride), depthwise(kernel, stride)
    use_float32_gradients(ours)
    assert type(ours) is Float32GradientConv2d
    x = torch.randn(2, 6, 12, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    found, reference = gradients(ours, x), gradients(theirs, x)
    assert torch.equal(found[0], reference[0])
    # In float64 from the same rounded input and weight: ours is nearer than torch's own.
    exact = copy.deepcopy(theirs).double()
    exact.weight.data = theirs.weight.detach().bfloat16().double()
    point = x.double().requires_grad_()
    y = exact(point)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y).bfloat16().double()
    for mine, other, right in zip(
        found[1:],
        reference[1:],
        torch.autograd.grad(y, (point, exact.weight), weights),
        strict=True,
    ):
        error = (mine.double() - right).abs().max()
        assert mine.dtype == other.dtype
        assert error <= (other.double() - right).abs().max()
        assert error < 0.01 * right.abs().max()


def test_frozen_inputs_and_frozen_weights_get_no_gradient() -> None:
    module = depthwise(5, 2)
    use_float32_gradients(module)
    x = torch.randn(1, 6, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x).float().sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
    module.weight.requires_grad_(False).grad = None
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x).float().sum().backward()
    assert x.grad is not None
    assert module.weight.grad is None


def test_without_autocast_nothing_is_different() -> None:
    ours, theirs = depthwise(5, 2), depthwise(5, 2)
    use_float32_gradients(ours)
    x = torch.randn(1, 6, 8, 8)
    assert torch.equal(ours(x), theirs(x))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))


def test_only_what_is_slow_is_changed() -> None:
    assert is_slow(depthwise(5, 1))
    assert is_slow(depthwise(3, 2))
    assert not is_slow(depthwise(3, 1))
    assert not is_slow(nn.Conv2d(6, 6, 5, 2, 2, bias=False))
    assert not is_slow(nn.Conv2d(6, 6, 5, 2, 2, groups=6))


def test_placing_changes_networks_of_bfloat16_on_a_cpu_alone() -> None:
    for kind, precision, changed in (
        ("cpu", "bfloat16", True),
        ("cpu", "float32", False),
        ("cuda", "bfloat16", False),
    ):
        network = build_network("mobilenet_v3_large", ["det"], 3, seed=0)
        names = list(network.state_dict())
        recipe = Recipe.from_dict({"precision": precision})
        numerics = resolve_numerics(recipe, "mobilenet_v3_large", kind, "2.14")  # type: ignore[arg-type]
        place(network, numerics, "cpu")
        found = [m for m in network.modules() if isinstance(m, Float32GradientConv2d)]
        # Eight blocks of the encoder: 5x5 or with a stride; four strided blocks of the head.
        assert len(found) == (12 if changed else 0)
        assert list(network.state_dict()) == names
        copy.deepcopy(network)
