"""What the parts of a trial cost in each way of running the grid, measured in turns.

A way is a recipe's numerics and sample path, and whether code of ours or of torchvision's reference
scripts computes losses and scores (`benchmarks.profile.as_references`). Everything runs through the
functions that trials run: `train_epoch`, `evaluate_members`, `calibrate_batchnorm`, `Keeper`.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.profile import REFERENCE, as_references
from benchmarks.protocol import Unequal, timed
from benchmarks.trainer import OurTrainer
from sharedenc.data.batch import Batch, eval_batches, normalise, train_batches
from sharedenc.data.packed import PackedDataset
from sharedenc.evaluation.detection import coco_ap
from sharedenc.evaluation.evaluate import evaluate_members
from sharedenc.evaluation.taps import open_taps
from sharedenc.models.build import build_network
from sharedenc.models.freeze import apply_freeze
from sharedenc.models.weights import calibrate_batchnorm
from sharedenc.spec import (
    Cell,
    Numerics,
    Recipe,
    Task,
    cpu_kind,
    installed_torch,
    resolve_numerics,
)
from sharedenc.training.allocator import freed_memory_kept
from sharedenc.training.keeper import Keeper
from sharedenc.training.learner import Progress
from sharedenc.training.loop import Shares, train_epoch
from sharedenc.training.numerics import applied, place

# So small that weights hardly move: losses of all ways are those of the same weights.
LR = 1e-7
# What a process imports before it can train.
IMPORTS = "import sweeps.worker, sharedenc.training.run; from mlflow import MlflowClient"


NOT_COMPARED: Mapping[str, float | None] = {"train_loss": None, "val_loss": None}


@dataclass(frozen=True)
class Way:
    """One way to run the grid: settings of its own, and how near its losses are to the first's.

    ``step`` is the limit for a step, as a share; ``validation`` that for a validation on the same
    pixels, with the running statistics, where a random EfficientNet multiplies float32's rounding
    by 1e4. None: not compared, for what that does to bfloat16's; `benchmarks.precision` has its
    effect on trained networks.

    ``trained`` are the limits where cells are really trained, for the first epoch's mean loss in
    training and for the validation after it; None: not compared. Pixels differ there by what two
    libraries round, random networks make more of that, and steps carry it on.
    """

    name: str
    settings: Mapping[str, Any]
    step: float = 0.0
    validation: float | None = 0.0
    trained: Mapping[str, float | None] = field(default_factory=lambda: dict(NOT_COMPARED))
    reference: bool = False

    def recipe(self, recipe: Recipe) -> Recipe:
        return Recipe.from_dict({**recipe.to_dict(), **self.settings})

    def numerics(self, recipe: Recipe, backbone: str) -> Numerics:
        return resolve_numerics(self.recipe(recipe), backbone, cpu_kind(), installed_torch())

    @contextlib.contextmanager
    def code(self, image_px: int) -> Iterator[None]:
        """Let losses, logits and scores be computed as this way does."""
        with as_references(image_px) if self.reference else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        """Treat freed memory as this way's processes do."""
        with contextlib.nullcontext() if self.reference else freed_memory_kept():
            yield


WAYS = (
    Way("reference", REFERENCE, reference=True),
    Way(
        "float32",
        {"precision": "float32"},
        step=1e-4,
        validation=1e-2,
        trained={"train_loss": 3e-2, "val_loss": 1e-1},
    ),
    Way("default", {}, step=2e-2, validation=None),
)


@dataclass(frozen=True)
class Kind:
    """Trials that compute the same: a swap differs from a share in the weights that it reads.

    Several ``heads`` are trials that train together over one frozen encoder.
    """

    backbone: str
    freeze: str
    heads: tuple[tuple[Task, ...], ...]

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Kind:
        """The kind of one cell, or of several that train together."""
        return cls(cells[0].backbone, cells[0].freeze, tuple(cell.tasks for cell in cells))

    def __str__(self) -> str:
        heads = " beside ".join("+".join(tasks) for tasks in self.heads)
        return f"{self.backbone} {self.freeze} {heads}"


@dataclass
class Costs:
    """CPU seconds of one thread: the least of all rounds, by what was measured."""

    seconds: dict[str, float] = field(default_factory=dict)

    def take(self, name: str, seconds: float) -> None:
        """Take note of one more round."""
        self.seconds[name] = min(seconds, self.seconds.get(name, seconds))

    def __getitem__(self, name: str) -> float:
        return self.seconds[name]

    @property
    def validate_again(self) -> float:
        """What validations after the first one take."""
        return self.seconds.get("validate again", self.seconds["validate"])


class Stand:
    """A kind of trial, ready to take steps in one way."""

    def __init__(
        self,
        kind: Kind,
        way: Way,
        recipe: Recipe,
        pack: PackedDataset,
        folder: Path,
        encoder_state: Mapping[str, Tensor],
    ) -> None:
        self.way, self._pack, self._folder = way, pack, folder
        self._recipe = way.recipe(recipe)
        self._numerics = way.numerics(recipe, kind.backbone)
        classes = pack.classes.num_classes
        first = build_network(kind.backbone, kind.heads[0], classes, seed=0)
        encoder = place(first, self._numerics, "cpu").encoder
        encoder.load_state_dict(encoder_state)
        apply_freeze(encoder, kind.freeze)
        self._trainers = []
        for number, tasks in enumerate(kind.heads):
            network = build_network(kind.backbone, tasks, classes, seed=0)
            network = place(network, self._numerics, "cpu")
            network.encoder = encoder
            self._trainers.append(
                OurTrainer(network, self._recipe, LR, self._numerics, "cpu", folder / str(number))
            )

    def step(self, batch: Batch) -> tuple[float, list[float]]:
        """One training step of all heads: seconds, and each one's loss before it."""
        learners = [trainer.learner for trainer in self._trainers]
        for learner in learners:
            learner.progress = Progress()

        def work() -> None:
            train_epoch(learners, [batch], numerics=self._numerics, device="cpu", shares=Shares())

        with self._set():
            torch.manual_seed(0)  # the same layers of an EfficientNet drop
            side = timed(work)
        for learner in learners:
            if learner.error is not None:
                raise learner.error
        return side.figure, [one.progress.sums["loss"] / len(batch) for one in learners]

    def validate(
        self, images: int, settings: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[float, list[float]]:
        """The first pictures of the validation set: seconds, data and scores too, and losses.

        ``settings`` of the recipe replace those of the way.
        """
        networks = [trainer.learner.network for trainer in self._trainers]
        recipe = Recipe.from_dict({**self._recipe.to_dict(), **settings})

        def work() -> list[dict[str, float] | Exception]:
            return evaluate_members(
                networks,
                self._pack.split("val"),
                [recipe] * len(networks),
                self._pack.classes,
                self._numerics,
                "cpu",
                limit=images,
            )

        with self._set():
            side = timed(work)
        losses = []
        for scores in side.answer:
            if isinstance(scores, Exception):
                raise scores
            losses.append(scores["loss"])
        return side.figure, losses

    def validate_again(self) -> float:
        """Seconds per picture of a validation whose frozen maps an earlier one has kept."""
        networks = [trainer.learner.network for trainer in self._trainers]
        split = self._pack.split("val")
        with self._set(), tempfile.TemporaryDirectory(dir=self._folder) as folder:
            taps = open_taps(
                networks[0].encoder,
                pack=self._pack,
                split="val",
                recipe=self._recipe,
                numerics=self._numerics,
                device="cpu",
                folder=Path(folder),
            )
            if taps is None:
                raise RuntimeError(f"{folder}: no maps can be kept for a frozen encoder")
            with taps:
                for _ in range(2):
                    side = timed(
                        lambda: evaluate_members(
                            networks,
                            split,
                            [self._recipe] * len(networks),
                            self._pack.classes,
                            self._numerics,
                            "cpu",
                            taps=taps,
                        )
                    )
        return side.figure / len(split)

    def checkpoint(self) -> float:
        """Seconds to keep each head's best network and last state at the end of a trial."""
        return timed(self._reference_save if self.way.reference else self._save).figure

    def _save(self) -> None:
        for trainer in self._trainers:
            learner = trainer.learner
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                keeper = Keeper(Path(folder), "0" * 64)
                keeper.keep_best(learner.network, {"backbone": learner.network.backbone})
                keeper.save({"epoch": 1, "step": 0, "end": "done"})
                keeper.publish_best()

    def _reference_save(self) -> None:
        """What a script does: the whole state after an epoch, and the best network."""
        for trainer in self._trainers:
            learner = trainer.learner
            optimizer = learner._optimizer
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                state = {
                    "model": learner.network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                torch.save(state, Path(folder) / "last.pth")
                torch.save(state["model"], Path(folder) / "best.pth")

    @contextlib.contextmanager
    def _set(self) -> Iterator[None]:
        with applied(self._numerics), self.way.code(self._recipe.image_px):
            yield


def measure(
    kind: Kind,
    ways: Sequence[Way],
    recipe: Recipe,
    pack: PackedDataset,
    *,
    rounds: int,
    seconds: float,
    batch_size: int,
) -> dict[str, Costs]:
    """Costs of a kind by way: ``step`` and ``validate`` per picture, ``checkpoint`` per trial.

    With several epochs also ``validate again`` per picture, of a frozen encoder in our ways.

    Args:
        ways: The first one's losses are what the others' are compared with, in every round.
        rounds: At most so many of all ways in turn, and at least two.
        seconds: No further round begins after so long.

    Raises:
        Unequal: losses of the same batch differ by more than a way's tolerance.
    """
    small = Recipe.from_dict({**recipe.to_dict(), "batch_size": batch_size})
    images = Recipe.from_dict({**small.to_dict(), **REFERENCE})
    batch = next(train_batches(pack.split("train"), images, seed=0, epoch=1))
    costs = {way.name: Costs() for way in ways}
    with tempfile.TemporaryDirectory(prefix="bench-grid-") as folder:
        # The same for all: a random network blows up how two layouts round its statistics.
        encoder = encoder_state(kind.backbone, images, pack)
        stands = [Stand(kind, way, small, pack, Path(folder) / way.name, encoder) for way in ways]
        count = min(batch_size, len(pack.split("val")))
        same_pixels = {"sample_path": "reference"}
        validated = stands[0].validate(count, same_pixels)[1]
        for stand in stands:
            Path(folder, stand.way.name).mkdir(exist_ok=True)
            if (limit := stand.way.validation) is not None:
                losses = stand.validate(count, same_pixels)[1]
                compare(validated, losses, limit, f"{kind}, validation, {stand.way.name}")
        begun = time.monotonic()
        for number in range(rounds):
            if number >= 2 and time.monotonic() - begun > seconds:
                break
            expected: list[list[float]] = []
            for stand in stands:
                cost = costs[stand.way.name]
                with stand.way.memory():
                    # The first one fetches the memory that the second one finds.
                    for turn in range(2):
                        took, losses = stand.step(batch)
                        cost.take("step", took / len(batch))
                        if stand is stands[0]:
                            expected.append(losses)
                        where = f"{kind}, step, {stand.way.name}"
                        compare(expected[turn], losses, stand.way.step, where)
                    cost.take("validate", stand.validate(count)[0] / count)
                    cost.take("checkpoint", stand.checkpoint())
        if recipe.epochs > 1 and kind.freeze == "frozen":
            for stand in stands:
                if not stand.way.reference:
                    costs[stand.way.name].take("validate again", stand.validate_again())
    return costs


def encoder_state(backbone: str, recipe: Recipe, pack: PackedDataset) -> dict[str, Tensor]:
    """A random encoder with the statistics of a batch of training pictures."""
    encoder = build_network(backbone, ("seg",), pack.classes.num_classes, seed=0).encoder
    batch = next(eval_batches(pack.split("train"), recipe, limit=recipe.batch_size))
    calibrate_batchnorm(encoder, [normalise(batch.images)])
    return encoder.state_dict()


def compare(expected: Sequence[float], found: Sequence[float], limit: float, where: str) -> None:
    """Raise Unequal where losses are further apart than ``limit``, as a share of the first."""
    for one, other in zip(expected, found, strict=True):
        if not abs(one - other) <= limit * abs(one):
            raise Unequal(f"{where}: {other!r}, reference {one!r}, limit {limit:g}")


def calibration_s(
    way: Way, backbone: str, recipe: Recipe, pack: PackedDataset, count: int
) -> float:
    """Seconds per picture of the pass that gives a random encoder its statistics."""
    own = way.recipe(recipe)
    numerics = way.numerics(recipe, backbone)
    with applied(numerics):
        network = build_network(backbone, ("seg",), pack.classes.num_classes, seed=0)
        encoder = place(network, numerics, "cpu").encoder

        def work() -> None:
            batches = eval_batches(pack.split("train"), own, limit=count)
            calibrate_batchnorm(
                encoder,
                (normalise(b.images, memory_format=numerics.memory_format) for b in batches),
            )

        return timed(work).figure / min(count, len(pack.split("train")))


def data_s(way: Way, recipe: Recipe, pack: PackedDataset, epoch: int) -> float:
    """Seconds per picture to make a training batch."""
    own = way.recipe(recipe)
    side = timed(lambda: next(train_batches(pack.split("train"), own, seed=0, epoch=epoch)))
    return side.figure / len(side.answer)


def scores_s(way: Way, pack: PackedDataset, split: str) -> float:
    """Seconds to score as many boxes as a detector that has learned little finds in a split."""
    part = pack.split(split)
    draw = np.random.default_rng(0)
    per_image = Recipe().detections_per_image
    rows = np.empty((len(part) * per_image, 7))
    rows[:, 0] = np.repeat(part.ids, per_image)
    sizes = np.repeat(part.sizes(), per_image, axis=0)
    rows[:, 1:3] = draw.random((len(rows), 2)) * sizes / 2
    rows[:, 3:5] = (0.05 + draw.random((len(rows), 2)) / 2.2) * sizes
    rows[:, 5] = draw.random(len(rows))
    rows[:, 6] = draw.integers(1, pack.classes.num_classes, len(rows))
    truth = part.ground_truth()
    backend = "pycocotools" if way.reference else "auto"
    return timed(lambda: coco_ap(truth, rows, backend=backend)).figure  # type: ignore[arg-type]


def start_s() -> float:
    """Seconds of a new process until it could train."""
    before = _children_s()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return _children_s() - before


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def least(
    measure_once: Callable[[Way], float], ways: Sequence[Way], rounds: int
) -> dict[str, float]:
    """The least of several rounds of all ways in turn, by way."""
    found: dict[str, float] = {}
    for _ in range(rounds):
        for way in ways:
            seconds = measure_once(way)
            found[way.name] = min(seconds, found.get(way.name, seconds))
    return found
