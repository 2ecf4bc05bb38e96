"""Part of R12: NMS of a whole batch at once against torchvision's `batched_nms` image by image.

On a GPU one call launches less than one for each image. On a CPU nothing is won, which is why
trials go image by image; the row says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from benchmarks.protocol import Side, interleaved, result, timed

CLASSES = 21
IMAGE_PX = 320
PER_IMAGE = 300
IOU = 0.55
# Coordinates in quarters of a pixel: then moving boxes apart by class rounds none of them.
PER_PX = 4

Found = tuple[Tensor, Tensor, Tensor]


def row(rounds: int, batch: int, per_image: int = PER_IMAGE) -> dict[str, Any]:
    """CPU time of a batch; both sides must keep the very same boxes in the same order."""
    images = made_up(batch, per_image)
    duel = interleaved(
        lambda: _timed(lambda: image_by_image(images)),
        lambda: _timed(lambda: at_once(images)),
        rounds,
    )
    return result(
        "R12",
        f"NMS of {batch} images at once, not used, against image by image, {per_image} boxes each: "
        "CPU time",
        duel,
        unit="ms",
        check="same boxes kept, in the same order",
    )


def image_by_image(images: list[Found]) -> list[list[int]]:
    """Indices that each image keeps, by falling score."""
    return [batched_nms(*image, IOU).tolist() for image in images]


def at_once(images: list[Found]) -> list[list[int]]:
    """The same by one call: an image's class is a class of its own, and has a place of its own.

    `batched_nms` does so too, but goes class by class where there are more than 1000 boxes, which
    takes more than twice as long here.
    """
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*images, strict=True))
    sizes = torch.tensor([len(image[0]) for image in images])
    owner = torch.repeat_interleave(torch.arange(len(images)), sizes)
    place = (owner * CLASSES + labels).to(boxes) * (boxes.max() + 1)
    keep = nms(boxes + place[:, None], scores, IOU)
    # Falling scores within each image: the order that is there already.
    keep = keep[owner[keep].argsort(stable=True)]
    starts = sizes.cumsum(0) - sizes
    counts = owner[keep].bincount(minlength=len(images)).tolist()
    return [part.tolist() for part in (keep - starts[owner[keep]]).split(counts)]


def made_up(batch: int, per_image: int) -> list[Found]:
    """Boxes ``[N, 4]`` xyxy px around a few places, scores and labels of each image."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    images = []
    for _ in range(batch):
        places = uniform(12, 2) * 0.7 * IMAGE_PX
        sizes = 16 + uniform(12, 2) * 0.25 * IMAGE_PX
        chosen = torch.randint(len(places), (per_image,), generator=generator)
        corner = places[chosen] + 12 * uniform(per_image, 2)
        size = sizes[chosen] * (0.8 + 0.4 * uniform(per_image, 2))
        boxes = (PER_PX * torch.cat((corner, corner + size), dim=1)).round() / PER_PX
        labels = 1 + (chosen + torch.randint(2, (per_image,), generator=generator)) % (CLASSES - 1)
        images.append((boxes, uniform(per_image), labels))
    return images


def _timed(work: Callable[[], Any]) -> Side:
    side = timed(work)
    return Side(1000 * side.figure, side.answer)
