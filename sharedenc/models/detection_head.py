"""SSDLite: two encoder maps, four extra ones, class logits and box offsets per anchor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init

from sharedenc.errors import SpecError

EXTRA_CHANNELS = (512, 256, 256, 128)
NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)


def _box_generator() -> DefaultBoxGenerator:
    """Scales .2 to .95 of the image, six shapes per location on each of the six maps."""
    return DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)


class DetectionHead(nn.Module):
    """SSDLite head on the encoder's ``mid`` and ``high`` maps.

    The four extra blocks on ``high`` belong to the head: they train when the encoder does not.
    Source: Sandler et al., CVPR 2018, arXiv 1801.04381; built from torchvision's ssdlite parts.
    """

    def __init__(
        self,
        mid_channels: int,
        high_channels: int,
        num_classes: int,
        *,
        mid_stride: int = 16,
        high_stride: int = 32,
    ) -> None:
        """``num_classes`` counts the background; strides are in input pixels."""
        super().__init__()
        self.num_classes = num_classes
        self.strides = (mid_stride, high_stride)
        channels = (high_channels, *EXTRA_CHANNELS)
        self.extra = nn.ModuleList(
            _extra_block(before, after, NORM) for before, after in itertools.pairwise(channels)
        )
        _normal_init(self.extra)
        shapes = _box_generator().num_anchors_per_location()
        self.head = SSDLiteHead([mid_channels, *channels], shapes, num_classes, NORM)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``cls_logits [B, A, num_classes]`` and ``bbox_regression [B, A, 4]``, before softmax."""
        maps = [features["mid"], features["high"]]
        for block in self.extra:
            maps.append(block(maps[-1]))
        outputs: dict[str, Tensor] = self.head(maps)
        return outputs

    def grids(self, image_px: int) -> list[int]:
        """Side length of each of the six maps, in cells, for square images.

        Raises:
            SpecError: the encoder's maps do not tile the image.
        """
        if any(image_px % stride for stride in self.strides) or image_px < 1:
            raise SpecError(
                f"image_px={image_px} must be a multiple of {math.lcm(*self.strides)} "
                "(the strides of the encoder's maps)"
            )
        sides = [image_px // stride for stride in self.strides]
        for _ in EXTRA_CHANNELS:
            sides.append((sides[-1] + 1) // 2)
        return sides

    def anchors(self, image_px: int) -> Tensor:
        """Default boxes ``[A, 4]``, float32 xyxy in pixels, on the head's device; 3234 at 320."""
        grids = [[side, side] for side in self.grids(image_px)]
        boxes = _box_generator()._grid_default_boxes(grids, [image_px, image_px])
        centre, size = boxes[:, :2], boxes[:, 2:]
        corners = torch.cat((centre - 0.5 * size, centre + 0.5 * size), dim=1) * image_px
        return corners.to(next(self.parameters()).device)
