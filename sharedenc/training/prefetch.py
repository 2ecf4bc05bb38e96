"""Batches on the device that computes: on a GPU the next one is copied while the step runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

from sharedenc.data.batch import Batch


class Copier(Protocol):
    """How a batch gets to a device: begun early, waited for late."""

    def begin(self, batch: Batch) -> Batch:
        """Begin to copy; what comes back may not be read before `wait`."""
        ...

    def wait(self, batch: Batch) -> Batch:
        """The same batch, which everything that is started from now on may read."""
        ...


def on_device(batches: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
    """Give the batches with every tensor on ``device``; on a CPU these very batches.

    On a GPU one more batch than was asked for has been taken from ``batches``.
    """
    if torch.device(device).type == "cpu":
        return iter(batches)
    return ahead(batches, CudaCopier(torch.device(device)))


def ahead(batches: Iterable[Batch], copier: Copier) -> Iterator[Batch]:
    """Give each batch once the copy of the next one has begun."""
    begun: Batch | None = None
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

    def begin(self, batch: Batch) -> Batch:
        """Start the batch's copy."""
        with torch.cuda.stream(self._stream):
            return batch.to(self._device, non_blocking=True)

    def wait(self, batch: Batch) -> Batch:
        """Let the step's stream wait for the copy, and keep the memory until it has used it."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        masks = [] if batch.masks is None else [batch.masks]
        for tensor in (batch.images, *batch.boxes, *batch.labels, *masks):
            tensor.record_stream(current)
        return batch
