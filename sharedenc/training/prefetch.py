"""Batches on the device that computes: on a GPU the next one is copied while the step runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import torch

from sharedenc.data.batch import Batch

Begun = TypeVar("Begun")


class Copier(Protocol[Begun]):
    """How a batch gets to a device: begun early, waited for late."""

    def begin(self, batch: Batch) -> Begun:
        """Begin to copy; what comes back is for `wait`."""
        ...

    def wait(self, begun: Begun) -> Batch:
        """The batch, which everything that is started from now on may read."""
        ...


def on_device(batches: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
    """Give the batches with every tensor on ``device``; on a CPU these very batches.

    On a GPU one more batch than was asked for has been taken from ``batches``.
    """
    if torch.device(device).type == "cpu":
        return iter(batches)
    return ahead(batches, CudaCopier(torch.device(device)))


def ahead(batches: Iterable[Batch], copier: Copier[Begun]) -> Iterator[Batch]:
    """Give each batch once the copy of the next one has begun."""
    begun: Begun | None = None
    for batch in batches:
        following = copier.begin(batch)
        if begun is not None:
            yield copier.wait(begun)
        begun = following
    if begun is not None:
        yield copier.wait(begun)


class CudaCopier:
    """Copies on a stream of its own, so that no step waits for the bus.

    From page-locked memory, that is: `train_batches` and `eval_batches` give such with ``pin``.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        """Start the batch's copy; the event is when it has ended."""
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
        return copied, self._stream.record_event()

    def wait(self, begun: tuple[Batch, torch.cuda.Event]) -> Batch:
        """Let the step's stream wait for the copy, and keep the memory until it has used it."""
        batch, copied = begun
        current = torch.cuda.current_stream(self._device)
        # Not for the stream: that copies the next batch by now.
        current.wait_event(copied)
        masks = [] if batch.masks is None else [batch.masks]
        for tensor in (batch.images, *batch.boxes, *batch.labels, *masks):
            tensor.record_stream(current)
        return batch
