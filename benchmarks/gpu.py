"""``make bench-gpu``: what of a training step pays on this GPU, and what `auto` should mean.

Per backbone every precision in every memory format, then the fastest of them with one thing changed
each: the losses' form, the optimiser's kernel, batches copied ahead, losses read late. A step is
the one that trials take (`Learner.step`), from pictures in the host's memory. Proposals are changes
to the tables in `sharedenc/spec.py`; to make one is to edit the table, and trials on such a device
get new keys.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_choice import (
    Measured,
    Variant,
    basic_variants,
    fastest,
    propose,
    right,
    switched,
)
from benchmarks.protocol import cpu, versions
from benchmarks.trainer import OurTrainer
from sharedenc.data.batch import Batch
from sharedenc.models.build import build_network
from sharedenc.selftest.jobs import synchronise
from sharedenc.spec import (
    AUTO_COMPILE_LOSS,
    AUTO_NUMERICS,
    BACKBONES,
    DeviceKind,
    Numerics,
    Recipe,
    cpu_kind,
    resolve_numerics,
)
from sharedenc.training import learner, losses
from sharedenc.training.device import device_name
from sharedenc.training.loss_reader import LossReader
from sharedenc.training.memory import peak_bytes, reset_peak
from sharedenc.training.numerics import applied
from sharedenc.training.prefetch import on_device

CLASSES = 21
LR = 1e-7
BUDGET_S = 540.0
WARM_UP = 2
NO_GPU = 3
"""Exit status where there is no GPU to measure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and propose; `NO_GPU` without one, 1 when a backbone has no right variant."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="[cuda]")
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES), metavar="NAME")
    parser.add_argument("--batch", type=int, default=32, help="images per step [32]")
    parser.add_argument("--image-px", type=int, default=320, help="[320]")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help=f"[{BUDGET_S:.0f}]")
    parser.add_argument("--json", metavar="FILE", help="write all figures; - for standard output")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.backbones if name not in BACKBONES]
    if unknown:
        parser.error(f"no backbone {', '.join(unknown)}; there are {', '.join(BACKBONES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "there is no CUDA GPU that torch can use, so there is nothing to measure. Run this on "
            "a machine with one; `--device cpu --image-px 64 --batch 2` tries the command itself.",
            file=sys.stderr,
        )
        return NO_GPU
    recipe = Recipe(batch_size=options.batch, image_px=options.image_px)
    try:
        report = measure(options.device, options.backbones, recipe, options.budget_s)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    text = json.dumps(report, indent=2)
    if options.json == "-":
        print(text)
        return 0
    if options.json:
        Path(options.json).write_text(text + "\n")
    print("\n".join(report["diff"]) or "nothing to change: no entry pays by more than the margin")
    return 0


def measure(
    device: str, backbones: Sequence[str], recipe: Recipe, budget_s: float
) -> dict[str, Any]:
    """All figures and the proposals, as plain values; rows go to standard error as they come.

    Raises:
        ValueError: a backbone has no variant with a right loss.
    """
    kind: DeviceKind = "cuda" if device == "cuda" else cpu_kind()
    first = basic_variants(kind)
    # What is built, warmed up and compiled takes as long again as what is timed.
    each_s = budget_s / len(backbones) / (len(first) + len(switched(first[0]))) / 2
    batches = [random_batch(recipe, seed, pinned=device == "cuda") for seed in range(2)]
    rows: list[Measured] = []
    for backbone in backbones:
        mine: list[Measured] = []
        for variant in first:
            mine.append(_said(measure_one(backbone, variant, recipe, batches, device, each_s)))
        for variant in switched(fastest(mine, backbone)):
            mine.append(_said(measure_one(backbone, variant, recipe, batches, device, each_s)))
        rows += mine
    proposals = propose(rows, kind, AUTO_NUMERICS, AUTO_COMPILE_LOSS)
    good = right(rows)
    return {
        "device": device_name(device),
        "kind": kind,
        "batch": recipe.batch_size,
        "image_px": recipe.image_px,
        "rows": [row.to_dict() | {"right": row in good} for row in rows],
        "proposals": [vars(one) for one in proposals],
        "diff": list(itertools.chain.from_iterable(one.lines() for one in proposals)),
        "cpu": cpu(),
        "versions": versions(),
    }


def _said(row: Measured) -> Measured:
    figure = row.error or f"{row.ms:.2f} ms, loss {row.loss:.4f}, {row.peak_bytes / 2**30:.2f} GiB"
    print(f"{row.backbone:20} {row.variant.name:55} {figure}", file=sys.stderr, flush=True)
    return row


def measure_one(
    backbone: str,
    variant: Variant,
    recipe: Recipe,
    batches: Sequence[Batch],
    device: str,
    seconds: float,
) -> Measured:
    """Steps for about so many seconds after a warm-up; an error becomes the row's."""
    numerics = numerics_of(variant, recipe, backbone, device)
    reset_peak(device)
    try:
        with tempfile.TemporaryDirectory() as folder, applied(numerics), chosen(variant):
            # Both memory formats drop the same layers.
            torch.manual_seed(0)
            network = build_network(backbone, ("det", "seg"), CLASSES, seed=0)
            trainer = OurTrainer(network, recipe, LR, numerics, device, Path(folder))
            ms, loss = _steps(trainer, batches, device, seconds, prefetch=variant.prefetch)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        text = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return Measured(backbone=backbone, variant=variant, error=text)
    return Measured(
        backbone=backbone, variant=variant, ms=ms, loss=loss, peak_bytes=peak_bytes(device)
    )


def _steps(
    trainer: OurTrainer, batches: Sequence[Batch], device: str, seconds: float, *, prefetch: bool
) -> tuple[float, float]:
    """Milliseconds per step, and the first step's loss."""
    endless = itertools.cycle(batches)
    if prefetch:
        moved = on_device(endless, device)
    else:
        moved = (batch.to(device) for batch in endless)
    # Read late, the first loss comes with the second step.
    loss = trainer.step(next(moved)) or trainer.step(next(moved))
    for _ in range(WARM_UP):
        trainer.step(next(moved))
    synchronise(device)
    count = 0
    begun = time.perf_counter()
    while count == 0 or time.perf_counter() - begun < seconds:
        trainer.step(next(moved))
        count += 1
    synchronise(device)
    return 1000 * (time.perf_counter() - begun) / count, loss


def numerics_of(variant: Variant, recipe: Recipe, backbone: str, device: str) -> Numerics:
    """The variant as resolved numerics."""
    tf32 = variant.precision == "tf32"
    asked = Recipe.from_dict(
        recipe.to_dict()
        | {
            "precision": "float32" if tf32 else variant.precision,
            "memory_format": variant.memory_format,
            "tf32": tf32,
            "compile_loss": "on" if variant.compile_loss else "off",
        }
    )
    kind: DeviceKind = "cuda" if device == "cuda" else cpu_kind()
    return resolve_numerics(asked, backbone, kind, versions().get("torch", ""))


@contextlib.contextmanager
def chosen(variant: Variant) -> Iterator[None]:
    """Let trainings take the variant's way where a trial has no choice."""
    ways = {
        "batched": losses.batched_detection_loss,
        "by_image": losses.detection_loss_by_image,
    }
    with (
        mock.patch.object(losses, "detection_loss", ways[variant.boxes]),
        mock.patch.object(learner, "fused_optimizer", return_value=variant.fused),
        mock.patch.object(learner, "LossReader", partial(LossReader, late=int(variant.late))),
    ):
        yield


def random_batch(recipe: Recipe, seed: int, *, pinned: bool = False) -> Batch:
    """Noise with a few boxes per image: what a step costs does not depend on what is seen."""
    generator = torch.Generator().manual_seed(seed)
    side, count = recipe.image_px, recipe.batch_size
    boxes, labels = [], []
    for number in range(count):
        objects = 1 + number % 8
        corner = torch.rand(objects, 2, generator=generator) * 0.75 * side
        size = 8 + torch.rand(objects, 2, generator=generator) * (side - 8 - corner)
        boxes.append(torch.cat((corner, corner + size), dim=1))
        labels.append(torch.randint(1, CLASSES, (objects,), generator=generator))
    images = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    masks = torch.randint(CLASSES, (count, side, side), generator=generator, dtype=torch.uint8)
    return Batch(
        images=images.pin_memory() if pinned else images,
        boxes=boxes,
        labels=labels,
        masks=masks.pin_memory() if pinned else masks,
        image_ids=list(range(count)),
        sizes=[(side, side)] * count,
    )


if __name__ == "__main__":
    sys.exit(main())
