"""Batches copied ahead: the same ones in the same order, each begun before it is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sharedenc.data.batch import Batch
from sharedenc.training.prefetch import ahead, on_device


def make(number: int) -> Batch:
    return Batch(
        images=torch.full((1, 3, 2, 2), number, dtype=torch.uint8),
        boxes=[torch.zeros(0, 4)],
        labels=[torch.zeros(0, dtype=torch.int64)],
        masks=None,
        image_ids=[number],
        sizes=[(2, 2)],
    )


class Recorder:
    """A copier that copies nothing and writes down what it was asked."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, batch: Batch) -> Batch:
        self.said.append(f"begin {batch.image_ids[0]}")
        return batch

    def wait(self, batch: Batch) -> Batch:
        self.said.append(f"wait {batch.image_ids[0]}")
        return batch


def test_on_a_cpu_the_batches_are_those_that_came() -> None:
    batches = [make(0), make(1)]
    assert all(a is b for a, b in zip(on_device(batches, "cpu"), batches, strict=True))


def test_the_next_copy_has_begun_when_a_batch_is_given() -> None:
    copier = Recorder()
    for batch in ahead([make(0), make(1), make(2)], copier):
        copier.said.append(f"step {batch.image_ids[0]}")
    assert copier.said == [
        *("begin 0", "begin 1", "wait 0", "step 0"),
        *("begin 2", "wait 1", "step 1", "wait 2", "step 2"),
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_short_epochs_lose_nothing(count: int) -> None:
    assert [b.image_ids for b in ahead(map(make, range(count)), Recorder())] == [[0]] * count


def test_an_error_of_the_loader_comes_through_when_it_is_met() -> None:
    def broken() -> Iterator[Batch]:
        yield make(0)
        yield make(1)
        raise OSError("photo gone")

    seen = ahead(broken(), Recorder())
    assert next(seen).image_ids == [0]
    with pytest.raises(OSError, match="photo gone"):
        next(seen)


@pytest.mark.gpu
def test_a_gpu_gets_the_same_batches() -> None:
    batches = [make(number) for number in range(4)]
    for moved, batch in zip(on_device(batches, "cuda"), batches, strict=True):
        assert moved.images.device.type == "cuda"
        assert torch.equal(moved.images.cpu(), batch.images)
