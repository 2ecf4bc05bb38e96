"""All images at once against image by image; the loop itself is held to torchvision's SSD."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from sharedenc.models.detection_head import DetectionHead
from sharedenc.training import losses as module
from sharedenc.training.losses import (
    batched_detection_loss,
    detection_loss,
    detection_loss_by_image,
)
from sharedenc.training.matching import match, match_batch, pad_truth
from tests.training.test_losses import CLASSES, random_boxes

ANCHORS = DetectionHead(8, 8, CLASSES).anchors(320)


def draw(counts: list[int], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    pairs = [random_boxes(generator, count) for count in counts]
    return [boxes for boxes, _ in pairs], [labels for _, labels in pairs]


def by_image(boxes: list[Tensor]) -> Tensor:
    return torch.stack([match(one, ANCHORS) for one in boxes])


@given(st.lists(st.integers(0, 25), min_size=1, max_size=6), st.integers(0, 2**31))
def test_random_images_match_alike(counts: list[int], seed: int) -> None:
    boxes, labels = draw(counts, seed)
    assert torch.equal(match_batch(pad_truth(boxes, labels), ANCHORS), by_image(boxes))


TIES = {
    # Two boxes with one best anchor: the later one has it.
    "the same box twice": [[10.0, 10.0, 90.0, 90.0]] * 2,
    # Anchors 0 and 6 are as far from a box between them.
    "a box between two anchors": [[-16.0, -24.0, 48.0, 40.0], [0.0, -24.0, 64.0, 40.0]],
    "no overlap with anything": [[5000.0, 5000.0, 5010.0, 5010.0]],
    "an anchor itself": [ANCHORS[100].tolist()],
}


@pytest.mark.parametrize("name", TIES)
def test_ties_match_alike(name: str) -> None:
    boxes = [torch.tensor(TIES[name]), torch.zeros(0, 4), torch.tensor(TIES[name][:1])]
    labels = [torch.ones(len(one), dtype=torch.int64) for one in boxes]
    found = match_batch(pad_truth(boxes, labels), ANCHORS)
    assert torch.equal(found, by_image(boxes))
    assert (found[1] == -1).all()


def test_the_later_of_two_boxes_has_the_anchor_that_both_want() -> None:
    boxes = [torch.tensor(TIES["the same box twice"])]
    found = match_batch(pad_truth(boxes, [torch.tensor([1, 2])]), ANCHORS)
    best = int(box_iou(boxes[0][:1], ANCHORS).argmax())
    assert (found[0] == 1).nonzero().flatten().tolist() == [best]


def test_a_padded_batch_holds_each_box_in_its_image() -> None:
    boxes, labels = draw([2, 0, 3], 0)
    truth = pad_truth(boxes, labels)
    assert truth.boxes.shape == (3, 3, 4)
    for number, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        assert torch.equal(truth.boxes[number, : len(box)], box)
        assert truth.labels[number].tolist() == label.tolist() + [0] * (3 - len(label))
    empty = pad_truth([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)])
    assert empty.boxes.shape == (1, 1, 4)


@pytest.mark.parametrize("counts", [[3, 0, 1, 12], [1], [0, 0], [60, 2]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_give_one_loss_and_one_gradient(counts: list[int], dtype: torch.dtype) -> None:
    boxes, labels = draw(counts, 1)
    found = []
    for way in (detection_loss_by_image, batched_detection_loss):
        generator = torch.Generator().manual_seed(2)
        shape = (len(counts), len(ANCHORS))
        logits = torch.randn(*shape, CLASSES, generator=generator).to(dtype).requires_grad_()
        offsets = torch.randn(*shape, 4, generator=generator).to(dtype).requires_grad_()
        loss = way(logits, offsets, ANCHORS, boxes, labels)
        loss.backward()
        found.append((loss.detach(), logits.grad, offsets.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_gpus_take_the_whole_batch_and_cpus_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def way(name: str) -> object:
        def loss(logits: Tensor, *_: object) -> Tensor:
            asked.append(name)
            return logits.sum()

        return loss

    monkeypatch.setattr(module, "batched_detection_loss", way("batched"))
    monkeypatch.setattr(module, "detection_loss_by_image", way("by image"))
    for device in ("cpu", "meta"):
        detection_loss(torch.zeros(1, 1, 2, device=device), ANCHORS, ANCHORS, [], [])
    assert asked == ["by image", "batched"]
