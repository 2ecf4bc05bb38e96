"""Label maps from outlines, by pycocotools: the definition that COCO's own scores use."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from sharedenc.data.dataset import DataRules, Record, SourceObject
from sharedenc.errors import DataError

IGNORE = 255


def label_map(record: Record, rules: DataRules) -> npt.NDArray[np.uint8]:
    """Draw the objects of an image.

    Pixels of an object get its label. Pixels of two or more objects get 255, of one class too
    (``overlap=ignore``), or the smallest object's label (``paint_small_last``). Crowd regions get
    255 (``crowd_seg=ignore``) or count as an object of their class. Ignore regions and objects
    without an outline (their box) get 255 over everything else.

    Returns:
        uint8, shape ``[height, width]``; 0 is background.
    """
    result = np.zeros((record.height, record.width), np.uint8)
    seen = np.zeros_like(result)
    ignored = np.zeros(result.shape, bool)
    # Stable on equal areas: the file's order then decides.
    for item in sorted(record.objects, key=lambda item: (not item.crowd, -item.area)):
        if item.segmentation is None:
            x1, y1, x2, y2 = item.box
            ignored[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
            continue
        inside = object_mask(item, record)
        if item.label == 0:
            ignored |= inside
        elif item.crowd and rules.crowd_seg == "ignore":
            result[inside] = IGNORE
            seen[inside] = 1
        else:
            if rules.overlap == "ignore":
                result[inside] = np.where(seen[inside] > 0, IGNORE, item.label)
            else:
                result[inside] = item.label
            seen[inside] = 1
    result[ignored] = IGNORE
    return result


def object_mask(item: SourceObject, record: Record) -> npt.NDArray[np.bool_]:
    """Return the pixels of one object's outline, bool ``[height, width]``.

    Raises:
        DataError: when a run-length mask does not fill the image exactly.
    """
    from pycocotools import mask as coco_mask

    size = (record.height, record.width)
    if isinstance(item.segmentation, dict):
        counts = item.segmentation["counts"]
        runs = rle_runs(counts) if isinstance(counts, str) else counts
        # pycocotools writes past its buffer when the runs are longer than the image.
        if any(run < 0 for run in runs) or sum(runs) != record.height * record.width:
            raise DataError(
                f"{record.path.name} (image {record.image_id}): the run lengths of an RLE mask add "
                f"up to {sum(runs)}, not to {record.height} x {record.width} pixels"
            )
        encoded: Any = coco_mask.frPyObjects({"size": list(size), "counts": runs}, *size)
    else:
        encoded = coco_mask.merge(coco_mask.frPyObjects(item.segmentation, *size))
    return decode(encoded)


def decode(encoded: Any) -> npt.NDArray[np.bool_]:
    """Return the pixels of pycocotools' compressed mask, bool ``[height, width]``."""
    from pycocotools import mask as coco_mask

    with warnings.catch_warnings():
        # pycocotools 2.0 has not followed numpy 2's __array__ signature; the result is right.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        decoded: npt.NDArray[np.bool_] = coco_mask.decode(encoded).astype(bool)
    return decoded


def rle_runs(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed form.

    Each number is written in groups of 5 bits, lowest first, as characters from "0" on; bit 6 says
    that more follow, bit 5 of the last group is the sign; from the fourth run on the difference to
    the run before the previous one is stored.

    Raises:
        DataError: when the text ends inside a number or holds other characters.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise DataError(f"a compressed RLE mask holds the character {character!r}")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise DataError("a compressed RLE mask ends inside a number: was the file cut short?")
    return runs
