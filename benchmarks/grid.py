"""``python -m benchmarks.grid``: the whole grid before and after, from measured parts.

Reference: every trial alone in a new process, float32 and NCHW, torchvision's v2 transforms and
losses, logits at full size, pycocotools, nothing kept. Ours in float32, whose losses are those of
the reference to four digits, and in this machine's default numerics; processes are used again,
shares of one frozen encoder train together, statistics of random encoders are computed once.

Per kind of trial (backbone, what trains, tasks) a few steps, validation pictures and a checkpoint
are measured in turns on one thread, then the 44 cells are added up: CPU hours, and wall hours as a
schedule would have them on a number of slots, the longest remaining path first, for all ways alike.

``--real`` trains the grid instead, which takes hours: each job alone on the machine, its CPU time
by part and its wall time measured, the losses of its first epoch compared with the reference's.
Finished jobs are kept beside ``--json FILE`` (or in ``--work DIR``), and a later call goes on from
there: ``--ways reference``, then ``--ways float32,default``. Starts of processes do not count then.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.grid_parts import (
    WAYS,
    Costs,
    Kind,
    Way,
    calibration_s,
    data_s,
    least,
    measure,
    scores_s,
    start_s,
)
from benchmarks.photos import DATA_ENV, DRAWN, draw
from benchmarks.protocol import Duel, Unequal, load_average, result, table
from sharedenc.data.packed import PackedDataset, prepare
from sharedenc.spec import Cell, Recipe
from sweeps.grid import full_grid, select

BATCH, ROUNDS, SECONDS_PER_CELL, SLOTS = 8, 3, 30.0, 2
Found = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Figures of trained cells, by cell, way and name."""
PARTS = ("start", "calibration", "data", "steps", "validation", "scores", "test", "checkpoint")


@dataclass(frozen=True)
class Job:
    """What one process does in one go: a trial, or several that train together.

    ``seconds`` are CPU time by part. A job that was really trained has ``wall_s``, and by cell the
    losses of its first epoch and its score.
    """

    cells: tuple[Cell, ...]
    seconds: dict[str, float]
    wall_s: float | None = None
    found: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def lasts_s(self) -> float:
        """How long it is at work: the wall time, else that of one busy thread."""
        return self.total if self.wall_s is None else self.wall_s


@dataclass(frozen=True)
class Figures:
    """Everything that was measured of one way."""

    kinds: Mapping[Kind, Costs]
    calibration: Mapping[str, float]
    data: float
    scores: Mapping[str, float]
    start: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the rows where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__)
    parser.add_argument("--data", type=Path, help=f"data set [${DATA_ENV}, else drawn pictures]")
    parser.add_argument("--epochs", type=int, default=1, help="of every trial [1]")
    parser.add_argument("--slots", type=int, default=SLOTS, help=f"trials at once [{SLOTS}]")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"for measuring [{BATCH}]")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at most [{ROUNDS}]")
    parser.add_argument(
        "--seconds-per-cell",
        type=float,
        default=SECONDS_PER_CELL,
        help=f"no round of a kind begins later, after the second [{SECONDS_PER_CELL:.0f}]",
    )
    parser.add_argument("--cells", nargs="*", default=[], help="globs; all 44 by default")
    parser.add_argument("--image-px", type=int, default=Recipe().image_px, help="[320]")
    parser.add_argument("--weights", default="none", help="none: random and calibrated [none]")
    parser.add_argument("--real", action="store_true", help="train everything; takes hours")
    parser.add_argument(
        "--ways",
        type=lambda text: text.split(","),
        default=[way.name for way in WAYS],
        metavar="WAY,...",
        help=f"to run, of {','.join(way.name for way in WAYS)}; all by default",
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="jobs that --real has finished [FILE.work]"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows; - for standard output")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.ways) - {way.name for way in WAYS})
    if unknown:
        parser.error(f"no way {', '.join(unknown)}; there are {','.join(w.name for w in WAYS)}")
    if not options.real and WAYS[0].name not in options.ways:
        parser.error(f"--ways without {WAYS[0].name}: only --real can take it from earlier calls")
    ways = [way for way in WAYS if way.name in options.ways]
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    cells = select(full_grid(), options.cells)
    recipe = Recipe(epochs=options.epochs, image_px=options.image_px)
    with tempfile.TemporaryDirectory(prefix="bench-grid-") as scratch:
        name, pack = open_data(options.data, Path(scratch))
        if options.real:
            from benchmarks.grid_real import train

            work = options.work or Path(scratch)
            if options.work is None and options.json not in (None, "-"):
                work = Path(f"{options.json}.work")
            jobs = train(cells, recipe, pack, options.weights, work, ways)
            how, rounds = "trained", 1
        else:
            figures = measured(cells, recipe, pack, options, ways)
            random = options.weights == "none"
            jobs = {
                way.name: added_up(
                    way, cells, recipe, pack, figures[way.name], random, options.slots
                )
                for way in ways
            }
            how, rounds = f"from steps of batch {options.batch}", options.rounds
    text = f"{len(cells)} cells, {recipe.epochs} epoch(s) of {name}, {how}"
    rows = []
    if WAYS[0].name in jobs:
        rows = report(jobs, text, options.slots, rounds)
    else:
        print(f"no rows before all jobs of {WAYS[0].name} are there", file=sys.stderr)
    if options.json == "-":
        print(json.dumps(rows, indent=2))
        return 0
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))
    print(parts_table(jobs))
    return 0


def open_data(named: Path | None, scratch: Path) -> tuple[str, PackedDataset]:
    """The data set's name and its pack, which goes with ``scratch``."""
    if named is None and DATA_ENV in os.environ:
        named = Path(os.environ[DATA_ENV])
    source = named or draw(scratch / "set")
    name = DRAWN if named is None else named.resolve().name
    return name, prepare(source, scratch / "cache", progress=False)


def measured(
    cells: Sequence[Cell],
    recipe: Recipe,
    pack: PackedDataset,
    options: argparse.Namespace,
    ways: Sequence[Way],
) -> dict[str, Figures]:
    """Measure every kind of trial among the cells, in all ways in turn."""
    rounds = options.rounds
    backbones = dict.fromkeys(cell.backbone for cell in cells)
    start = min(start_s() for _ in range(rounds))
    data = least(lambda way: data_s(way, recipe, pack, epoch=1), ways, rounds)
    splits = {split: len(pack.split(split)) for split in ("val", "test")}
    scores = {
        split: least(lambda way, split=split: scores_s(way, pack, split), ways, rounds)  # type: ignore[misc]
        for split, count in splits.items()
        if count
    }
    calibration = {
        backbone: least(
            lambda way, backbone=backbone: calibration_s(  # type: ignore[misc]
                way, backbone, recipe, pack, options.batch
            ),
            ways,
            2,
        )
        for backbone in backbones
    }
    kinds: dict[Kind, dict[str, Costs]] = {}
    groups = {False: [[cell] for cell in cells], True: together(cells)}
    for kind in dict.fromkeys(Kind.of(group) for both in groups.values() for group in both):
        print(f"{kind} ...", file=sys.stderr, flush=True)
        kinds[kind] = measure(
            kind,
            ways,
            recipe,
            pack,
            rounds=rounds,
            seconds=options.seconds_per_cell,
            batch_size=options.batch,
        )
    return {
        way.name: Figures(
            kinds={kind: costs[way.name] for kind, costs in kinds.items()},
            calibration={name: found[way.name] for name, found in calibration.items()},
            data=data[way.name],
            scores={split: found[way.name] for split, found in scores.items()},
            start=start,
        )
        for way in ways
    }


def together(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells by process: those that share one frozen, untrained encoder go together."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        frozen = cell.strategy == "share" and cell.freeze == "frozen"
        groups.setdefault(cell.backbone if frozen else cell.name, []).append(cell)
    return list(groups.values())


def added_up(
    way: Way,
    cells: Sequence[Cell],
    recipe: Recipe,
    pack: PackedDataset,
    figures: Figures,
    random_weights: bool = True,
    slots: int = 1,
) -> list[Job]:
    """Every job of the grid with what its parts take; each of our slots starts one process."""
    counts = {split: len(pack.split(split)) for split in ("train", "val", "test")}
    groups = [[cell] for cell in cells] if way.reference else together(cells)
    calibrated: set[str] = set()
    jobs: list[Job] = []
    for group in groups:
        kind = Kind.of(group)
        cost = figures.kinds[kind]
        backbone = kind.backbone
        seconds = dict.fromkeys(PARTS, 0.0)
        if way.reference:
            seconds["start"] = figures.start
        if random_weights and group[0].source is None and backbone not in calibrated:
            images = min(recipe.calibration_images, counts["train"])
            seconds["calibration"] = images * figures.calibration[backbone]
            if not way.reference:
                calibrated.add(backbone)
        seconds["data"] = recipe.epochs * counts["train"] * figures.data
        seconds["steps"] = recipe.epochs * counts["train"] * cost["step"]
        again = (recipe.epochs - 1) * cost.validate_again
        seconds["validation"] = counts["val"] * (cost["validate"] + again)
        seconds["test"] = counts["test"] * cost["validate"]
        detectors = sum("det" in cell.tasks for cell in group)
        seconds["scores"] = detectors * (
            recipe.epochs * figures.scores.get("val", 0.0) + figures.scores.get("test", 0.0)
        )
        seconds["checkpoint"] = cost["checkpoint"] * (recipe.epochs if way.reference else 1)
        jobs.append(Job(tuple(group), seconds))
    if not way.reference:
        # The first job of each slot waits for nothing, and its process takes all later ones.
        first = [place for place, job in enumerate(jobs) if job.cells[0].source is None]
        for place in first[:slots]:
            jobs[place].seconds["start"] = figures.start
    return jobs


def makespan_s(jobs: Sequence[Job], slots: int) -> float:
    """Seconds until all jobs are done on ``slots``, the longest remaining path first."""
    by_cell = {cell: place for place, job in enumerate(jobs) for cell in job.cells}
    after: dict[int, list[int]] = {place: [] for place in range(len(jobs))}
    waits = dict.fromkeys(range(len(jobs)), 0)
    for place, job in enumerate(jobs):
        for source in {by_cell[cell.source] for cell in job.cells if cell.source is not None}:
            after[source].append(place)
            waits[place] += 1

    def path(place: int) -> float:
        return jobs[place].lasts_s + max((path(later) for later in after[place]), default=0.0)

    ready = [(-path(place), place) for place, count in waits.items() if not count]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, place = heapq.heappop(ready)
            heapq.heappush(running, (now + jobs[place].lasts_s, place))
        now, done = heapq.heappop(running)
        for later in after[done]:
            waits[later] -= 1
            if not waits[later]:
                heapq.heappush(ready, (-path(later), later))
    return now


def report(
    jobs: Mapping[str, Sequence[Job]], text: str, slots: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for each of our ways: CPU and wall minutes of the grid, and CPU by backbone.

    Raises:
        Unequal: losses of trained cells are further apart than a way's limits.
    """
    reference = jobs[WAYS[0].name]
    trained = all(job.wall_s is not None for job in reference)
    load = load_average()
    rows = []
    for way in WAYS[1:]:
        if way.name not in jobs:
            continue
        ours = jobs[way.name]
        check = checked(way)
        more: dict[str, Any] = {"parts": {WAYS[0].name: parts(reference), way.name: parts(ours)}}
        cases = [("CPU time", cpu_s(reference), cpu_s(ours))]
        if trained:
            more["found"] = compare_trained(way, reference, ours)
            check = checked_when_trained(way, more["found"])
            walls = [sum(job.lasts_s for job in those) for those in (reference, ours)]
            cases.append(("wall, one job after the other", walls[0], walls[1]))
        cases += [
            (
                f"scheduled wall on {slots} slots",
                makespan_s(reference, slots),
                makespan_s(ours, slots),
            ),
            *(
                (f"CPU time of {name}", cpu_s(reference, name), cpu_s(ours, name))
                for name in dict.fromkeys(cell.backbone for job in ours for cell in job.cells)
            ),
        ]
        for what, theirs, own in cases:
            duel = Duel(theirs / 60, own / 60, rounds, load)
            row = result("grid", f"{text}, {way.name}: {what}", duel, unit="min", check=check)
            rows.append({**row, **more})
            more = {}
    return rows


def checked(way: Way) -> str:
    """What measured steps were compared in."""
    text = f"losses of a step to {way.step:g}"
    if way.validation is not None:
        text += f", of a validation of the same pixels to {way.validation:g}"
    return text


def checked_when_trained(way: Way, found: Found) -> str:
    """What trained cells were compared in, and how far they are apart at most."""
    said = []
    for name, limit in way.trained.items():
        most = max(apart(cell[WAYS[0].name][name], cell[way.name][name]) for cell in found.values())
        against = "not compared" if limit is None else f"compared to {limit:g}"
        said.append(f"{name} {against} (at most {most:.1g} apart)")
    return f"first epoch's {', '.join(said)}"


def compare_trained(way: Way, reference: Sequence[Job], ours: Sequence[Job]) -> Found:
    """What each cell gave in both ways.

    Raises:
        Unequal: losses are further apart than the way's limits, or are no numbers; it names all.
    """
    theirs = {cell: values for job in reference for cell, values in job.found.items()}
    own = {cell: values for job in ours for cell, values in job.found.items()}
    wrong = []
    for cell, values in own.items():
        for name, limit in way.trained.items():
            one, other = theirs[cell][name], values[name]
            far = math.inf if limit is None else limit
            if not (math.isfinite(other) and apart(one, other) <= far):
                wrong.append(f"{cell}: {name} {other!r}, reference {one!r}, limit {limit}")
    if wrong:
        raise Unequal(f"{way.name}: " + "; ".join(wrong))
    return {
        cell: {WAYS[0].name: dict(theirs[cell]), way.name: dict(values)}
        for cell, values in own.items()
    }


def apart(one: float, other: float) -> float:
    """The difference as a share of the first."""
    return abs(one - other) / abs(one)


def cpu_s(jobs: Sequence[Job], backbone: str | None = None) -> float:
    """CPU seconds of all jobs, or of a backbone's."""
    return sum(job.total for job in jobs if backbone in (None, job.cells[0].backbone))


def parts(jobs: Sequence[Job]) -> dict[str, float]:
    """CPU seconds by part."""
    names = dict.fromkeys(name for job in jobs for name in job.seconds)
    return {name: sum(job.seconds.get(name, 0.0) for job in jobs) for name in names}


def parts_table(jobs: Mapping[str, Sequence[Job]]) -> str:
    """CPU minutes by part, a line per way."""
    found = {name: parts(those) for name, those in jobs.items()}
    names = list(dict.fromkeys(part for those in found.values() for part in those))
    lines = ["CPU minutes  " + "  ".join(f"{name:>11}" for name in names)]
    for way, those in found.items():
        figures = "  ".join(f"{those.get(name, 0.0) / 60:>11.2f}" for name in names)
        lines.append(f"{way:<11}  {figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
