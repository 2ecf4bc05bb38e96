"""Freeze modes, proved on tensors after real optimiser steps."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from sharedenc.errors import SpecError
from sharedenc.models.build import build_network
from sharedenc.models.encoders import Encoder
from sharedenc.models.freeze import FREEZE_MODES, apply_freeze, register_freeze
from sharedenc.models.network import Network
from sharedenc.spec import FREEZES, Freeze

BUILTIN = ("resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121")


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not value.equal(before[name])}


def train_steps(network: Network, steps: int, image_px: int = 64) -> None:
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        outputs = network(torch.randn(2, 3, image_px, image_px, generator=generator))
        loss = torch.stack([(output - 1).square().mean() for output in outputs.values()]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def test_modes_are_those_of_the_axis() -> None:
    assert set(get_args(Freeze)) <= set(FREEZE_MODES)
    assert set(FREEZE_MODES) == set(FREEZES)


@pytest.mark.parametrize("backbone", BUILTIN)
def test_frozen_and_bias_change_exactly_what_they_name(backbone: str) -> None:
    network = build_network(backbone, ("det", "seg"), 3, seed=0)
    apply_freeze(network.encoder, "frozen")
    before, heads = state_of(network.encoder), state_of(network)
    train_steps(network, 4)
    assert changed(network.encoder, before) == set()
    assert any(name.startswith("det_head.") for name in changed(network, heads))
    assert any(name.startswith("seg_head.") for name in changed(network, heads))

    apply_freeze(network.encoder, "bias")
    train_steps(network, 2)
    assert changed(network.encoder, before) == {n for n in before if n.endswith(".bias")}


def test_frozen_stays_frozen_through_many_steps_and_switches() -> None:
    network = build_network("resnet18", ("det", "seg"), 3, seed=1)
    apply_freeze(network.encoder, "frozen")
    before = state_of(network.encoder)
    for _ in range(3):
        train_steps(network, 10, image_px=32)
        network.eval()
    assert changed(network.encoder, before) == set()
    assert not network.encoder.training


def test_bias_set_bn_beta_changes_only_batch_norm_biases() -> None:
    network = build_network("mobilenet_v3_large", ("seg",), 3, seed=0)
    apply_freeze(network.encoder, "bias", bias_set="bn_beta")
    before = state_of(network.encoder)
    train_steps(network, 2)
    moved = changed(network.encoder, before)
    assert moved == {n for n in before if n.endswith(".bias") and ".fc" not in n}
    assert any(".fc1.bias" in name for name in before)


def test_bn_mode_train_moves_statistics_and_nothing_else() -> None:
    network = build_network("resnet18", ("seg",), 3, seed=0)
    apply_freeze(network.encoder, "frozen", bn_mode="train")
    before = state_of(network.encoder)
    train_steps(network, 2)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed(network.encoder, before) == {n for n in before if n.endswith(statistics)}


def test_none_trains_every_tensor_of_the_encoder() -> None:
    network = build_network("resnet18", ("det", "seg"), 3, seed=0)
    apply_freeze(network.encoder, "frozen")
    apply_freeze(network.encoder, "none")
    before = state_of(network.encoder)
    train_steps(network, 2)
    assert network.encoder.training
    assert changed(network.encoder, before) == set(before)


def test_frozen_encoders_have_no_graph_and_no_stochastic_depth() -> None:
    network = build_network("efficientnet_v2_s", ("seg",), 3, seed=0)
    images = torch.randn(2, 3, 32, 32)
    apply_freeze(network.encoder, "frozen")
    network.train()
    first, second = network.encode(images), network.encode(images)
    assert not first["high"].requires_grad
    assert all(first[level].equal(second[level]) for level in first)
    apply_freeze(network.encoder, "bias")
    assert network.encode(images)["low"].requires_grad


def test_a_wrong_mode_is_named() -> None:
    network = build_network("resnet18", ("seg",), 3, seed=0)
    with pytest.raises(SpecError, match=r"freeze='frosen'.*Did you mean 'frozen'"):
        apply_freeze(network.encoder, "frosen")
    with pytest.raises(SpecError, match="bn_mode='evil'"):
        apply_freeze(network.encoder, "frozen", bn_mode="evil")


def test_a_mode_from_outside_joins_the_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharedenc.models.freeze.FREEZE_MODES", dict(FREEZE_MODES))
    monkeypatch.setattr("sharedenc.spec.FREEZES", list(FREEZES))

    def gamma(encoder: Encoder, bias_set: str) -> set[str]:
        norms = {n for n, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
        return {f"{name}.weight" for name in norms}

    register_freeze("gamma", gamma)
    from sharedenc.spec import Cell

    cell = Cell.parse("resnet18/share-gamma/seg")
    network = build_network("resnet18", cell.tasks, 3, seed=0)
    apply_freeze(network.encoder, cell.freeze)
    before = state_of(network.encoder)
    train_steps(network, 2)
    assert len(changed(network.encoder, before)) == 20
    with pytest.raises(SpecError, match="'gamma' exists already"):
        register_freeze("gamma", gamma)
