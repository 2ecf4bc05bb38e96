"""R4: two frozen trials in one pass of their encoder against a plain loop over the trials.

A detection and a segmentation head; `shared_encoder_rates` has more of both. The loop has the same
network, losses and optimiser; ours is `sharedenc.training.loop.train_epoch`, as trials run it. Both
sides get a ready batch, train on from round to round, and must agree to the bit, in losses and in
every value of every head. CPU time of one thread per image and trial.

The limit is what it would take if time went by floating-point operations: one encoder pass instead
of one for each trial.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.optim import AdamW

from benchmarks.photos import photos
from benchmarks.protocol import Duel, Side, interleaved, result, timed
from benchmarks.trainer import OurTrainer
from sharedenc.data.batch import Batch, normalise, train_batches
from sharedenc.models.build import build_network
from sharedenc.models.counting import forward_flops, training_flops
from sharedenc.models.encoders import Encoder
from sharedenc.models.freeze import apply_freeze
from sharedenc.models.network import Network
from sharedenc.models.weights import calibrate_batchnorm
from sharedenc.spec import (
    BACKBONES,
    TASKS,
    Numerics,
    Recipe,
    Task,
    cpu_kind,
    installed_torch,
    resolve_numerics,
)
from sharedenc.training.learner import Progress
from sharedenc.training.loop import Shares, train_epoch
from sharedenc.training.losses import task_losses
from sharedenc.training.numerics import applied, place

BATCH = 8
IMAGE_PX = 320


@dataclass(frozen=True)
class Head:
    """One trial of a frozen encoder."""

    task: Task
    lr: float


PAIR = [Head(task, 3e-4) for task in TASKS]


def run(rounds: int) -> list[dict[str, Any]]:
    """A row per backbone."""
    return rows("R4", "det and seg", PAIR, rounds)


def rows(
    id: str,
    text: str,
    heads: Sequence[Head],
    rounds: int,
    backbones: Sequence[str] = tuple(BACKBONES),
    image_px: int = IMAGE_PX,
    batch_size: int = BATCH,
) -> list[dict[str, Any]]:
    """A row per backbone for these heads, which ``text`` describes."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    recipe = Recipe(batch_size=batch_size, image_px=image_px, precision="float32")
    with photos() as data:
        batch = next(iter(train_batches(data.pack.split("train"), recipe, seed=0, epoch=1)))
        classes, name = data.pack.classes.num_classes, data.name
    found = []
    for backbone in backbones:
        numerics = resolve_numerics(recipe, backbone, cpu_kind(), installed_torch())
        duel = compare(backbone, heads, batch, classes, recipe, numerics, rounds)
        found.append(
            result(
                id,
                f"{backbone}: {text}, batch {len(batch)} of {name}, {image_px} px, "
                f"{numerics.precision} {numerics.memory_format}",
                duel,
                unit="ms/image",
                check="losses and heads bit-equal",
                limit=duel.reference / flops_ratio(backbone, heads, classes, image_px),
            )
        )
    return found


def compare(
    backbone: str,
    heads: Sequence[Head],
    batch: Batch,
    classes: int,
    recipe: Recipe,
    numerics: Numerics,
    rounds: int,
) -> Duel:
    """Milliseconds per image and trial of both sides, which start from the same values."""
    with tempfile.TemporaryDirectory() as folder, applied(numerics):
        encoder = _encoder(backbone, batch, classes, numerics)

        def networks() -> list[Network]:
            return [_network(backbone, head, classes, encoder, numerics) for head in heads]

        apart = [
            PlainTrial(network, head, recipe, numerics)
            for network, head in zip(networks(), heads, strict=True)
        ]
        together = Together(networks(), heads, recipe, numerics, Path(folder))

        def one_by_one() -> None:
            for trial in apart:
                trial.epoch([batch])

        images = len(batch) * len(heads)
        return interleaved(
            lambda: _side(one_by_one, apart, images),
            lambda: _side(lambda: together.epoch([batch]), together.trials, images),
            rounds,
        )


class PlainTrial:
    """A frozen trial as one writes it down: a batch, the network, the loss, a step."""

    def __init__(self, network: Network, head: Head, recipe: Recipe, numerics: Numerics) -> None:
        self.network, self._numerics, self._recipe = network, numerics, recipe
        self._optimizer = AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=head.lr,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
        )
        det = network.det_head
        self._anchors = None if det is None else det.anchors(recipe.image_px)
        self.loss = 0.0

    def epoch(self, batches: Sequence[Batch]) -> None:
        """Train over all batches; ``loss`` becomes the sum over images."""
        self.network.train()
        self.loss = 0.0
        for batch in batches:
            x = normalise(batch.images, memory_format=self._numerics.memory_format)
            outputs = self.network.decode(self.network.encode(x), None)
            (loss,) = task_losses(self.network, outputs, batch, self._anchors).values()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self.loss += loss.item() * len(batch)


class OurTrial(OurTrainer):
    """One of ours, with what the comparison reads."""

    @property
    def network(self) -> Network:
        return self.learner.network

    @property
    def loss(self) -> float:
        """The sum over the images of the last epoch."""
        return self.learner.progress.sums["loss"]


class Together:
    """The same trials over one pass of the encoder."""

    def __init__(
        self,
        networks: Sequence[Network],
        heads: Sequence[Head],
        recipe: Recipe,
        numerics: Numerics,
        folder: Path,
    ) -> None:
        self._numerics = numerics
        self.trials = [
            OurTrial(network, recipe, head.lr, numerics, "cpu", folder / str(number))
            for number, (network, head) in enumerate(zip(networks, heads, strict=True))
        ]

    def epoch(self, batches: Sequence[Batch]) -> None:
        """Train all over all batches."""
        learners = [trial.learner for trial in self.trials]
        for learner in learners:
            learner.progress = Progress()
        train_epoch(learners, batches, numerics=self._numerics, device="cpu", shares=Shares())


def flops_ratio(backbone: str, heads: Sequence[Head], classes: int, image_px: int) -> float:
    """Operations of the loop over those of one encoder pass and all heads' steps."""
    with torch.device("meta"):
        encoder = forward_flops(build_network(backbone, TASKS, classes, seed=0), image_px)[
            "encoder"
        ]
        steps = {}
        for task in TASKS:
            network = build_network(backbone, [task], classes, seed=0)
            apply_freeze(network.encoder, "frozen")
            steps[task] = training_flops(network, image_px)
    apart = sum(steps[head.task] for head in heads)
    return apart / (apart - (len(heads) - 1) * encoder)


def _side(
    work: Callable[[], Any], trials: Sequence[PlainTrial] | Sequence[OurTrial], images: int
) -> Side:
    figure = 1000 * timed(work).figure / images
    return Side(figure, [(trial.loss, _digest(trial.network)) for trial in trials])


def _digest(network: Network) -> str:
    """Of all values that train or move: the heads'."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not name.startswith("encoder."):
            digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _encoder(backbone: str, batch: Batch, classes: int, numerics: Numerics) -> Encoder:
    """A frozen encoder whose maps have values of a trained one's size."""
    network = place(build_network(backbone, TASKS, classes, seed=0), numerics, "cpu")
    images = normalise(batch.images, memory_format=numerics.memory_format)
    calibrate_batchnorm(network.encoder, [images])
    apply_freeze(network.encoder, "frozen")
    return network.encoder


def _network(
    backbone: str, head: Head, classes: int, encoder: Encoder, numerics: Numerics
) -> Network:
    network = place(build_network(backbone, [head.task], classes, seed=0), numerics, "cpu")
    network.encoder = encoder
    return network
