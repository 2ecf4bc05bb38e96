"""The whole grid trained for real in every way, one job after the other in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

from benchmarks.grid import Job, together
from benchmarks.grid_parts import WAYS, Way
from benchmarks.protocol import timed
from sharedenc.data.packed import PackedDataset
from sharedenc.models.weights import resolve_weights
from sharedenc.spec import BACKBONES, Cell, Recipe, Trial
from sharedenc.tracking import MemoryTracker
from sharedenc.training.job import Outcome, TrialJob, TrialResult
from sharedenc.training.run import run_together

# A run without pages and uploads: what is compared is training, validation, test and checkpoints.
STUDY = "grid"


def train(
    cells: Sequence[Cell], recipe: Recipe, pack: PackedDataset, weights: str, scratch: Path
) -> dict[str, list[Job]]:
    """Every job of the grid with its CPU seconds, by way; the final scores go to standard error.

    Raises:
        RuntimeError: a trial did not end done.
    """
    jobs: dict[str, list[Job]] = {}
    for way in WAYS:
        groups = [[cell] for cell in cells] if way.reference else together(cells)
        results: dict[Cell, TrialResult] = {}
        jobs[way.name] = []
        for number, group in enumerate(groups):
            folder = scratch / way.name
            # The reference keeps nothing from trial to trial.
            cache = folder / (f"cache-{number}" if way.reference else "cache")
            made = [
                _job(cell, way, recipe, pack, weights, folder / str(cells.index(cell)), results)
                for cell in group
            ]
            with mock.patch.dict(os.environ, {"SHAREDENC_CACHE": str(cache)}):
                side = timed(lambda made=made, way=way: _run(made, way))  # type: ignore[misc]
            for cell, outcome in zip(group, side.answer, strict=True):
                if outcome.result is None or outcome.state != "done":
                    raise RuntimeError(f"{way.name}, {cell}: {outcome.state}, {outcome.traceback}")
                results[cell] = outcome.result
                print(
                    f"{way.name} {cell}: loss {outcome.result.val['loss']:.6f}, score "
                    f"{outcome.result.score:.4f}, {side.figure:.1f} s CPU of {len(group)}",
                    file=sys.stderr,
                    flush=True,
                )
            jobs[way.name].append(Job(tuple(group), {"trained": side.figure}))
    return jobs


def _job(
    cell: Cell,
    way: Way,
    recipe: Recipe,
    pack: PackedDataset,
    weights: str,
    folder: Path,
    results: Mapping[Cell, TrialResult],
) -> TrialJob:
    source = None if cell.source is None else results[cell.source]
    own = way.recipe(recipe)
    trial = Trial(
        cell=cell,
        recipe=own,
        lr=BACKBONES[cell.backbone].lr or 1e-3,
        seed=0,
        data_digest=pack.digest,
        weights_digest=resolve_weights(weights, cell.backbone).digest,
        numerics=way.numerics(recipe, cell.backbone),
        parent_key=None if source is None else source.key,
    )
    return TrialJob(
        trial=trial,
        pack=pack.root,
        weights=weights,
        parent=None if source is None else Path(source.checkpoint),
        work_dir=folder,
        device="cpu",
        keep=False,
        predictions=False,
        taps_budget_bytes=0 if way.reference else TrialJob.taps_budget_bytes,
    )


def _run(jobs: Sequence[TrialJob], way: Way) -> list[Outcome]:
    tracker = MemoryTracker(jobs[0].work_dir / "tracked")
    parent = tracker.study(STUDY, {})
    runs = [tracker.child(STUDY, parent, job.trial.cell.name, {}) for job in jobs]
    with way.code(jobs[0].trial.recipe.image_px):
        return run_together(jobs, runs, [None] * len(jobs))
