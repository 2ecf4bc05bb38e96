"""Encoders: their maps are torchvision's own activations, their names torchvision's own names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from sharedenc.errors import SpecError
from sharedenc.models.encoders import ENCODERS, build_encoder
from sharedenc.spec import BACKBONES

BUILTIN = ("resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121")


def test_every_builtin_backbone_has_an_encoder() -> None:
    assert {name for name, info in BACKBONES.items() if info.source == "builtin"} == set(BUILTIN)
    assert set(BUILTIN) <= set(ENCODERS)


def test_an_unknown_backbone_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match=r"'resnet19'.*Did you mean 'resnet18'"):
        build_encoder("resnet19")


@pytest.mark.parametrize("backbone", BUILTIN)
def test_maps_equal_the_activations_inside_torchvisions_model(backbone: str) -> None:
    torch.manual_seed(3)
    encoder = build_encoder(backbone).eval()
    # Statistics that are not the initial ones, so that deep maps are alive.
    for part in encoder.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.fill_(0.5)
    reference = torchvision.models.get_model(backbone, weights=None).eval()
    state = {name.removeprefix("body."): value for name, value in encoder.state_dict().items()}
    assert all(name.startswith("body.") for name in encoder.state_dict())
    result = reference.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert all(name.startswith(("fc.", "classifier.")) for name in result.missing_keys)

    seen: dict[str, Tensor] = {}
    for level, tap in encoder.feature_maps.items():

        def keep(_m: nn.Module, _i: object, output: Tensor, level: str = level) -> None:
            seen[level] = output.clone()

        reference.get_submodule(tap.name).register_forward_hook(keep)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        maps = encoder(images)
        reference(images)
    if backbone == "densenet121":
        # torchvision rectifies after `features`, in place.
        seen["high"] = F.relu(seen["high"])
    for level, tap in encoder.feature_maps.items():
        assert maps[level].shape == (2, tap.channels, 96 // tap.stride, 64 // tap.stride)
        assert float(maps[level].std()) > 0
        torch.testing.assert_close(maps[level], seen[level], rtol=1e-5, atol=1e-6)


def test_the_densenet_map_does_not_overwrite_what_a_hook_has_seen() -> None:
    encoder = build_encoder("densenet121").eval()
    seen: list[Tensor] = []
    encoder.get_submodule("body.features.norm5").register_forward_hook(
        lambda _m, _i, output: seen.append(output)
    )
    with torch.no_grad():
        high = encoder(torch.randn(1, 3, 64, 64))["high"]
    assert bool((seen[0] < 0).any())
    assert bool((high >= 0).all())
