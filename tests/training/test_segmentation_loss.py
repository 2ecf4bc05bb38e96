"""The loss on the head's grid against torch's own upsampling and cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharedenc.models.build import build_network
from sharedenc.training import segmentation_loss as module
from sharedenc.training.segmentation_loss import segment, segmentation_loss, upsampled, whole_loss


def reference(logits: Tensor, masks: Tensor) -> Tensor:
    """What people write: upsample, then cross-entropy of what is labelled."""
    full = F.interpolate(logits.float(), masks.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, masks.long(), ignore_index=255)


def draw(
    shape: tuple[int, ...], size: tuple[int, int], *, spread: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Logits ``shape`` and masks of ``size`` with a band of 255 in the first picture."""
    generator = torch.Generator().manual_seed(shape[-1])
    logits = spread * torch.randn(shape, generator=generator)
    masks = torch.randint(0, shape[1], (shape[0], *size), generator=generator, dtype=torch.uint8)
    masks[0, : size[0] // 3] = 255
    return logits, masks


SIZES = {
    "stride 8, bands of several rows": ((2, 21, 40, 40), (320, 320)),
    "no whole factor, not square": ((2, 5, 7, 9), (61, 50)),
    "one grid cell": ((1, 3, 1, 1), (32, 32)),
    "the masks' size": ((3, 5, 9, 7), (9, 7)),
    "smaller masks": ((2, 4, 12, 12), (8, 6)),
}


@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("name", SIZES)
def test_loss_and_gradient_equal_torchs(
    name: str, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, size = SIZES[name]
    if rows is not None:
        monkeypatch.setattr(module, "BAND_BYTES", 4 * shape[1] * size[1] * rows)
    logits, masks = draw(shape, size)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, wanted = segmentation_loss(ours, masks), reference(theirs, masks)
    (2 * loss).backward()
    (2 * wanted).backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-7)
    assert ours.grad is not None
    assert theirs.grad is not None
    scale = float(theirs.grad.abs().max())
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=2e-6 * scale)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", [segmentation_loss, lambda a, b: segment(a, b)[0]])
def test_bfloat16_logits_are_scored_in_float32(
    layout: torch.memory_format, way: Callable[[Tensor, Tensor], Tensor]
) -> None:
    logits, masks = draw((2, 6, 10, 10), (80, 80))
    coarse = logits.bfloat16().clone(memory_format=layout)
    expected = reference(coarse.double().float(), masks)
    torch.testing.assert_close(way(coarse, masks), expected, rtol=1e-6, atol=0)


def test_a_bfloat16_gradient_is_the_float32_one_rounded() -> None:
    logits, masks = draw((2, 6, 10, 10), (80, 80))
    coarse = logits.bfloat16().requires_grad_()
    exact = logits.bfloat16().float().requires_grad_()
    segmentation_loss(coarse, masks).backward()
    segmentation_loss(exact, masks).backward()
    assert coarse.grad is not None
    assert exact.grad is not None
    assert coarse.grad.dtype == torch.bfloat16
    assert torch.equal(coarse.grad, exact.grad.bfloat16())


def test_the_gradient_is_that_of_finite_differences() -> None:
    logits, masks = draw((1, 3, 2, 2), (8, 8), spread=0.5)
    point = logits.clone().requires_grad_()
    segmentation_loss(point, masks).backward()
    assert point.grad is not None
    step = 1e-2
    for place in range(logits.numel()):
        shift = torch.zeros(logits.numel()).index_fill_(0, torch.tensor(place), step)
        up = float(segmentation_loss(logits + shift.view_as(logits), masks))
        down = float(segmentation_loss(logits - shift.view_as(logits), masks))
        assert (up - down) / (2 * step) == pytest.approx(
            float(point.grad.flatten()[place]), abs=1e-4
        )


def test_far_apart_logits_neither_overflow_nor_vanish() -> None:
    logits = torch.tensor([0.0, 5000.0, -5000.0]).view(1, 3, 1, 1).requires_grad_()
    masks = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
    loss = segmentation_loss(logits, masks)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((5000 + 0 + 10000) / 3)
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-1 / 3, 2 / 3, -1 / 3])


def test_three_pixels_by_hand() -> None:
    # Two classes with odds 1:3; targets: the unlikely one, the likely one, ignored.
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)
    masks = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    expected = (math.log(4) + math.log(4 / 3)) / 2
    assert float(segmentation_loss(logits, masks)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", SIZES)
def test_scoring_gives_the_same_loss_and_the_class_of_every_pixel(name: str) -> None:
    logits, masks = draw(*SIZES[name])
    loss, found = segment(logits, masks)
    assert torch.equal(loss, segmentation_loss(logits, masks))
    assert found.dtype == torch.uint8
    full = upsampled(logits, masks)
    differs = found.long() != full.argmax(dim=1)
    # Upsampled in another order of additions: a class may differ where two share the maximum.
    best, second = full.topk(2, dim=1).values.unbind(dim=1)
    assert (best - second)[differs].abs().max() < 1e-5 if differs.any() else True
    assert differs.float().mean() < 1e-4


def test_the_first_of_equal_classes_is_found() -> None:
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 1:3] = 7.0
    _, found = segment(logits, torch.zeros(1, 16, 16, dtype=torch.uint8))
    assert found.unique().tolist() == [1]


def test_pictures_that_are_not_finite_have_a_class_and_no_loss() -> None:
    logits = torch.full((1, 3, 2, 2), torch.nan)
    loss, found = segment(logits, torch.zeros(1, 4, 4, dtype=torch.uint8))
    assert math.isnan(float(loss))
    assert int(found.max()) < 3


def test_inference_mode_leaves_nothing_behind_that_training_cannot_use() -> None:
    logits, masks = draw((1, 3, 5, 6), (35, 36))
    with torch.inference_mode():
        segment(logits, masks)
    point = logits.clone().requires_grad_()
    segmentation_loss(point, masks).backward()
    assert point.grad is not None


def test_a_gpus_whole_tensors_give_the_same() -> None:
    logits, masks = draw((2, 6, 10, 10), (80, 80))
    torch.testing.assert_close(
        whole_loss(logits, masks), segmentation_loss(logits, masks), rtol=1e-6, atol=0
    )


# torch.compile looks at the gradient of what it is given; torch silences that where warnings are.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
def test_the_compiled_loss_is_equal_to_rounding() -> None:
    logits, masks = draw((2, 6, 10, 10), (80, 80))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    # As a head gives them: no leaf of the graph.
    (2 * segmentation_loss(3 * ours, masks, compiled=True)).backward()
    (2 * segmentation_loss(3 * theirs, masks)).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_process_that_is_used_for_many_shapes_goes_on_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled, ran = [], []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(graph)

        def run(*given: object) -> object:
            ran.append(graph)
            return graph.forward(*given)

        return run

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    module._compiled.cache_clear()
    count = 2 * torch._dynamo.config.recompile_limit + 2
    try:
        for classes in range(2, 2 + count):
            logits, masks = draw((1, classes, 3, 4), (12, 16))
            for _ in range(2):
                loss = segmentation_loss(logits, masks, compiled=True)
                assert torch.equal(loss, whole_loss(logits, masks))
    finally:
        torch._dynamo.reset()
        module._compiled.cache_clear()
    assert len(compiled) == count
    assert len(ran) == 2 * count


def test_the_network_gives_the_grid_that_the_loss_upsamples() -> None:
    network = build_network("resnet18", ["seg"], 4, seed=0).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grid = network.decode(network.encode(images), None)["seg_logits"]
        full = network(images)["seg_logits"]
    assert grid.shape == (2, 4, 8, 8)
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    assert torch.equal(upsampled(grid, masks), full)
