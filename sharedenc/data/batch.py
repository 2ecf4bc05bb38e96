"""Batches for training and scoring. What is drawn depends on seed, epoch and sample only."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sharedenc.data.loaders import Loaders
from sharedenc.data.transforms import ModelSample, Transform, eval_transform, train_transform
from sharedenc.errors import DataError
from sharedenc.spec import Recipe

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedSplit

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# First word of each random stream's seed. It comes first because numpy pads a short seed with
# zeros: (seed, epoch) alone would be the stream of (seed, epoch, sample 0).
_ORDER, _AUGMENT = 1, 2


@dataclass
class Batch:
    """B samples at network size S.

    Shapes: ``images`` uint8 ``[B, 3, S, S]`` RGB, in any memory format, ``boxes`` B tensors float32
    ``[N_i, 4]`` xyxy in pixels at S, ``labels`` B tensors int64 ``[N_i]``, ``masks`` uint8
    ``[B, S, S]`` or None, ``sizes`` the sources' (height, width).
    """

    images: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: Tensor | None
    image_ids: list[int]
    sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``.

        Args:
            non_blocking: Do not wait for copies from page-locked memory: for who orders them.
        """
        counts = [len(labels) for labels in self.labels]
        pinned = non_blocking and self.images.is_pinned()

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        def split(tensors: list[Tensor]) -> list[Tensor]:
            # One transfer for all boxes instead of one per picture.
            flat = torch.cat(tensors)
            return list(torch.split(moved(flat.pin_memory() if pinned else flat), counts))

        return Batch(
            images=moved(self.images),
            boxes=split(self.boxes),
            labels=split(self.labels),
            masks=None if self.masks is None else moved(self.masks),
            image_ids=self.image_ids,
            sizes=self.sizes,
        )


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and 1/std for values in 0..255, ``[1, 3, 1, 1]`` each."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).mul(255).view(1, 3, 1, 1)
    scale = torch.tensor(IMAGENET_STD, dtype=torch.float64).mul(255).reciprocal().view(1, 3, 1, 1)
    return mean.float().to(device), scale.float().to(device)


def normalise(images: Tensor, *, memory_format: str = "contiguous") -> Tensor:
    """Turn uint8 ``[B, 3, H, W]`` into float32 ``(x / 255 - mean) / std``, on the images' device.

    Args:
        images: RGB in 0..255.
        memory_format: ``contiguous`` or ``channels_last``, the layout of the result.
    """
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    mean, scale = _constants(images.device)
    return images.to(torch.float32, memory_format=layout).sub_(mean).mul_(scale)


def train_batches(
    split: PackedSplit,
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
    workers: int | Loaders = 0,
    skip: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """One epoch in an order of its own, augmented; the same for any number of ``workers``.

    A last batch of one picture is dropped: batch norm on a 1x1 map has nothing to average over.

    Args:
        workers: Loader processes, or who finds out how many there should be.
        skip: So many batches are left out at the beginning, without being read.
        pin: Put the tensors into page-locked memory, from which a GPU copies by itself.

    Raises:
        DataError: the split has no picture, or one only.
    """
    order = np.random.default_rng((_ORDER, seed, epoch)).permutation(len(split)).tolist()
    batches = _chunks(order, recipe.batch_size)
    if batches and len(batches[-1]) == 1 and recipe.batch_size > 1:
        batches.pop()
    if not batches:
        raise DataError(f"the training split has {len(split)} image(s); a batch needs at least 2")
    samples = _TrainSamples(split, train_transform(recipe), seed, epoch)
    return _load(samples, batches[skip:], workers, pin)


def eval_batches(
    split: PackedSplit,
    recipe: Recipe,
    *,
    workers: int | Loaders = 0,
    limit: int | None = None,
    blind: Container[int] = (),
    pin: bool = False,
) -> Iterator[Batch]:
    """All pictures (or the first ``limit``) in the split's order, without augmentation.

    Args:
        workers: As for `train_batches`, and ``pin`` too.
        blind: Numbers (from 0) of batches whose pictures are not needed: they are not decoded, and
            ``images`` is ``[B, 3, 0, 0]``. All else is as always.

    Raises:
        DataError: there is no picture.
    """
    count = len(split) if limit is None else min(limit, len(split))
    if count < 1:
        raise DataError("the split to evaluate has no images; at least 1 is needed")
    batches = _chunks(range(count), recipe.batch_size)
    unseen = {i for number, batch in enumerate(batches) if number in blind for i in batch}
    samples = _EvalSamples(split, eval_transform(recipe), frozenset(unseen))
    return _load(samples, batches, workers, pin)


def _chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


@dataclass(frozen=True)
class _TrainSamples(Dataset[ModelSample]):
    split: PackedSplit
    transform: Transform
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> ModelSample:
        rng = np.random.default_rng((_AUGMENT, self.seed, self.epoch, index))
        return self.transform(self.split[index], rng)


@dataclass(frozen=True)
class _EvalSamples(Dataset[ModelSample]):
    split: PackedSplit
    transform: Transform
    unseen: frozenset[int]

    def __getitem__(self, index: int) -> ModelSample:
        if index in self.unseen:
            return self.transform(self.split.without_picture(index), picture=False)
        return self.transform(self.split[index])


@dataclass(frozen=True)
class _Batches(Dataset["_Flat"]):
    """Whole batches by the indices of their samples."""

    samples: _TrainSamples | _EvalSamples

    def __getitem__(self, indices: list[int]) -> _Flat:
        started = time.perf_counter()
        flat = _Flat.of([self.samples[index] for index in indices])
        flat.made_s = time.perf_counter() - started
        return flat


@dataclass
class _Flat:
    """A batch with all boxes in one tensor: what a worker sends.

    Each tensor between processes is a file descriptor; one per picture and kind would pass the
    usual limit of 1024 with eight workers. ``made_s`` is how long it took to make.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    counts: list[int]
    masks: Tensor | None
    image_ids: list[int]
    sizes: list[tuple[int, int]]
    made_s: float = 0.0

    @classmethod
    def of(cls, samples: list[ModelSample]) -> _Flat:
        masks = [sample.mask for sample in samples if sample.mask is not None]
        if masks and len(masks) != len(samples):
            raise DataError("some images of a batch have a label map and some have none")
        # Height, width, channel is how the fast path leaves a picture: a plain copy, three times as
        # fast as a transposition here; `normalise` makes the layout that the network wants.
        images = torch.stack([sample.image.permute(1, 2, 0) for sample in samples])
        return cls(
            images=images.permute(0, 3, 1, 2),
            boxes=torch.cat([sample.boxes for sample in samples]),
            labels=torch.cat([sample.labels for sample in samples]),
            counts=[len(sample.labels) for sample in samples],
            masks=torch.stack(masks) if masks else None,
            image_ids=[sample.image_id for sample in samples],
            sizes=[sample.size for sample in samples],
        )

    def pin_memory(self) -> _Flat:
        """The same in page-locked memory; a loader's own thread calls this too."""
        return replace(
            self,
            images=self.images.pin_memory(),
            boxes=self.boxes.pin_memory(),
            labels=self.labels.pin_memory(),
            masks=None if self.masks is None else self.masks.pin_memory(),
        )

    def batch(self) -> Batch:
        return Batch(
            images=self.images,
            boxes=list(torch.split(self.boxes, self.counts)),
            labels=list(torch.split(self.labels, self.counts)),
            masks=self.masks,
            image_ids=self.image_ids,
            sizes=self.sizes,
        )


def _load(
    samples: _TrainSamples | _EvalSamples,
    batches: list[list[int]],
    workers: int | Loaders,
    pin: bool,
) -> Iterator[Batch]:
    # Samples are spread over processes or trials, one thread each. Set before any fork: OpenCV's
    # pool threads do not exist in a child, which would wait for them for ever.
    cv2.setNumThreads(1)
    source = _Batches(samples)
    if isinstance(workers, int):
        for flat in _flats(source, batches, workers, pin):
            yield flat.batch()
        return
    probes = batches[: workers.probes]
    yield from _timed(_flats(source, probes, 0, pin), workers, alone=True)
    batches = batches[len(probes) :]
    if batches:
        yield from _timed(_flats(source, batches, workers.count(len(batches)), pin), workers)


def _timed(flats: Iterable[_Flat], loaders: Loaders, alone: bool = False) -> Iterator[Batch]:
    """Hand out batches and note how long each was kept; ``alone``: to its step's very end."""
    for flat in flats:
        started = time.perf_counter()
        yield flat.batch()
        if alone and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        loaders.note(flat.made_s, time.perf_counter() - started)


def _flats(source: _Batches, batches: list[list[int]], workers: int, pin: bool) -> Iterator[_Flat]:
    workers = min(workers, len(os.sched_getaffinity(0)), len(batches))
    if workers < 1:
        for indices in batches:
            yield source[indices].pin_memory() if pin else source[indices]
        return
    loader: DataLoader[_Flat] = DataLoader(
        source,
        sampler=batches,  # whole batches are its samples
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # torch's type is of lists of samples
        num_workers=workers,
        worker_init_fn=_one_thread,
        pin_memory=pin,
        # Without a generator of its own the loader would take a number from torch's global one,
        # and dropout would depend on the number of workers.
        generator=torch.Generator(),
    )
    flats = iter(loader)
    try:
        yield from flats
    except DataError as error:
        # The loader puts the worker's whole traceback before the message.
        raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from error
    finally:
        # A traceback that someone keeps would keep the loader, and with it its processes.
        flats._shutdown_workers()  # type: ignore[attr-defined]


def _as_it_is(flat: _Flat) -> _Flat:
    return flat


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(1)
