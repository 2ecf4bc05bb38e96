"""R15: a training step whose freed memory stays with the process, against glibc's own ways.

Both sides are the step that trials take (`Learner.step`) of a MobileNetV3 dual network, from equal
weights on one batch; ours within `freed_memory_kept`, as trials are on a CPU. A turn is two steps
and the second one counts, which finds what the first one freed. Losses must agree to the bit. CPU
time of one thread per image. Beside Linux's glibc, and in any thread but the first, both are alike.
"""

from __future__ import annotations

import contextlib
import resource
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.photos import photos
from benchmarks.protocol import Side, interleaved, result, timed
from benchmarks.trainer import OurTrainer
from sharedenc.data.batch import Batch, train_batches
from sharedenc.models.build import build_network
from sharedenc.spec import (
    TASKS,
    Numerics,
    Recipe,
    cpu_kind,
    installed_torch,
    resolve_numerics,
)
from sharedenc.training.allocator import freed_memory_kept
from sharedenc.training.numerics import applied

BACKBONE = "mobilenet_v3_large"
BATCH = 32
IMAGE_PX = 320
LR = 1e-4
PRECISIONS = ("float32", "auto")


def run(rounds: int, image_px: int = IMAGE_PX, batch_size: int = BATCH) -> list[dict[str, Any]]:
    """A row in float32 and one in this machine's numerics, if those are others."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    recipe = Recipe(batch_size=batch_size, image_px=image_px)
    with photos() as data:
        batch = next(iter(train_batches(data.pack.split("train"), recipe, seed=0, epoch=1)))
        classes, name = data.pack.classes.num_classes, data.name
    recipes: dict[Numerics, Recipe] = {}
    for precision in PRECISIONS:
        own = Recipe.from_dict({**recipe.to_dict(), "precision": precision})
        recipes[resolve_numerics(own, BACKBONE, cpu_kind(), installed_torch())] = own
    return [_row(batch, classes, name, own, numerics, rounds) for numerics, own in recipes.items()]


def _row(
    batch: Batch, classes: int, data: str, recipe: Recipe, numerics: Numerics, rounds: int
) -> dict[str, Any]:
    faults: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, applied(numerics):

        def side(name: str, memory: Callable[[], AbstractContextManager[None]]) -> Any:
            network = build_network(BACKBONE, TASKS, classes, seed=0)
            trainer = OurTrainer(network, recipe, LR, numerics, "cpu", Path(folder) / name)

            def turn() -> Side:
                with memory():
                    first = trainer.step(batch)
                    before = page_faults()
                    second = timed(lambda: trainer.step(batch))
                    count = page_faults() - before
                faults[name] = min(count, faults.get(name, count))
                return Side(1000 * second.figure / len(batch), (first, second.answer))

            return turn

        # Once before all: what it leaves behind is where glibc's own adaption would end.
        with freed_memory_kept():
            pass
        duel = interleaved(
            side("reference", contextlib.nullcontext), side("ours", freed_memory_kept), rounds
        )
    row = result(
        "R15",
        f"memory kept from step to step: dual step of {BACKBONE}, batch {len(batch)} of {data}, "
        f"{recipe.image_px} px, {numerics.precision} {numerics.memory_format}",
        duel,
        unit="ms/image",
        check="losses bit-equal",
    )
    return {**row, "page_faults": faults}


def page_faults() -> int:
    """Pages that the kernel has given this process so far without reading a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
