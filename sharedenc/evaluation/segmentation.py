"""mIoU and pixel accuracy from one confusion matrix over the whole data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sharedenc.data.classes import ClassList

IGNORE = 255
BACKGROUND = "background"
UNDEFINED = -1.0
# At most 2**24: OpenCV gives counts as float32, which has every whole number up to that.
PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class SegResult:
    """Figures in 0..1; -1 where there is no labelled pixel at all.

    ``iou_per_class`` has background and every class with a pixel in the truth; ``mIoU`` is their
    mean. ``absent`` names the classes left out.
    """

    mIoU: float
    pixel_acc: float
    iou_per_class: dict[str, float]
    absent: tuple[str, ...]


class ConfusionMatrix:
    """Counts pixels by truth (row) and prediction (column), ``[C, C]``, background included."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, pred: npt.ArrayLike, target: npt.ArrayLike) -> None:
        """Count the pixels of any number of pictures; those whose target is 255 do not count.

        Args:
            pred: Class indices 0..C-1, integers of any type, any shape (CPU tensors too).
            target: The same shape, or 255.

        Raises:
            ValueError: the shapes differ, or a value is not a class.
        """
        truth, guess = np.asarray(target), np.asarray(pred)
        if truth.shape != guess.shape:
            raise ValueError(f"pred has shape {guess.shape}, target {truth.shape}")
        if truth.size == 0:
            return
        if truth.dtype == guess.dtype == np.uint8 and self.num_classes <= IGNORE:
            counts = _count_bytes(truth, guess, self.num_classes)
            if counts is not None:
                self.counts += counts
                return
        labelled = truth != IGNORE
        truth, guess = truth[labelled], guess[labelled]
        if truth.size == 0:
            return
        classes = self.num_classes
        for name, values in (("target", truth), ("pred", guess)):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= classes:
                raise ValueError(f"{name} has values {low}..{high}, classes are 0..{classes - 1}")
        pair = truth.astype(np.int64) * classes + guess.astype(np.int64)
        self.counts += np.bincount(pair, minlength=classes * classes).reshape(classes, classes)

    def result(self, classes: ClassList) -> SegResult:
        """Intersection over union by class, its mean, and the share of right pixels.

        Source: torchvision's references/segmentation; methods 2.1, rows 22 and 23.
        """
        names = (BACKGROUND, *classes.names)
        if len(names) != self.num_classes:
            raise ValueError(f"{len(names)} names with background for {self.num_classes} classes")
        right = np.diag(self.counts)
        truth = self.counts.sum(axis=1)
        union = truth + self.counts.sum(axis=0) - right
        iou = {
            name: float(right[place] / union[place])
            for place, name in enumerate(names)
            if truth[place]
        }
        return SegResult(
            mIoU=float(np.mean(list(iou.values()))) if iou else UNDEFINED,
            pixel_acc=float(right.sum() / truth.sum()) if iou else UNDEFINED,
            iou_per_class=iou,
            absent=tuple(name for name in names if name not in iou),
        )


def _count_bytes(
    truth: npt.NDArray[np.uint8], guess: npt.NDArray[np.uint8], classes: int
) -> npt.NDArray[np.int64] | None:
    """How often each pair (truth, guess) occurs, without the pixels of no class.

    Pairs become numbers of 16 bits, for which OpenCV's histogram is the fastest counter; it leaves
    out what is beyond the last pair, as the pixels of no class are.

    Returns:
        ``[C, C]``, or None if there is another value that is no class.
    """
    if guess.max() >= classes:
        return None
    pairs = classes * classes
    counts = np.zeros(pairs, np.int64)
    truth, guess = truth.reshape(-1), guess.reshape(-1)
    memory = np.empty(min(PIXELS_AT_ONCE, truth.size), np.uint16)
    for start in range(0, truth.size, PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        pair = memory[: len(truth[part])]
        np.multiply(truth[part], np.uint16(classes), out=pair, dtype=np.uint16)
        pair += guess[part]
        found = cv2.calcHist([pair.reshape(1, -1)], [0], None, [pairs], [0, pairs])
        counts += found.reshape(-1).astype(np.int64)
    if counts.sum() != np.count_nonzero(truth != IGNORE):
        return None
    return counts.reshape(classes, classes)
