"""R3: a label map from the pack against drawing it from polygons each time.

The reference is what training scripts in torchvision's style do in every epoch: pycocotools draws
one mask per object, the masks are stacked and merged, and pixels of several objects are ignored.
Ours was drawn once, by pycocotools too, and is read from its runs. CPU time per picture; the limit
is a copy of the map.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.photos import Photos, photos
from benchmarks.protocol import Side, interleaved, result, timed

IMAGES = 64
IGNORE = 255


def run(rounds: int, images: int = IMAGES) -> list[dict[str, Any]]:
    """Measure the first pictures of the training split."""
    from pycocotools.coco import COCO

    torch.set_num_threads(1)
    with photos() as data:
        with contextlib.redirect_stdout(sys.stderr):
            coco = COCO(data.annotations)
        ids = data.pack.split("train").ids[:images]
        duel = interleaved(
            lambda: _per_image(lambda: drawn(coco, ids), len(ids)),
            lambda: _per_image(lambda: read(data, len(ids)), len(ids)),
            rounds,
            same=equal,
        )
        maps = read(data, len(ids))
        copy = min(
            _per_image(lambda: [label_map.copy() for label_map in maps], len(ids)).figure
            for _ in range(max(rounds, 5))
        )
        objects = sum(len(coco.getAnnIds(key)) for key in ids) / len(ids)
        return [
            result(
                "R3",
                f"label map of {len(ids)} pictures of {data.name}, {objects:.1f} objects each",
                duel,
                unit="ms/image",
                check="every pixel the same",
                limit=copy,
            )
        ]


def _per_image(work: Callable[[], Any], count: int) -> Side:
    side = timed(work)
    return Side(1000 * side.figure / count, side.answer)


def drawn(coco: Any, ids: list[int]) -> list[npt.NDArray[np.uint8]]:
    """Draw each picture's objects and merge them, in tensors, as a training script would."""
    from pycocotools import mask as coco_mask

    maps = []
    for image_id in ids:
        info = coco.imgs[image_id]
        height, width = info["height"], info["width"]
        objects = coco.loadAnns(coco.getAnnIds(image_id))
        masks = []
        for item in objects:
            encoded = coco_mask.frPyObjects(item["segmentation"], height, width)
            mask = torch.as_tensor(coco_mask.decode(encoded), dtype=torch.uint8)
            masks.append(mask if mask.ndim == 2 else mask.any(dim=2))
        labels = torch.as_tensor([item["category_id"] for item in objects])
        stacked = torch.stack(masks)
        target, _ = (stacked * labels[:, None, None]).max(dim=0)
        target[stacked.sum(dim=0) > 1] = IGNORE
        maps.append(target.to(torch.uint8).numpy())
    return maps


def read(data: Photos, count: int) -> list[npt.NDArray[np.uint8]]:
    """The same maps from the pack."""
    split = data.pack.split("train")
    maps = [split.label_map(index) for index in range(count)]
    return [label_map for label_map in maps if label_map is not None]


def equal(reference: list[npt.NDArray[np.uint8]], ours: list[npt.NDArray[np.uint8]]) -> bool:
    """Whether every pixel of every map is the same."""
    return len(reference) == len(ours) and all(
        np.array_equal(a, b) for a, b in zip(reference, ours, strict=True)
    )
