"""The photos that INT8 files are made with, and the data set that they are scored on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedenc.data.batch import normalise
from sharedenc.data.packed import PackedDataset, PackedSplit, cache_dir
from sharedenc.data.transforms import eval_transform
from sharedenc.errors import DataError, ExportError
from sharedenc.spec import Recipe

DEFAULT_IMAGES = 64
SPLIT = "train"
# First word of the random stream that chooses photos; 1 and 2 are those of `sharedenc.data.batch`.
_CHOICE = 3


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A packed data set, and how much of it an INT8 export reads.

    ``images`` of its training split, chosen by ``seed``, give the ranges; ``accuracy_images`` of
    its test split (None: all) are what the files are scored on. ``threads`` (0: as torch),
    ``workers`` (loader processes) and ``shown`` (progress) change no result.
    """

    pack: PackedDataset
    images: int = DEFAULT_IMAGES
    accuracy_images: int | None = None
    seed: int = 0
    threads: int = 0
    workers: int = 0
    shown: bool = True

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("accuracy_images", self.accuracy_images)):
            if value is not None and value < 1:
                raise ExportError(f"INT8 calibration: {name}={value} must be at least 1.")

    def photos(self, image_px: int, count: int | None = None) -> Iterator[NDArray[np.float32]]:
        """The calibration photos (or the first ``count``), ``[3, image_px, image_px]`` each.

        See `training_photos`; they are decoded one by one, as they are asked for.
        """
        wanted = self.images if count is None else count
        return training_photos(self.pack.split(SPLIT), wanted, image_px, seed=self.seed)

    def check(self, meta: Mapping[str, Any]) -> None:
        """Refuse a network of other classes: its scores on this data would mean nothing.

        Raises:
            ExportError: the class names differ.
        """
        ours, theirs = list(self.pack.classes.names), list(meta["classes"])
        if ours != theirs:
            raise ExportError(
                f"data set {self.pack.name!r} has the classes {_few(ours)}, and the network "
                f"{_few(theirs)}: give the data that it was trained on, or --no-int8."
            )

    def summary(self) -> str:
        """What was asked for, as a version's tag says it."""
        return json.dumps(
            {
                "images": min(self.images, len(self.pack.split(SPLIT))),
                "split": SPLIT,
                "seed": self.seed,
                "data_digest": self.pack.digest,
            }
        )


def training_photos(
    split: PackedSplit, count: int, image_px: int, *, seed: int = 0
) -> Iterator[NDArray[np.float32]]:
    """``count`` photos of a split (all if it has fewer), drawn by ``seed``, not augmented.

    Yields:
        Float32 ``[3, image_px, image_px]``, normalised as a network sees them, in the order of the
        draw: the first few are a random choice of their own.

    Raises:
        DataError: the split is empty.
    """
    if len(split) == 0:
        raise DataError(
            f"the {split.split} split has no images to calibrate INT8 with; at least 1 is needed"
        )
    transform = eval_transform(Recipe(image_px=image_px))
    for index in np.random.default_rng((_CHOICE, seed)).permutation(len(split))[:count].tolist():
        yield normalise(transform(split[index]).image[None])[0].numpy()


def pack_at_hand(meta: Mapping[str, Any], cache: Path | None = None) -> PackedDataset | None:
    """The packed data set that a network was trained on, if this machine's cache has it.

    Args:
        meta: a checkpoint's meta, or anything else with ``data_digest``.
    """
    digest = str(meta.get("data_digest") or "")
    if not digest:
        return None
    for folder in sorted((cache_dir(cache) / "packs").glob(f"*-{digest[:16]}")):
        try:
            pack = PackedDataset.open(folder)
        except DataError:
            continue  # damaged or half built: as good as absent
        if pack.digest == digest:
            return pack
    return None


def _few(names: list[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
