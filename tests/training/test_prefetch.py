"""Batches copied ahead: the same ones in the same order, each begun before it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from sharedenc.data.batch import Batch
from sharedenc.training.prefetch import CudaCopier, ahead, on_device


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


class FakeStream:
    """Writes down what is asked of it, under its name."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said, self.events = name, said, 0

    def record_event(self) -> str:
        self.events += 1
        self.said.append(f"{self.name} records {self.events}")
        return f"{self.name} {self.events}"

    def wait_event(self, event: str) -> None:
        self.said.append(f"{self.name} waits for {event}")


def test_a_step_waits_for_its_own_copy_and_not_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    step, copying = FakeStream("step", said), FakeStream("copy", said)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: copying)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: step)
    kept: list[object] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: kept.append(stream))
    copier = CudaCopier(torch.device("cpu"))
    for batch in ahead([make(0), make(1)], copier):
        said.append(f"step {batch.image_ids[0]}")
    assert said == [
        *("copy records 1", "copy records 2", "step waits for copy 1", "step 0"),
        *("step waits for copy 2", "step 1"),
    ]
    assert kept == [step] * 6


@pytest.mark.gpu
def test_a_gpu_gets_the_same_batches() -> None:
    batches = [make(number) for number in range(4)]
    for moved, batch in zip(on_device(batches, "cuda"), batches, strict=True):
        assert moved.images.device.type == "cuda"
        assert torch.equal(moved.images.cpu(), batch.images)
