"""Heads, anchors and boxes against torchvision's own detectors and segmenters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.segmentation import LRASPP

from sharedenc.errors import SpecError
from sharedenc.models import boxes as boxes_module
from sharedenc.models.boxes import WEIGHTS, decode_boxes, encode, postprocess
from sharedenc.models.detection_head import DetectionHead
from sharedenc.models.segmentation_head import SegmentationHead
from sharedenc.spec import Recipe


def reference_anchors(image_px: int, maps: list[Tensor]) -> Tensor:
    generator = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    images = ImageList(torch.zeros(1, 3, image_px, image_px), [(image_px, image_px)])
    anchors: Tensor = generator(images, maps)[0]
    return anchors


def features(image_px: int, low: int = 8, mid: int = 16, high: int = 24) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(image_px)
    return {
        level: torch.randn(2, channels, image_px // stride, image_px // stride, generator=generator)
        for level, channels, stride in (("low", low, 8), ("mid", mid, 16), ("high", high, 32))
    }


@pytest.mark.parametrize(
    ("image_px", "grids", "count"),
    [
        (320, [20, 10, 5, 3, 2, 1], 3234),
        (256, [16, 8, 4, 2, 1, 1], 6 * 342),
        (96, [6, 3, 2, 1, 1, 1], 6 * 52),
    ],
)
def test_anchors_equal_torchvisions_and_match_the_outputs(
    image_px: int, grids: list[int], count: int
) -> None:
    torch.manual_seed(0)
    head = DetectionHead(16, 24, 5).eval()
    assert head.grids(image_px) == grids
    anchors = head.anchors(image_px)
    assert anchors.shape == (count, 4)
    maps = [torch.zeros(1, 1, side, side) for side in grids]
    torch.testing.assert_close(anchors, reference_anchors(image_px, maps), rtol=1e-6, atol=1e-4)
    with torch.no_grad():
        outputs = head(features(image_px))
    assert outputs["cls_logits"].shape == (2, count, 5)
    assert outputs["bbox_regression"].shape == (2, count, 4)


def test_the_smallest_anchor_is_a_fifth_of_the_image() -> None:
    # First location of the 20x20 grid: centre 8 px, 64 px wide; cut nowhere.
    anchors = DetectionHead(16, 24, 5).anchors(320)
    assert anchors[0].tolist() == pytest.approx([-24, -24, 40, 40], abs=1e-3)


def test_an_image_size_that_the_maps_do_not_tile_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"image_px=330 must be a multiple of 32"):
        DetectionHead(16, 24, 5).anchors(330)


def test_norms_of_the_detection_head_have_ssdlites_settings() -> None:
    norms = [m for m in DetectionHead(16, 24, 5).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def random_boxes(count: int, image_px: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    corner = torch.rand(count, 2, generator=generator) * image_px * 0.7
    size = 4 + torch.rand(count, 2, generator=generator) * image_px * 0.3
    return torch.cat((corner, corner + size), dim=1)


def test_coding_equals_torchvisions_and_returns() -> None:
    anchors = DetectionHead(16, 24, 5).anchors(96)
    boxes = random_boxes(len(anchors), 96)
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    offsets = encode(boxes, anchors)
    torch.testing.assert_close(offsets, coder.encode_single(boxes, anchors), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode_boxes(offsets, anchors), boxes, rtol=1e-4, atol=1e-3)
    wild = offsets * 20  # beyond the limit of the exponent
    torch.testing.assert_close(
        decode_boxes(wild, anchors), coder.decode_single(wild, anchors), rtol=1e-5, atol=1e-2
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coding_has_the_bits_of_the_weights_as_a_tensor(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors = DetectionHead(16, 24, 5).anchors(96).to(dtype)
    boxes = random_boxes(len(anchors), 96).to(dtype)
    ours = encode(boxes, anchors)
    x, y, width, height = WEIGHTS
    assert (x, width) == (y, height)
    monkeypatch.setattr(boxes_module, "WEIGHTS", (1.0, 1.0, 1.0, 1.0))
    assert torch.equal(ours, encode(boxes, anchors) * torch.tensor(WEIGHTS, dtype=dtype))


def test_coding_makes_no_tensor_from_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU such a tensor is a copy that the host waits for."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was made from numbers")

    anchors = DetectionHead(16, 24, 5).anchors(96)
    boxes = random_boxes(len(anchors), 96)
    for owner, name in ((Tensor, "new_tensor"), (torch, "tensor"), (torch, "as_tensor")):
        monkeypatch.setattr(owner, name, refuse)
    assert encode(boxes, anchors).shape == boxes.shape


def test_detections_equal_torchvisions() -> None:
    recipe = Recipe(image_px=96, top_k=60, detections_per_image=40)
    anchors = DetectionHead(16, 24, 5).anchors(96)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, len(anchors), 5, generator=generator) * 3
    offsets = torch.randn(2, len(anchors), 4, generator=generator)
    logits[1, :, 1] = -20  # a class without any candidate
    reference: Any = SimpleNamespace(
        box_coder=BoxCoder(weights=(10.0, 10.0, 5.0, 5.0)),
        score_thresh=recipe.score_threshold,
        topk_candidates=recipe.top_k,
        nms_thresh=recipe.nms_iou,
        detections_per_img=recipe.detections_per_image,
    )
    outputs = {"cls_logits": logits, "bbox_regression": offsets}
    expected = SSD.postprocess_detections(reference, outputs, [anchors] * 2, [(96, 96)] * 2)
    found = postprocess(logits, offsets, anchors, 96, recipe)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours.scores) == 40
        torch.testing.assert_close(ours.scores, theirs["scores"])
        torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=1e-5, atol=1e-4)
        assert ours.labels.equal(theirs["labels"])
    assert 1 not in found[1].labels


def test_no_candidate_gives_empty_detections() -> None:
    anchors = DetectionHead(16, 24, 3).anchors(96)
    logits = torch.zeros(1, len(anchors), 3)
    logits[..., 0] = 30
    (found,) = postprocess(logits, torch.zeros(1, len(anchors), 4), anchors, 96, Recipe())
    assert found.boxes.shape == (0, 4)
    assert found.labels.dtype == torch.int64


def test_segmentation_equals_torchvisions_lraspp() -> None:
    torch.manual_seed(0)
    maps = features(64)

    class Maps(nn.Module):
        def forward(self, _images: Tensor) -> dict[str, Tensor]:
            return maps

    head = SegmentationHead(8, 24, 4).eval()
    reference = LRASPP(Maps(), 8, 24, 4).eval()
    reference.classifier.load_state_dict(head.classifier.state_dict())
    with torch.no_grad():
        logits = head(maps, (64, 64))
        expected = reference(torch.zeros(2, 3, 64, 64))["out"]
    assert logits.shape == (2, 4, 64, 64)
    torch.testing.assert_close(logits, expected)
