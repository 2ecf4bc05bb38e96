"""Backbones cut into three feature maps, with channels and strides as data.

Each backbone has one encoder module, whichever heads read it: its state dict holds torchvision's
own names behind ``body.``, so a checkpoint moves between baseline, swap, share and dual as it is.
The taps are those that reproduce the published parameter counts: segmentation reads ``low`` and
``high``, detection reads ``mid`` and ``high``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from sharedenc.errors import check_choice

Level = Literal["low", "mid", "high"]
LEVELS: tuple[Level, ...] = ("low", "mid", "high")


@dataclass(frozen=True)
class FeatureMap:
    """One tap: the module whose output it is, its channels and its stride in input pixels."""

    name: str
    channels: int
    stride: int


class Encoder(nn.Module):
    """Images to three feature maps; heads read ``feature_maps`` and nothing else of it.

    ``forward`` takes normalised images ``[B, 3, H, W]`` (H and W multiples of the largest stride)
    and returns ``{"low", "mid", "high"}``, each ``[B, channels, H / stride, W / stride]``.
    ``registered_as`` is the backbone's name; empty for one that `build_encoder` has not made.
    """

    feature_maps: ClassVar[dict[Level, FeatureMap]]
    registered_as = ""

    def __init__(self) -> None:
        super().__init__()
        # Set by `apply_freeze`: batch statistics and stochastic depth stay off in training.
        self.stays_in_eval = False

    def train(self, mode: bool = True) -> Encoder:
        """Switch to training mode, unless a freeze mode holds the encoder in evaluation mode."""
        super().train(mode and not self.stays_in_eval)
        return self

    @property
    def trains(self) -> bool:
        """Whether any parameter of the encoder takes a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters())


def _run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _bare(architecture: str, **settings: Any) -> Any:
    """A torchvision classifier, randomly initialised, without its pooling and its last layers."""
    body = torchvision.models.get_model(architecture, weights=None, **settings)
    for part in ("avgpool", "fc", "classifier"):
        if hasattr(body, part):
            delattr(body, part)
    return body


class ResNet18Encoder(Encoder):
    """torchvision ``resnet18``: the outputs of stages 2, 3 and 4.

    Source: He et al., CVPR 2016, arXiv 1512.03385.
    """

    feature_maps: ClassVar[dict[Level, FeatureMap]] = {
        "low": FeatureMap("layer2", 128, 8),
        "mid": FeatureMap("layer3", 256, 16),
        "high": FeatureMap("layer4", 512, 32),
    }

    def __init__(self) -> None:
        super().__init__()
        self.body = _bare("resnet18")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See `Encoder`."""
        body = self.body
        x = _run((body.conv1, body.bn1, body.relu, body.maxpool, body.layer1), x)
        low = body.layer2(x)
        mid = body.layer3(low)
        return {"low": low, "mid": mid, "high": body.layer4(mid)}


class MobileNetV3LargeEncoder(Encoder):
    """torchvision ``mobilenet_v3_large`` with its full tail and without dilation.

    ``mid`` is the expansion inside block 13, computed once: the block goes on from it. The tail is
    the one that the ImageNet weights have, and no dilation keeps ``high`` at stride 32, so that one
    encoder serves both heads (torchvision's own LR-ASPP dilates, its own SSDLite cuts the tail).
    Source: Howard et al., ICCV 2019, arXiv 1905.02244.
    """

    feature_maps: ClassVar[dict[Level, FeatureMap]] = {
        "low": FeatureMap("features.6", 40, 8),
        "mid": FeatureMap("features.13.block.0", 672, 16),
        "high": FeatureMap("features.16", 960, 32),
    }

    def __init__(self) -> None:
        super().__init__()
        self.body = _bare("mobilenet_v3_large", reduced_tail=False, dilated=False)
        assert not self.body.features[13].use_res_connect

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See `Encoder`."""
        layers = list(self.body.features)
        expand, *rest = layers[13].block
        low = _run(layers[:7], x)
        mid = expand(_run(layers[7:13], low))
        return {"low": low, "mid": mid, "high": _run((*rest, *layers[14:]), mid)}


class EfficientNetV2SEncoder(Encoder):
    """torchvision ``efficientnet_v2_s``: ``mid`` is the expansion of the last strided block.

    That block has no residual connection, so it can be split after its expansion.
    Source: Tan & Le, ICML 2021, arXiv 2104.00298.
    """

    feature_maps: ClassVar[dict[Level, FeatureMap]] = {
        "low": FeatureMap("features.3", 64, 8),
        "mid": FeatureMap("features.6.0.block.0", 960, 16),
        "high": FeatureMap("features.7", 1280, 32),
    }

    def __init__(self) -> None:
        super().__init__()
        self.body = _bare("efficientnet_v2_s")
        assert not self.body.features[6][0].use_res_connect

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See `Encoder`."""
        layers = list(self.body.features)
        strided, *stage = layers[6]
        expand, *rest = strided.block
        low = _run(layers[:4], x)
        mid = expand(_run(layers[4:6], low))
        return {"low": low, "mid": mid, "high": _run((*rest, *stage, layers[7]), mid)}


class DenseNet121Encoder(Encoder):
    """torchvision ``densenet121``: all three maps are taken after an activation or a convolution.

    ``mid`` is the normalised and rectified end of dense block 3 (the concatenation itself has no
    activation); ``high`` adds the ReLU that torchvision applies outside ``features``, here on a
    new tensor, since an in-place one would overwrite what a hook on ``norm5`` has seen.
    Source: Huang et al., CVPR 2017, arXiv 1608.06993.
    """

    feature_maps: ClassVar[dict[Level, FeatureMap]] = {
        "low": FeatureMap("features.transition1", 128, 8),
        "mid": FeatureMap("features.transition3.relu", 1024, 16),
        "high": FeatureMap("features.norm5", 1024, 32),
    }

    def __init__(self) -> None:
        super().__init__()
        self.body = _bare("densenet121")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See `Encoder`."""
        f = self.body.features
        x = _run((f.conv0, f.norm0, f.relu0, f.pool0, f.denseblock1), x)
        low = f.transition1(x)
        x = _run((f.denseblock2, f.transition2, f.denseblock3), low)
        t = f.transition3
        mid = t.relu(t.norm(x))
        x = _run((t.conv, t.pool, f.denseblock4, f.norm5), mid)
        return {"low": low, "mid": mid, "high": F.relu(x)}


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "resnet18": ResNet18Encoder,
    "mobilenet_v3_large": MobileNetV3LargeEncoder,
    "efficientnet_v2_s": EfficientNetV2SEncoder,
    "densenet121": DenseNet121Encoder,
}


def build_encoder(name: str) -> Encoder:
    """A randomly initialised encoder, from torch's global random state.

    Raises:
        SpecError: no backbone has this name.
    """
    check_choice("backbone", name, ENCODERS)
    encoder = ENCODERS[name]()
    encoder.registered_as = name
    return encoder


def batch_norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """All batch normalisations of a module by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
