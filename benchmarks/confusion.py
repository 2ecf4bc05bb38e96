"""R7: counting pixels by true and predicted class, ours against training scripts' usual way.

The reference widens truth and prediction to 64 bits, picks the labelled pixels, and gives
``class * C + prediction`` to `torch.bincount`, as torchvision's segmentation references do. Ours
counts bytes. Both add up one batch of 320 x 320 label maps with 21 classes. CPU time per picture;
the limit is reading both maps once.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.protocol import Side, interleaved, result, timed
from sharedenc.evaluation.segmentation import ConfusionMatrix

IMAGES, SIDE, CLASSES, IGNORE = 32, 320, 21, 255

Maps = npt.NDArray[np.uint8]


def run(rounds: int, images: int = IMAGES) -> list[dict[str, Any]]:
    """Measure one batch; the two matrices must be equal."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    truth, guess = made_up(images)
    wide = torch.from_numpy(truth.astype(np.int64)), torch.from_numpy(guess.astype(np.int64))

    def per_image(side: Side) -> Side:
        return Side(1000 * side.figure / images, side.answer)

    duel = interleaved(
        lambda: per_image(timed(lambda: reference(*wide))),
        lambda: per_image(timed(lambda: ours(truth, guess))),
        rounds,
        same=lambda a, b: bool(np.array_equal(a, b)),
    )
    limit = min(per_image(timed(lambda: read(truth, guess))).figure for _ in range(max(rounds, 5)))
    case = f"{images} label maps of {SIDE} x {SIDE}, {CLASSES} classes"
    return [result("R7", case, duel, unit="ms/image", limit=limit, check="every count the same")]


def reference(truth: torch.Tensor, guess: torch.Tensor) -> npt.NDArray[np.int64]:
    """The matrix by one bincount of 64-bit numbers."""
    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    row, column = truth.flatten(), guess.flatten()
    labelled = (row >= 0) & (row < CLASSES)
    place = CLASSES * row[labelled] + column[labelled]
    matrix += torch.bincount(place, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    return matrix.numpy()


def ours(truth: Maps, guess: Maps) -> npt.NDArray[np.int64]:
    """The matrix as evaluation counts it."""
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(guess, truth)
    return matrix.counts


def read(truth: Maps, guess: Maps) -> int:
    """Read every byte once."""
    return sum(int(maps.view(np.uint64).sum(dtype=np.uint64)) for maps in (truth, guess))


def made_up(images: int) -> tuple[Maps, Maps]:
    """True and predicted classes uint8 ``[B, S, S]``: patches, one pixel in 37 without a label, and
    three predictions in twenty at random."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, CLASSES, (images, SIDE // 32, SIDE // 32), dtype=np.uint8)
    truth = np.repeat(np.repeat(patches, 32, axis=1), 32, axis=2)
    wrong = rng.random(truth.shape) < 0.15
    guess = np.where(wrong, rng.integers(0, CLASSES, truth.shape, dtype=np.uint8), truth)
    truth[:, ::37] = IGNORE
    return truth, guess
