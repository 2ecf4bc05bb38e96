"""``python -m benchmarks.precision``: what bfloat16 does to the scores of real trials.

Cells are trained in float32 and in bfloat16 with the same seeds, and the difference of their test
scores is set against the spread that another seed makes. A difference says something of the
precision only where it is larger than that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cv2
import torch

from benchmarks.grid import open_data
from benchmarks.photos import DATA_ENV
from benchmarks.protocol import cpu, load_average, versions
from sharedenc.data.packed import PackedDataset
from sharedenc.models.weights import resolve_weights
from sharedenc.selftest.check import run_quietly
from sharedenc.spec import (
    BACKBONES,
    Cell,
    Precision,
    Recipe,
    Trial,
    cpu_kind,
    device_kind,
    installed_torch,
    resolve_numerics,
)
from sharedenc.training.job import TrialJob, TrialResult

CELLS = (
    "mobilenet_v3_large/baseline/seg",
    "mobilenet_v3_large/baseline/det",
    "mobilenet_v3_large/share-frozen/seg",
    "mobilenet_v3_large/share-frozen/det",
    "mobilenet_v3_large/dual",
)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
EPOCHS, BATCH, SEEDS = 12, 16, 3
SCORES = ("mIoU", "pixel_acc", "mAP", "mAP50")


@dataclass(frozen=True)
class Effect:
    """One score of one cell by precision and seed, in 0..1."""

    cell: str
    score: str
    values: Mapping[str, Sequence[float]]

    @property
    def differences(self) -> list[float]:
        """bfloat16 minus float32, seed by seed."""
        pairs = zip(self.values["float32"], self.values["bfloat16"], strict=True)
        return [low - high for high, low in pairs]

    @property
    def mean_difference(self) -> float:
        return fmean(self.differences)

    @property
    def error(self) -> float:
        """Standard error of the mean difference; NaN for one seed."""
        count = len(self.differences)
        return stdev(self.differences) / math.sqrt(count) if count > 1 else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation between the seeds in float32; NaN for one seed."""
        values = self.values["float32"]
        return stdev(values) if len(values) > 1 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "cell": self.cell,
            "score": self.score,
            "values": {name: list(found) for name, found in self.values.items()},
            "mean_difference": self.mean_difference,
            "error": self.error,
            "spread": self.spread,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print the table, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--data", type=Path, help=f"data set [${DATA_ENV}, else drawn pictures]")
    parser.add_argument("--weights", default="none", help="as of `sharedenc train` [none]")
    parser.add_argument("--cells", nargs="*", default=list(CELLS), metavar="CELL")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"[{EPOCHS}]")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"[{BATCH}]")
    parser.add_argument("--image-px", type=int, default=Recipe().image_px, help="[320]")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"[{SEEDS}]")
    parser.add_argument("--device", default="", help="cpu or cuda [what there is]")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    options = parser.parse_args(arguments)
    cells = [Cell.parse(cell) for cell in options.cells]
    if swaps := [cell.name for cell in cells if cell.source is not None]:
        parser.error(f"{', '.join(swaps)}: a swap needs another trial first; name other cells")
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    recipe = Recipe(epochs=options.epochs, batch_size=options.batch, image_px=options.image_px)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-precision-") as scratch:
        name, pack = open_data(options.data, Path(scratch))
        effects = compare(
            cells,
            recipe,
            pack,
            options.weights,
            range(options.seeds),
            Path(scratch),
            cuda=(options.device or device_kind()) == "cuda",
        )
    report = {
        "data": name,
        "recipe": recipe.to_dict(),
        "seeds": options.seeds,
        "effects": [effect.to_dict() for effect in effects],
        "seconds": time.monotonic() - started,
        "load": load_average(),
        "cpu": cpu(),
        "versions": versions(),
    }
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    print(f"{name}, {recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.image_px} px")
    print(table(effects))
    return 0


def compare(
    cells: Sequence[Cell],
    recipe: Recipe,
    pack: PackedDataset,
    weights: str,
    seeds: Sequence[int],
    scratch: Path,
    *,
    cuda: bool = False,
) -> list[Effect]:
    """Train every cell with every seed in both precisions; an effect per cell and score.

    A precision's trials of one seed follow each other, so that both see the machine alike.
    """
    effects = []
    for cell in cells:
        found: dict[str, list[TrialResult]] = {precision: [] for precision in PRECISIONS}
        for seed in seeds:
            for precision in PRECISIONS:
                folder = scratch / f"{cells.index(cell)}-{seed}-{precision}"
                result = _train(cell, recipe, precision, pack, weights, seed, folder, cuda)
                found[precision].append(result)
                print(
                    f"{cell}, seed {seed}, {precision}: score {result.score:.4f}, "
                    f"{result.seconds:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
        effects += effects_of(cell, found)
    return effects


def effects_of(cell: Cell, found: Mapping[str, Sequence[TrialResult]]) -> list[Effect]:
    """An effect for each of `SCORES` that all results of a cell have."""
    everything = [result for results in found.values() for result in results]
    return [
        Effect(
            cell.name,
            score,
            {name: [r.test[score] for r in results] for name, results in found.items()},
        )
        for score in SCORES
        if all(score in result.test for result in everything)
    ]


def _train(
    cell: Cell,
    recipe: Recipe,
    precision: Precision,
    pack: PackedDataset,
    weights: str,
    seed: int,
    folder: Path,
    cuda: bool,
) -> TrialResult:
    own = Recipe.from_dict({**recipe.to_dict(), "precision": precision})
    trial = Trial(
        cell=cell,
        recipe=own,
        lr=BACKBONES[cell.backbone].lr or 1e-3,
        seed=seed,
        data_digest=pack.digest,
        weights_digest=resolve_weights(weights, cell.backbone).digest,
        numerics=resolve_numerics(
            own, cell.backbone, "cuda" if cuda else cpu_kind(), installed_torch()
        ),
    )
    job = TrialJob(
        trial=trial,
        pack=pack.root,
        weights=weights,
        parent=None,
        work_dir=folder,
        device="cuda" if cuda else "cpu",
        keep=False,
        predictions=False,
    )
    return run_quietly(job)


def table(effects: Sequence[Effect]) -> str:
    """Points (0 to 100): means, the difference with its error, and the spread of seeds."""
    heads = ("cell", "score", "float32", "bfloat16", "difference", "error", "seeds' spread")
    lines: list[tuple[str, ...]] = [heads]
    for effect in effects:
        figures = (
            fmean(effect.values["float32"]),
            fmean(effect.values["bfloat16"]),
            effect.mean_difference,
            effect.error,
            effect.spread,
        )
        lines.append((effect.cell, effect.score, *(f"{100 * value:.2f}" for value in figures)))
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
