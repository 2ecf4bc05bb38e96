"""The whole grid trained for real, one job after the other in this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import sharedenc
from benchmarks.grid import Job, together
from benchmarks.grid_journal import Journal, Line
from benchmarks.grid_parts import WAYS, Way
from benchmarks.profile import PARTS, watched
from benchmarks.protocol import cpu, versions
from benchmarks.spans import Spans
from sharedenc.data.packed import PackedDataset
from sharedenc.models.weights import resolve_weights
from sharedenc.spec import BACKBONES, Cell, Recipe, Trial
from sharedenc.tracking import MemoryTracker
from sharedenc.training import initialise
from sharedenc.training.job import Outcome, TrialJob, TrialResult
from sharedenc.training.run import run_together
from sharedenc.training.software import code_digest

# A run without pages and uploads: what is compared is training, validation, test and checkpoints.
STUDY = "grid"


def train(
    cells: Sequence[Cell],
    recipe: Recipe,
    pack: PackedDataset,
    weights: str,
    work: Path,
    ways: Sequence[Way] = WAYS,
) -> dict[str, list[Job]]:
    """Every job of the grid with its seconds and losses, by way; each also goes to standard error.

    Args:
        work: Keeps what is done; jobs that it has are not trained again.
        ways: Those to train. Others are in the answer too if ``work`` has all their jobs.

    Raises:
        RuntimeError: a trial did not end done.
    """
    journal = Journal(work, _settings(recipe, pack, weights))
    code = code_digest(Path(sharedenc.__file__).parent)
    jobs: dict[str, list[Job]] = {}
    for way in WAYS:
        lines: list[Line] = []
        for group in [[cell] for cell in cells] if way.reference else together(cells):
            line = journal.find(way.name, [cell.name for cell in group])
            if line is None and way in ways:
                sources = {cell: one for one in journal.of(way.name) for cell in one.cells}
                line = _train(group, way, recipe, pack, weights, work, sources, code)
                journal.add(line)
                _tell(line)
            if line is None:
                break
            lines.append(line)
        else:
            others = sum(line.code != code for line in lines)
            if others:
                print(f"{way.name}: {others} jobs were done by other code", file=sys.stderr)
            jobs[way.name] = [
                Job(tuple(map(Cell.parse, one.cells)), dict(one.cpu_s), one.wall_s, one.found)
                for one in lines
            ]
    return jobs


def _settings(recipe: Recipe, pack: PackedDataset, weights: str) -> dict[str, object]:
    return {
        "recipe": recipe.to_dict(),
        "data": pack.digest,
        "weights": weights,
        "cpu": cpu(),
        "versions": versions(),
    }


def _train(
    group: Sequence[Cell],
    way: Way,
    recipe: Recipe,
    pack: PackedDataset,
    weights: str,
    work: Path,
    sources: Mapping[str, Line],
    code: str,
) -> Line:
    folder = work / way.name / group[0].backbone
    if way.reference or not any(Cell.parse(c).backbone == group[0].backbone for c in sources):
        # The reference keeps nothing from trial to trial; and a cut job has told no time.
        shutil.rmtree(folder / "cache", ignore_errors=True)
    shutil.rmtree(folder / "cache" / "taps", ignore_errors=True)
    made = []
    for cell in group:
        own = folder / cell.name.replace("/", "-")
        shutil.rmtree(own, ignore_errors=True)
        source = None if cell.source is None else sources[cell.source.name]
        made.append(_job(cell, way, recipe, pack, weights, own, source))
    spans = Spans()
    with mock.patch.dict(os.environ, {"SHAREDENC_CACHE": str(folder / "cache")}):
        started = time.perf_counter()
        outcomes = _run(made, way, spans)
        wall_s = time.perf_counter() - started
    seconds = spans.close()
    results: dict[str, TrialResult] = {}
    for cell, outcome in zip(group, outcomes, strict=True):
        if outcome.result is None or outcome.state != "done":
            raise RuntimeError(f"{way.name}, {cell}: {outcome.state}, {outcome.traceback}")
        results[cell.name] = outcome.result
    for cell, job in zip(group, made, strict=True):
        # A swap reads its baseline's network, nothing else is needed again.
        if cell.strategy != "baseline":
            shutil.rmtree(job.work_dir)
    return Line(
        way=way.name,
        cells=tuple(results),
        cpu_s={part: seconds.get(part, 0.0) for part in ("calibration", *PARTS)},
        wall_s=wall_s,
        found={
            name: {
                "train_loss": one.history[0]["train/loss"],
                "val_loss": one.history[0]["val/loss"],
                "score": one.score,
            }
            for name, one in results.items()
        },
        keys={name: one.key for name, one in results.items()},
        checkpoints={name: one.checkpoint for name, one in results.items()},
        code=code,
    )


def _tell(line: Line) -> None:
    for cell, found in line.found.items():
        print(
            f"{line.way} {cell}: loss {found['train_loss']:.6f}, validation "
            f"{found['val_loss']:.6f}, score {found['score']:.4f}, {sum(line.cpu_s.values()):.1f} s"
            f" CPU and {line.wall_s:.1f} s wall of {len(line.cells)}",
            file=sys.stderr,
            flush=True,
        )


def _job(
    cell: Cell,
    way: Way,
    recipe: Recipe,
    pack: PackedDataset,
    weights: str,
    folder: Path,
    source: Line | None,
) -> TrialJob:
    parent = None if cell.source is None else cell.source.name
    trial = Trial(
        cell=cell,
        recipe=way.recipe(recipe),
        lr=BACKBONES[cell.backbone].lr or 1e-3,
        seed=0,
        data_digest=pack.digest,
        weights_digest=resolve_weights(weights, cell.backbone).digest,
        numerics=way.numerics(recipe, cell.backbone),
        parent_key=None if source is None or parent is None else source.keys[parent],
    )
    return TrialJob(
        trial=trial,
        pack=pack.root,
        weights=weights,
        parent=None if source is None or parent is None else Path(source.checkpoints[parent]),
        work_dir=folder,
        device="cpu",
        keep=False,
        predictions=False,
        taps_budget_bytes=0 if way.reference else TrialJob.taps_budget_bytes,
    )


def _run(jobs: Sequence[TrialJob], way: Way, spans: Spans) -> list[Outcome]:
    tracker = MemoryTracker(jobs[0].work_dir / "tracked")
    parent = tracker.study(STUDY, {})
    runs = [tracker.child(STUDY, parent, job.trial.cell.name, {}) for job in jobs]
    with contextlib.ExitStack() as stack:
        stack.enter_context(way.code(jobs[0].trial.recipe.image_px))
        stack.enter_context(watched(spans))
        stack.enter_context(spans.watch("calibration", initialise, "calibrate"))
        return run_together(jobs, runs, [None] * len(jobs))
