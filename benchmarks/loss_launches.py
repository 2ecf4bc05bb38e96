"""R12: operations that target assignment and SSD loss dispatch for a batch, and their CPU time.

On a GPU each operation that is not a view is at least one kernel to launch, and with torchvision's
loop over images the loss launches more of them than a small network. Counted are forward and
loss, not the backward pass. On a CPU the padding of the batched form wins nothing, which is why
trials on a CPU keep the loop over images: the second row is that time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import nms
from benchmarks.dispatch import Operations
from benchmarks.protocol import Duel, Side, Unequal, interleaved, load_average, result, timed
from benchmarks.references import SsdLoss
from sharedenc.models.detection_head import DetectionHead
from sharedenc.training.losses import batched_detection_loss

BATCH = 32
CLASSES = 21
IMAGE_PX = 320
MOST_BOXES = 14
TOLERANCE = 1e-6
FLOOR = 30
"""Launches that remain when the boxes come padded from the loader, as estimated for this loss."""

Loss = Callable[[], Tensor]


def run(rounds: int, batch: int = BATCH) -> list[dict[str, Any]]:
    """A row of operations and one of time, and one of NMS, which ends an evaluation's batch."""
    torch.set_num_threads(1)
    theirs, ours = sides(batch)
    case = f"targets and SSD loss, batch {batch}, 0 to {MOST_BOXES} boxes per image"
    check = f"loss to {TOLERANCE:g}"
    load = load_average()
    counts, values = [], []
    for loss in (theirs, ours):
        with Operations() as operations:
            values.append(float(loss()))
        counts.append(float(operations.count))
    if not equal(*values):
        raise Unequal(f"reference: {values[0]!r}; ours: {values[1]!r}")
    launches = Duel(counts[0], counts[1], 1, load)
    time = interleaved(lambda: _timed(theirs), lambda: _timed(ours), rounds, same=equal)
    return [
        result("R12", f"{case}: operations", launches, unit="ops", check=check, limit=FLOOR),
        result("R12", f"{case}: CPU time, nothing won", time, unit="ms", check=check),
        nms.row(rounds, batch),
    ]


def sides(batch: int) -> tuple[Loss, Loss]:
    """torchvision's loss and ours of one random batch; every fifth image has no box."""
    generator = torch.Generator().manual_seed(0)
    anchors = DetectionHead(8, 8, CLASSES).anchors(IMAGE_PX)
    outputs = {
        "cls_logits": torch.randn(batch, len(anchors), CLASSES, generator=generator),
        "bbox_regression": torch.randn(batch, len(anchors), 4, generator=generator),
    }
    boxes, labels = [], []
    for number in range(batch):
        count = 0 if number % 5 == 4 else 1 + number % MOST_BOXES
        corner = torch.rand(count, 2, generator=generator) * 0.75 * IMAGE_PX
        size = 8 + torch.rand(count, 2, generator=generator) * (IMAGE_PX - 8 - corner)
        boxes.append(torch.cat((corner, corner + size), dim=1))
        labels.append(torch.randint(1, CLASSES, (count,), generator=generator))
    reference = SsdLoss(CLASSES, IMAGE_PX)
    return (
        lambda: reference(outputs, anchors, boxes, labels),
        lambda: batched_detection_loss(
            outputs["cls_logits"], outputs["bbox_regression"], anchors, boxes, labels
        ),
    )


def equal(one: float, other: float) -> bool:
    """Whether two losses are equal to the stated digits."""
    return abs(one - other) <= TOLERANCE * abs(one)


def _timed(loss: Loss) -> Side:
    side = timed(lambda: float(loss()))
    return Side(1000 * side.figure, side.answer)
