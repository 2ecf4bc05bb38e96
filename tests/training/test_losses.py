"""Losses against torchvision's SSD, torch's cross-entropy and numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from sharedenc.training.losses import detection_loss, segmentation_loss, total_loss

CLASSES, IMAGE_PX = 6, 320


def reference_ssd() -> SSD:
    generator = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
    return SSD(
        nn.Identity(), generator, (IMAGE_PX, IMAGE_PX), CLASSES, head=nn.Identity(), iou_thresh=0.5
    )


def reference_anchors(ssd: SSD) -> Tensor:
    maps = [torch.zeros(1, 1, side, side) for side in (20, 10, 5, 3, 2, 1)]
    images = ImageList(torch.zeros(1, 3, IMAGE_PX, IMAGE_PX), [(IMAGE_PX, IMAGE_PX)])
    return ssd.anchor_generator(images, maps)[0]


def random_boxes(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    corner = torch.rand(count, 2, generator=generator) * 250
    size = 4 + torch.rand(count, 2, generator=generator) ** 2 * (IMAGE_PX - 4 - corner)
    labels = torch.randint(1, CLASSES, (count,), generator=generator)
    return torch.cat((corner, corner + size), dim=1), labels


def reference_loss(
    ssd: SSD, cls_logits: Tensor, offsets: Tensor, anchors: Tensor, targets: list[dict[str, Tensor]]
) -> Tensor:
    """SSD.forward's matching, then its compute_loss."""
    matched = []
    for target in targets:
        if target["boxes"].numel() == 0:
            matched.append(torch.full((len(anchors),), -1, dtype=torch.int64))
        else:
            matched.append(ssd.proposal_matcher(box_iou(target["boxes"], anchors)))
    outputs = {"cls_logits": cls_logits, "bbox_regression": offsets}
    losses = ssd.compute_loss(targets, outputs, [anchors] * len(targets), matched)
    return losses["bbox_regression"] + losses["classification"]


@pytest.mark.parametrize(
    "counts", [(3, 0, 1, 12), (1, 1), (0, 0, 0), (60,)], ids=["mixed", "single", "none", "crowded"]
)
def test_detection_loss_and_its_gradient_equal_torchvisions(counts: tuple[int, ...]) -> None:
    ssd = reference_ssd()
    anchors = reference_anchors(ssd)
    assert anchors.shape == (3234, 4)
    generator = torch.Generator().manual_seed(sum(counts))
    boxes, labels = zip(*(random_boxes(generator, count) for count in counts), strict=True)
    targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    found = []
    for ours in (True, False):
        generator.manual_seed(1)
        logits = torch.randn(len(counts), 3234, CLASSES, generator=generator).requires_grad_()
        offsets = torch.randn(len(counts), 3234, 4, generator=generator).requires_grad_()
        if ours:
            loss = detection_loss(logits, offsets, anchors, list(boxes), list(labels))
        else:
            loss = reference_loss(ssd, logits, offsets, anchors, targets)
        loss.backward()
        found.append((loss.detach(), logits.grad, offsets.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    if sum(counts) == 0:
        assert found[0][0] == 0


def test_segmentation_loss_of_three_pixels_by_hand() -> None:
    # Two classes with odds 1:3; targets: the unlikely one, the likely one, ignored.
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    masks = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    expected = (math.log(4) + math.log(4 / 3)) / 2
    assert float(segmentation_loss(logits, masks)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segmentation_loss_and_its_gradient_equal_torchs(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, 9, 7, generator=generator).to(dtype)
    masks = torch.randint(0, 5, (3, 9, 7), generator=generator, dtype=torch.uint8)
    masks[0, :4] = 255
    masks[1] = 255
    ours = values.clone(memory_format=layout).requires_grad_()
    theirs = values.clone().requires_grad_()
    loss = segmentation_loss(ours, masks)
    reference = F.cross_entropy(theirs.float(), masks.long(), ignore_index=255)
    (2 * loss).backward()
    (2 * reference).backward()
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-6)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-4
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=tolerance)


def test_pictures_without_a_labelled_pixel_cost_nothing() -> None:
    logits = torch.randn(2, 4, 3, 3).requires_grad_()
    loss = segmentation_loss(logits, torch.full((2, 3, 3), 255, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_two_tasks_weigh_segmentation_by_alpha() -> None:
    det, seg = torch.tensor(2.0), torch.tensor(0.5)
    assert float(total_loss({"det": det, "seg": seg}, alpha=6.0)) == 5.0
    assert float(total_loss({"seg": seg}, alpha=6.0)) == 0.5
