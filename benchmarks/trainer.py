"""Steps of a trial without the trial around them, by the code that trials run."""

from __future__ import annotations

from pathlib import Path

from sharedenc.data.batch import Batch
from sharedenc.models.network import Network
from sharedenc.spec import Numerics, Recipe
from sharedenc.training.keeper import Keeper
from sharedenc.training.learner import Learner
from sharedenc.training.numerics import encode, place


class OurTrainer:
    """A network in training; nothing is validated or saved."""

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        lr: float,
        numerics: Numerics,
        device: str,
        folder: Path,
    ) -> None:
        """``folder`` is where a trial would keep its states."""
        self.numerics = numerics
        self.learner = Learner(
            place(network, numerics, device).train(),
            name=network.backbone,
            recipe=recipe,
            lr=lr,
            numerics=numerics,
            on_epoch=lambda _: False,
            keeper=Keeper(folder, "0" * 64),
            keep_best=lambda: None,
        )

    def step(self, batch: Batch) -> float:
        """One step; the loss before it, on a GPU that of the step before (0 in the first)."""
        progress = self.learner.progress
        before = progress.sums.get("loss", 0.0)
        self.learner.step(encode(self.learner.network, batch.images, self.numerics), batch)
        return (progress.sums.get("loss", 0.0) - before) / len(batch)
