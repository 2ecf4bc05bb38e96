"""LR-ASPP: per-pixel class logits from the encoder's low and high maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.lraspp import LRASPPHead

INTER_CHANNELS = 128


class SegmentationHead(nn.Module):
    """LR-ASPP head on the encoder's ``low`` and ``high`` maps, with 128 inner channels.

    Source: Howard et al., ICCV 2019, arXiv 1905.02244; torchvision's `LRASPPHead`.
    """

    def __init__(self, low_channels: int, high_channels: int, num_classes: int) -> None:
        """``num_classes`` counts the background."""
        super().__init__()
        self.num_classes = num_classes
        self.classifier = LRASPPHead(low_channels, high_channels, num_classes, INTER_CHANNELS)

    def forward(self, features: Mapping[str, Tensor], size: tuple[int, int] | None) -> Tensor:
        """Logits ``[B, num_classes, *size]``, upsampled bilinearly from the low map's grid.

        Without a size they stay on that grid, which is all that the loss wants.
        """
        logits: Tensor = self.classifier({"low": features["low"], "high": features["high"]})
        if size is None:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
