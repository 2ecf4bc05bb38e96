"""A backbone from outside the package: torchvision's ShuffleNetV2 x0.5 cut into three maps.

Use: ``sharedenc models --plugin tests/models/example_plugin.py``.
"""

from __future__ import annotations

from typing import ClassVar

import torchvision
from torch import Tensor

from sharedenc.models.encoders import Encoder, FeatureMap, Level
from sharedenc.models.plugins import register_encoder


class ShuffleNetEncoder(Encoder):
    """Stages 2, 3 and 4 (with the last convolution) of ShuffleNetV2 x0.5."""

    feature_maps: ClassVar[dict[Level, FeatureMap]] = {
        "low": FeatureMap("stage2", 48, 8),
        "mid": FeatureMap("stage3", 96, 16),
        "high": FeatureMap("conv5", 1024, 32),
    }

    def __init__(self) -> None:
        super().__init__()
        self.body = torchvision.models.shufflenet_v2_x0_5(weights=None)
        del self.body.fc

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        body = self.body
        low = body.stage2(body.maxpool(body.conv1(x)))
        mid = body.stage3(low)
        return {"low": low, "mid": mid, "high": body.conv5(body.stage4(mid))}


register_encoder("shufflenet_v2_x0_5", ShuffleNetEncoder, lr=5e-4)
