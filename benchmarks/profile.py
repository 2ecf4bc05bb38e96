"""``python -m benchmarks.profile``: one epoch's CPU time by part, for each way of sharing.

The second epoch of a real trial per cell (`run_trial`: data, training, validation, checkpoint), on
one thread; the first one fills caches. ``--reference`` runs the same trials as torchvision's
reference scripts would: float32 and NCHW, v2 transforms, logits at full size, torchvision's losses,
pycocotools. A swap costs what a share costs: they differ in the weights that they start from.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from benchmarks.photos import photos
from benchmarks.protocol import cpu, load_average, versions
from benchmarks.references import IGNORE, SsdLoss
from benchmarks.spans import Spans
from sharedenc.data.batch import Batch, train_batches
from sharedenc.data.packed import PackedDataset
from sharedenc.evaluation import evaluate
from sharedenc.evaluation.detection import coco_ap
from sharedenc.models.network import Network
from sharedenc.selftest.check import run_quietly
from sharedenc.spec import (
    BACKBONES,
    Cell,
    Numerics,
    Recipe,
    Task,
    Trial,
    cpu_kind,
    installed_torch,
    resolve_numerics,
)
from sharedenc.training import learner, loop, together
from sharedenc.training.job import EpochReport, TrialJob
from sharedenc.training.keeper import Keeper

CELLS = (
    "baseline/seg",
    "baseline/det",
    "share-frozen/seg",
    "share-frozen/det",
    "share-bias/seg",
    "share-bias/det",
    "dual",
)
PARTS = (
    "data",
    "encoder",
    "heads",
    "losses",
    "backward",
    "optimiser",
    "validation",
    "scores",
    "checkpoint",
    "rest",
)
REFERENCE = {
    "precision": "float32",
    "memory_format": "contiguous",
    "sample_path": "reference",
}
BATCH = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or write it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--reference", action="store_true", help="as reference scripts would")
    parser.add_argument("--backbone", default="mobilenet_v3_large", choices=list(BACKBONES))
    parser.add_argument(
        "--cells", nargs="*", default=list(CELLS), metavar="CELL", help="without backbone"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help=f"[{BATCH}]")
    parser.add_argument("--image-px", type=int, default=320, help="[320]")
    parser.add_argument("--json", metavar="FILE", help="write all figures; - for standard output")
    options = parser.parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    report = profile(
        [Cell.parse(f"{options.backbone}/{cell}") for cell in options.cells],
        Recipe(epochs=2, batch_size=options.batch, image_px=options.image_px),
        reference=options.reference,
    )
    text = json.dumps(report, indent=2)
    if options.json == "-":
        print(text)
        return 0
    if options.json:
        Path(options.json).write_text(text + "\n")
    print(table(report))
    return 0


def profile(cells: Sequence[Cell], recipe: Recipe, *, reference: bool = False) -> dict[str, Any]:
    """Seconds of an epoch by part for each cell, as plain values."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if reference:
        recipe = Recipe.from_dict(recipe.to_dict() | REFERENCE)
    rows = []
    with photos() as data:
        for cell in cells:
            print(f"{cell} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="bench-profile-") as folder:
                rows.append(epoch(cell, recipe, data.pack, Path(folder), reference=reference))
        counts = {split: len(data.pack.split(split)) for split in ("train", "val")}
    return {
        "way": "reference" if reference else "ours",
        "data": data.name,
        "images": counts,
        "batch": recipe.batch_size,
        "image_px": recipe.image_px,
        "rows": rows,
        "load": load_average(),
        "cpu": cpu(),
        "versions": versions(),
    }


def epoch(
    cell: Cell, recipe: Recipe, pack: PackedDataset, folder: Path, *, reference: bool
) -> dict[str, Any]:
    """The second epoch of a trial from random weights: seconds by part, and its validation loss."""
    trial = Trial(
        cell=cell,
        recipe=recipe,
        lr=BACKBONES[cell.backbone].lr or 1e-3,
        seed=0,
        data_digest=pack.digest,
        weights_digest="none",
        numerics=resolve_numerics(recipe, cell.backbone, cpu_kind(), installed_torch()),
    )
    job = TrialJob(
        trial=trial,
        pack=pack.root,
        weights="none",
        parent=None,
        work_dir=folder,
        device="cpu",
        predictions=False,
        test=False,
        checkpoint_every="1epochs",
        taps_budget_bytes=0 if reference else TrialJob.taps_budget_bytes,
    )
    spans = Spans()
    found: dict[str, float] = {}

    def tell(report: EpochReport) -> bool:
        if report.epoch == 1:
            spans.restart()
        else:
            found.update(spans.close())
        return False

    with contextlib.ExitStack() as stack:
        if reference:
            stack.enter_context(as_references(recipe.image_px))
        stack.enter_context(watched(spans))
        result = run_quietly(job, tell)
    seconds = {part: found.get(part, 0.0) for part in PARTS}
    return {
        "cell": cell.name,
        "precision": trial.numerics.precision,
        "memory_format": trial.numerics.memory_format,
        "seconds": seconds,
        "total": sum(found.values()),
        "val_loss": result.history[-1]["val/loss"],
    }


@contextlib.contextmanager
def watched(spans: Spans) -> Iterator[None]:
    """Charge what a trial does to `PARTS`."""

    def batches(*args: Any, **kwargs: Any) -> Iterator[Batch]:
        return spans.each("data", train_batches(*args, **kwargs))

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(together, "train_batches", batches))
        for part, owner, attribute in (
            ("encoder", loop, "encode"),
            ("heads", learner, "decode"),
            ("losses", learner, "task_losses"),
            ("backward", Tensor, "backward"),
            ("optimiser", AdamW, "step"),
            ("validation", together, "evaluate_members"),
            ("scores", evaluate, "coco_ap"),
            ("checkpoint", Keeper, "save"),
            ("checkpoint", Keeper, "keep_best"),
        ):
            stack.enter_context(spans.watch(part, owner, attribute))
        yield


@contextlib.contextmanager
def as_references(image_px: int) -> Iterator[None]:
    """Let a trial compute as torchvision's reference scripts do."""
    ssd: dict[int, SsdLoss] = {}

    def decode(network: Network, maps: dict[str, Tensor], _: Numerics) -> dict[str, Tensor]:
        return network.decode(maps, (image_px, image_px))

    def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), masks.long(), ignore_index=IGNORE)

    def detection_loss(logits: Tensor, offsets: Tensor, anchors: Tensor, *truth: Any) -> Tensor:
        classes = logits.shape[-1]
        loss = ssd.setdefault(classes, SsdLoss(classes, image_px))
        return loss({"cls_logits": logits, "bbox_regression": offsets}, anchors, *truth)

    def task_losses(
        network: Network,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        anchors: Tensor | None,
        **_: Any,
    ) -> dict[Task, Tensor]:
        losses: dict[Task, Tensor] = {}
        if anchors is not None:
            heads = outputs["cls_logits"], outputs["bbox_regression"]
            losses["det"] = detection_loss(*heads, anchors, batch.boxes, batch.labels)
        if batch.masks is not None and "seg" in network.tasks:
            losses["seg"] = cross_entropy(outputs["seg_logits"], batch.masks)
        return losses

    def segment(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        full = F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)
        return cross_entropy(full, masks), full.argmax(dim=1).to(torch.uint8)

    with (
        mock.patch.object(together, "freed_memory_kept", contextlib.nullcontext),
        mock.patch.object(learner, "decode", decode),
        mock.patch.object(learner, "task_losses", task_losses),
        mock.patch.object(evaluate, "detection_loss", detection_loss),
        mock.patch.object(evaluate, "segment", segment),
        mock.patch.object(evaluate, "coco_ap", partial(coco_ap, backend="pycocotools")),
    ):
        yield


def table(report: Mapping[str, Any]) -> str:
    """Milliseconds per training image by part, one line per cell."""
    images = report["images"]["train"]
    lines = [("ms per image", *PARTS, "total")]
    for row in report["rows"]:
        figures = [*(row["seconds"][part] for part in PARTS), row["total"]]
        lines.append((row["cell"], *(f"{1000 * value / images:.2f}" for value in figures)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return (
        f"{report['way']}: one epoch of {images} training and {report['images']['val']} validation "
        f"pictures of {report['data']}, {report['image_px']} px, batch {report['batch']}, CPU time "
        f"of one thread, load {report['load']}\n{text}"
    )


if __name__ == "__main__":
    sys.exit(main())
