"""Batches for training and scoring. What is drawn depends on seed, epoch and sample only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sharedenc.data.transforms import (
    EvalTransform,
    ModelSample,
    TrainTransform,
    eval_transform,
    train_transform,
)
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

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""
        counts = [len(labels) for labels in self.labels]
        return Batch(
            images=self.images.to(device),
            # One transfer for all boxes instead of one per picture.
            boxes=list(torch.split(torch.cat(self.boxes).to(device), counts)),
            labels=list(torch.split(torch.cat(self.labels).to(device), counts)),
            masks=None if self.masks is None else self.masks.to(device),
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
    workers: int = 0,
    skip: int = 0,
) -> Iterator[Batch]:
    """One epoch in an order of its own, augmented; the same for any number of ``workers``.

    The first ``skip`` batches are left out without being read. A last batch of one picture is
    dropped: batch norm on a 1x1 map has nothing to average over.

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
    return _load(samples, batches[skip:], workers)


def eval_batches(
    split: PackedSplit, recipe: Recipe, *, workers: int = 0, limit: int | None = None
) -> Iterator[Batch]:
    """All pictures (or the first ``limit``) in the split's order, without augmentation.

    Raises:
        DataError: there is no picture.
    """
    count = len(split) if limit is None else min(limit, len(split))
    if count < 1:
        raise DataError("the split to evaluate has no images; at least 1 is needed")
    samples = _EvalSamples(split, eval_transform(recipe))
    return _load(samples, _chunks(range(count), recipe.batch_size), workers)


def _chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


@dataclass(frozen=True)
class _TrainSamples(Dataset[ModelSample]):
    split: PackedSplit
    transform: TrainTransform
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> ModelSample:
        rng = np.random.default_rng((_AUGMENT, self.seed, self.epoch, index))
        return self.transform(self.split[index], rng)


@dataclass(frozen=True)
class _EvalSamples(Dataset[ModelSample]):
    split: PackedSplit
    transform: EvalTransform

    def __getitem__(self, index: int) -> ModelSample:
        return self.transform(self.split[index])


@dataclass
class _Flat:
    """A batch with all boxes in one tensor: what a worker sends.

    Each tensor between processes is a file descriptor; one per picture and kind would pass the
    usual limit of 1024 with eight workers.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    counts: list[int]
    masks: Tensor | None
    image_ids: list[int]
    sizes: list[tuple[int, int]]

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
    samples: _TrainSamples | _EvalSamples, batches: list[list[int]], workers: int
) -> Iterator[Batch]:
    # Samples are spread over processes or trials, one thread each. Set before any fork: OpenCV's
    # pool threads do not exist in a child, which would wait for them for ever.
    cv2.setNumThreads(1)
    workers = min(workers, len(os.sched_getaffinity(0)), len(batches))
    if workers < 1:
        for indices in batches:
            yield _Flat.of([samples[index] for index in indices]).batch()
        return
    loader: DataLoader[ModelSample] = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_Flat.of,
        worker_init_fn=_one_thread,
        # Without a generator of its own the loader would take a number from torch's global one,
        # and dropout would depend on the number of workers.
        generator=torch.Generator(),
    )
    batch_iterator = iter(loader)
    try:
        for flat in batch_iterator:
            yield flat.batch()
    except DataError as error:
        # The loader puts the worker's whole traceback before the message.
        raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from error
    finally:
        # A traceback that someone keeps would keep the loader, and with it its processes.
        batch_iterator._shutdown_workers()  # type: ignore[attr-defined]


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(1)
