"""R6: a whole training step of a dual network in this machine's numerics against float32 NCHW.

Forward pass, both losses, backward pass, AdamW, by the code that trials run (`Learner.step`)
against `benchmarks.references`. CPU time of one thread per image. The learning rate is so small
that the networks hardly move: in every round both sides' losses are those of the same weights, and
must agree. The limit is the larger of arithmetic and memory traffic at this machine's own rates.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.photos import photos
from benchmarks.protocol import Duel, Side, interleaved, result, timed
from benchmarks.references import ReferenceTrainer, normalised
from benchmarks.roofs import Roofs, demand, measure
from benchmarks.trainer import OurTrainer
from sharedenc.data.batch import Batch, train_batches
from sharedenc.models.build import build_network
from sharedenc.models.network import Network
from sharedenc.spec import BACKBONES, Numerics, Recipe, cpu_kind, installed_torch, resolve_numerics
from sharedenc.training.numerics import applied

BATCH = 4
IMAGE_PX = 320
LR = 1e-7
TOLERANCE = 1e-2


def run(
    rounds: int,
    backbones: tuple[str, ...] = tuple(BACKBONES),
    image_px: int = IMAGE_PX,
    batch_size: int = BATCH,
) -> list[dict[str, Any]]:
    """A row per backbone."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    roofs = measure()
    recipe = Recipe(batch_size=batch_size, image_px=image_px)
    with photos() as data:
        batch = next(iter(train_batches(data.pack.split("train"), recipe, seed=0, epoch=1)))
        classes = data.pack.classes.num_classes
        name = data.name
    return [_row(backbone, batch, classes, recipe, name, roofs, rounds) for backbone in backbones]


def _row(
    backbone: str,
    batch: Batch,
    classes: int,
    recipe: Recipe,
    data: str,
    roofs: Roofs,
    rounds: int,
) -> dict[str, Any]:
    numerics = resolve_numerics(recipe, backbone, cpu_kind(), installed_torch())
    duel = compare(backbone, batch, classes, recipe, numerics, rounds)
    limit_s = roofs.step_s(demand(backbone, classes, recipe.image_px), numerics.precision)
    return result(
        "R6",
        f"dual step of {backbone}, batch {len(batch)} of {data}, {recipe.image_px} px; ours "
        f"{numerics.precision} {numerics.memory_format}",
        duel,
        unit="ms/image",
        check=f"loss to {TOLERANCE:.0%}",
        limit=1000 * limit_s,
    )


def compare(
    backbone: str, batch: Batch, classes: int, recipe: Recipe, numerics: Numerics, rounds: int
) -> Duel:
    """Milliseconds per image of both sides, which start from the same weights."""
    images = normalised(batch)

    def network() -> Network:
        return build_network(backbone, ("det", "seg"), classes, seed=0)

    theirs = ReferenceTrainer(network(), recipe.image_px, LR)
    with tempfile.TemporaryDirectory() as folder, applied(numerics):
        ours = OurTrainer(network(), recipe, LR, numerics, "cpu", Path(folder))
        return interleaved(
            lambda: _per_image(lambda: theirs.step(images, batch), len(batch)),
            lambda: _per_image(lambda: ours.step(batch), len(batch)),
            rounds,
            same=lambda a, b: abs(a - b) <= TOLERANCE * abs(a),
        )


def _per_image(step: Callable[[], float], images: int) -> Side:
    # Both sides drop the same layers of an EfficientNet.
    torch.manual_seed(0)
    side = timed(step)
    return Side(1000 * side.figure / images, side.answer)
