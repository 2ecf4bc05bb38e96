"""Batches: the same for any number of workers, another one each epoch, nothing left behind."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch

from sharedenc.data.batch import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batch,
    eval_batches,
    normalise,
    train_batches,
)
from sharedenc.data.packed import PackedDataset, PackedSplit, RawSample
from sharedenc.errors import DataError
from sharedenc.spec import Recipe

RECIPE = Recipe(batch_size=4, image_px=64)


class Split:
    """Stands in for a packed split: picture i has i % 3 boxes, and perhaps a bad one."""

    def __init__(self, count: int, *, masks: bool = True, broken: int = -1) -> None:
        self.count, self.masks, self.broken = count, masks, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RawSample:
        if index == self.broken:
            raise DataError(f"picture {index} is cut short")
        rng = np.random.default_rng(index)
        boxes = np.array([[5, 5, 80, 70], [20, 10, 90, 90]], np.float32)[: index % 3]
        return RawSample(
            image=rng.integers(0, 256, (100, 120, 3), np.uint8),
            label_map=rng.integers(0, 3, (100, 120), np.uint8) if self.masks else None,
            boxes=boxes,
            labels=np.arange(1, len(boxes) + 1, dtype=np.int64),
            crowd=np.zeros(len(boxes), bool),
            areas=np.ones(len(boxes), np.float32),
            image_id=1000 + index,
        )


def split_of(count: int, **options: Any) -> PackedSplit:
    return cast(PackedSplit, Split(count, **options))


def ids(batches: Iterator[Batch]) -> list[list[int]]:
    return [batch.image_ids for batch in batches]


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    """The same batches, to the last bit."""
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert (one.image_ids, one.sizes) == (other.image_ids, other.sizes)
        assert one.images.equal(other.images)
        assert one.masks is not None
        assert other.masks is not None
        assert one.masks.equal(other.masks)
        for a, b in zip(one.boxes + one.labels, other.boxes + other.labels, strict=True):
            assert a.equal(b)


def test_a_batch_has_the_documented_shapes() -> None:
    batch = next(train_batches(split_of(9), RECIPE, seed=0, epoch=1))
    assert len(batch) == 4
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (4, 3, 64, 64))
    assert batch.masks is not None
    assert (batch.masks.dtype, tuple(batch.masks.shape)) == (torch.uint8, (4, 64, 64))
    assert all(b.dtype == torch.float32 and b.shape[1:] == (4,) for b in batch.boxes)
    assert [len(b) for b in batch.boxes] == [len(b) for b in batch.labels]
    assert batch.sizes == [(100, 120)] * 4
    moved = batch.to("cpu")
    assert_equal([batch], [moved])


def test_workers_change_nothing_and_leave_no_process_and_no_random_number_behind() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    alone = list(train_batches(split_of(11), RECIPE, seed=3, epoch=2))
    helped = list(train_batches(split_of(11), RECIPE, seed=3, epoch=2, workers=2))
    assert_equal(alone, helped)
    assert_equal(
        list(eval_batches(split_of(7), RECIPE)), list(eval_batches(split_of(7), RECIPE, workers=2))
    )
    unfinished = train_batches(split_of(40), RECIPE, seed=3, epoch=2, workers=2)
    next(unfinished)
    del unfinished
    assert multiprocessing.active_children() == []
    assert torch.rand(3).equal(expected)


def test_order_and_augmentation_depend_on_seed_and_epoch() -> None:
    split = split_of(12)

    def epoch(seed: int, number: int) -> dict[int, torch.Tensor]:
        batches = list(train_batches(split, RECIPE, seed=seed, epoch=number))
        order = [i for batch in batches for i in batch.image_ids]
        assert sorted(order) == list(range(1000, 1012))
        orders.append(order)
        return {i: b.images[k] for b in batches for k, i in enumerate(b.image_ids)}

    orders: list[list[int]] = []
    first, again, later, other = epoch(0, 1), epoch(0, 1), epoch(0, 2), epoch(1, 1)
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    assert all(first[i].equal(again[i]) for i in first)
    assert not any(first[i].equal(later[i]) or first[i].equal(other[i]) for i in first)


def test_augmentation_of_a_sample_does_not_depend_on_the_batch_size() -> None:
    def images(size: int) -> dict[int, torch.Tensor]:
        recipe = Recipe(batch_size=size, image_px=64)
        batches = train_batches(split_of(8), recipe, seed=0, epoch=1)
        return {i: b.images[k] for b in batches for k, i in enumerate(b.image_ids)}

    two, four = images(2), images(4)
    assert all(two[i].equal(four[i]) for i in two)


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (8, [4, 4])])
def test_a_last_batch_of_one_picture_is_dropped_in_training(count: int, sizes: list[int]) -> None:
    batches = train_batches(split_of(count), RECIPE, seed=0, epoch=1)
    assert [len(batch) for batch in batches] == sizes
    assert sum(len(b) for b in eval_batches(split_of(count), RECIPE)) == count


def test_evaluation_keeps_the_order_and_honours_the_limit() -> None:
    assert ids(eval_batches(split_of(6), RECIPE)) == [[1000, 1001, 1002, 1003], [1004, 1005]]
    assert ids(eval_batches(split_of(6), RECIPE, limit=3)) == [[1000, 1001, 1002]]
    assert ids(eval_batches(split_of(2), RECIPE, limit=99)) == [[1000, 1001]]


def test_a_set_without_masks_has_none_in_its_batches() -> None:
    assert next(eval_batches(split_of(3, masks=False), RECIPE)).masks is None


def test_too_small_splits_are_refused_at_once() -> None:
    with pytest.raises(DataError, match=r"has 1 image\(s\).*at least 2"):
        train_batches(split_of(1), RECIPE, seed=0, epoch=1)
    with pytest.raises(DataError, match="no images"):
        eval_batches(split_of(0), RECIPE)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_named_whoever_reads_it(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        list(eval_batches(split_of(8, broken=5), RECIPE, workers=workers))
    assert str(caught.value) == "picture 5 is cut short"
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_normalise_is_imagenets_on_the_0_to_1_scale(memory_format: str) -> None:
    images = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8)
    kept = images.clone()
    got = normalise(images, memory_format=memory_format)
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    torch.testing.assert_close(got, (images.float() / 255 - mean) / std, atol=2e-6, rtol=1e-5)
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout)
    assert images.equal(kept)


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("workers", [0, 2])
def test_blind_batches_have_all_but_their_pictures(
    tiny_pack: PackedDataset, path: Any, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(batch_size=2, image_px=64, sample_path=path)
    split = tiny_pack.split("val")
    full = list(eval_batches(split, recipe))
    seen = full[1].image_ids
    real = PackedSplit.decode

    def decode(self: PackedSplit, index: int) -> Any:
        assert self.ids[index] in seen, "a picture that nobody needs was decoded"
        return real(self, index)

    monkeypatch.setattr(PackedSplit, "decode", decode)
    found = list(eval_batches(split, recipe, blind={0, 2}, workers=workers))
    assert [tuple(batch.images.shape) for batch in found] == [
        (2, 3, 0, 0),
        (2, 3, 64, 64),
        (2, 3, 0, 0),
    ]
    assert found[1].images.equal(full[1].images)
    for batch, other in zip(found, full, strict=True):
        batch.images = other.images
    assert_equal(found, full)


def test_pinning_is_asked_of_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[tuple[int, ...]] = []

    def pin_memory(self: torch.Tensor) -> torch.Tensor:
        pinned.append(tuple(self.shape))
        return self.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    found = list(train_batches(split_of(4), RECIPE, seed=0, epoch=1, pin=True))
    assert pinned[0] == (4, 3, 64, 64)
    assert len(pinned) == 4
    assert_equal(found, list(train_batches(split_of(4), RECIPE, seed=0, epoch=1)))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_lie_in_pinned_memory(workers: int) -> None:
    (batch,) = train_batches(split_of(4), RECIPE, seed=0, epoch=1, pin=True, workers=workers)
    assert batch.images.is_pinned()
    assert batch.masks is not None
    assert batch.masks.is_pinned()
