"""One encoder with the heads of its tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sharedenc.models.detection_head import DetectionHead
from sharedenc.models.encoders import Encoder
from sharedenc.models.segmentation_head import SegmentationHead
from sharedenc.spec import Task


class Network(nn.Module):
    """An encoder and one or two heads.

    State dict keys begin with ``encoder.``, ``det_head.`` and ``seg_head.``.
    ``num_classes`` counts the background; ``backbone`` is the encoder's name in the registry.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        det_head: DetectionHead | None,
        seg_head: SegmentationHead | None,
        num_classes: int,
        backbone: str,
    ) -> None:
        super().__init__()
        assert det_head is not None or seg_head is not None, "a network has at least one head"
        self.encoder = encoder
        self.det_head = det_head
        self.seg_head = seg_head
        self.num_classes = num_classes
        self.backbone = backbone

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks whose heads the network has, in the order of `sharedenc.spec.TASKS`."""
        heads: dict[Task, nn.Module | None] = {"det": self.det_head, "seg": self.seg_head}
        return tuple(task for task, head in heads.items() if head is not None)

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """The encoder's maps; without a gradient graph when nothing of the encoder trains."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder.trains):
            maps: dict[str, Tensor] = self.encoder(x)
        return maps

    def decode(self, maps: dict[str, Tensor], size: tuple[int, int] | None) -> dict[str, Tensor]:
        """Head outputs for the encoder's maps of images of ``size`` (H, W); see `forward`.

        Without a size the segmentation logits stay on the low map's grid.
        """
        outputs: dict[str, Tensor] = {}
        if self.det_head is not None:
            outputs.update(self.det_head(maps))
        if self.seg_head is not None:
            outputs["seg_logits"] = self.seg_head(maps, size)
        return outputs

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Raw outputs of the network's tasks for normalised images ``[B, 3, H, W]``.

        ``cls_logits [B, A, C]``, ``bbox_regression [B, A, 4]`` and ``seg_logits [B, C, H, W]``.
        """
        height, width = int(x.shape[-2]), int(x.shape[-1])
        return self.decode(self.encode(x), (height, width))
