"""AdamW in one kernel against AdamW parameter by parameter."""

from __future__ import annotations

from dataclasses import replace

import torch

from sharedenc.models.build import build_network
from sharedenc.models.freeze import apply_freeze
from sharedenc.spec import Recipe, installed_torch, resolve_numerics
from sharedenc.training.learner import make_optimizer

STEPS, LR = 10, 1e-2


def trained(fused: bool) -> tuple[list[torch.Tensor], bool]:
    """Parameters after steps of random gradients, biases alone in the encoder; and which kernel."""
    recipe = Recipe(weight_decay=0.1)
    numerics = resolve_numerics(recipe, "resnet18", "cpu", installed_torch())
    numerics = replace(numerics, precision="bfloat16" if fused else "float32")
    network = build_network("resnet18", ("seg",), 3, seed=0)
    apply_freeze(network.encoder, "bias")
    optimizer = make_optimizer(network, recipe, LR, numerics)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return list(network.parameters()), bool(optimizer.defaults["fused"])


def test_one_kernel_takes_the_steps_of_many() -> None:
    (ours, fused), (theirs, plain) = trained(True), trained(False)
    assert (fused, plain) == (True, False)
    start = list(build_network("resnet18", ("seg",), 3, seed=0).parameters())
    moved = [not torch.equal(a, b) for a, b in zip(theirs, start, strict=True)]
    assert any(moved)
    assert not all(moved)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
