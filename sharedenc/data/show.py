"""A contact sheet of a data set: each picture as the network sees it, beside its truth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from sharedenc.data.draw import draw_sample, grid
from sharedenc.data.transforms import eval_transform, train_transform
from sharedenc.errors import DataError
from sharedenc.spec import Recipe

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

ZOOM = 2


def contact_sheet(
    dataset: PackedDataset,
    split: str,
    out: Path,
    count: int = 12,
    augmented: bool = False,
    recipe: Recipe | None = None,
    seed: int = 0,
) -> Path:
    """Write a PNG with ``count`` pictures of ``split``, chosen by ``seed``, and their truth.

    Args:
        dataset: Gives pictures and class names.
        split: ``train``, ``val`` or ``test``.
        out: The PNG; folders above it are made.
        count: At most this many pictures.
        augmented: With the recipe's random transform instead of the plain one.
        recipe: Settings of the transform; the default recipe if None.
        seed: Chooses pictures and augmentation.

    Raises:
        DataError: the split has no picture, or ``out`` cannot be written.
    """
    samples = dataset.split(split)
    if not len(samples) or count < 1:
        raise DataError(f"nothing to show: {len(samples)} images in {split!r}, {count} asked for")
    recipe = recipe or Recipe()
    train, plain = train_transform(recipe), eval_transform(recipe)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(samples))[:count])
    tiles = []
    for index in chosen:
        raw = samples[int(index)]
        sample = train(raw, rng) if augmented else plain(raw)
        image = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
        mask = None if sample.mask is None else sample.mask.numpy()
        size = (image.shape[1] * ZOOM, image.shape[0] * ZOOM)
        tiles.append(np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8))
        tiles.append(
            draw_sample(
                image,
                sample.boxes.numpy(),
                sample.labels.numpy(),
                None,
                mask,
                dataset.classes,
                zoom=ZOOM,
            )
        )
    pairs = max(1, round(np.sqrt(len(chosen) / 2)))
    return write_png(out, grid(tiles, columns=2 * pairs))


def write_png(out: Path, image: np.ndarray) -> Path:
    """Write uint8 RGB ``[H, W, 3]`` whole or not at all.

    Raises:
        DataError: the folder or the file cannot be written.
    """
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise DataError(f"OpenCV could not encode a picture of shape {image.shape} for {out}")
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data.tobytes())
        partial.replace(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}. Choose another --out.") from error
    return out
