"""A training step as torchvision's reference scripts write it: what ours is compared with.

Float32, contiguous NCHW, normalised pictures, logits upsampled to the picture's size inside the
network, `SSD.compute_loss` with its matcher, cross-entropy that leaves 255 out, AdamW, a plain
loop. The network is the same: torchvision's modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from sharedenc.data.batch import Batch, normalise
from sharedenc.models.network import Network

IGNORE = 255
ALPHA = 6.0


class SsdLoss:
    """torchvision's target assignment and loss, image by image as in `SSD.forward`."""

    def __init__(self, num_classes: int, image_px: int) -> None:
        generator = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
        size = (image_px, image_px)
        self._ssd = SSD(nn.Identity(), generator, size, num_classes, head=nn.Identity())

    def __call__(
        self,
        outputs: dict[str, Tensor],
        anchors: Tensor,
        boxes: list[Tensor],
        labels: list[Tensor],
    ) -> Tensor:
        """Sum of both parts for ``cls_logits [B, A, C]`` and ``bbox_regression [B, A, 4]``.

        Boxes and ``anchors [A, 4]`` are xyxy px, labels begin at 1.
        """
        matched = []
        for found in boxes:
            if found.numel() == 0:
                nothing = torch.full((len(anchors),), -1, dtype=torch.int64)
                matched.append(nothing.to(found.device))
            else:
                matched.append(self._ssd.proposal_matcher(box_iou(found, anchors)))
        targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
        losses = self._ssd.compute_loss(targets, outputs, [anchors] * len(boxes), matched)
        total: Tensor = losses["bbox_regression"] + losses["classification"]
        return total


class ReferenceTrainer:
    """Network, losses and optimiser of a dual training in the reference scripts' way."""

    def __init__(self, network: Network, image_px: int, lr: float) -> None:
        self.network = network.train()
        assert network.det_head is not None
        self._anchors = network.det_head.anchors(image_px)
        self._det = SsdLoss(network.num_classes, image_px)
        self._optimizer = AdamW(network.parameters(), lr=lr)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs for normalised float32 pictures ``[B, 3, S, S]``."""
        outputs: dict[str, Tensor] = self.network(images)
        return outputs

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """L_det + 6 L_seg."""
        assert batch.masks is not None
        seg = F.cross_entropy(outputs["seg_logits"], batch.masks.long(), ignore_index=IGNORE)
        return self._det(outputs, self._anchors, batch.boxes, batch.labels) + ALPHA * seg

    def update(self, loss: Tensor) -> None:
        """Backward pass and optimiser step."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def step(self, images: Tensor, batch: Batch) -> float:
        """One whole step; the loss before it."""
        loss = self.losses(self.forward(images), batch)
        self.update(loss)
        return loss.item()


def normalised(batch: Batch) -> Tensor:
    """The float32 pictures that a reference script's transforms would have given."""
    return normalise(batch.images, memory_format="contiguous")
