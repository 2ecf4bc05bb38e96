"""Learning rate and early stopping, both driven by the validation loss once per epoch.

On a flat loss the plateau schedule cuts after epochs 12 and 23 (patience 10) and early stopping
ends the training after epoch 26 (patience 25): methods 6.1.
"""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from sharedenc.spec import Recipe


class Schedule:
    """The recipe's learning-rate schedule over an optimiser.

    ``plateau`` multiplies the rate by a factor when the validation loss has not improved for more
    than ``plateau_patience`` epochs (torch's defaults: relative threshold 1e-4, no cooldown);
    ``cosine`` falls to 0 over the recipe's epochs; ``constant`` does nothing.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe) -> None:
        self._optimizer = optimizer
        self._plateau: ReduceLROnPlateau | None = None
        self._cosine: CosineAnnealingLR | None = None
        if recipe.scheduler == "plateau":
            self._plateau = ReduceLROnPlateau(
                optimizer, factor=recipe.plateau_factor, patience=recipe.plateau_patience
            )
        elif recipe.scheduler == "cosine":
            self._cosine = CosineAnnealingLR(optimizer, T_max=recipe.epochs)

    @property
    def lr(self) -> float:
        """The rate that the next optimiser step will use."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, val_loss: float) -> None:
        """Take note of the end of an epoch."""
        if self._plateau is not None:
            self._plateau.step(val_loss)
        elif self._cosine is not None:
            self._cosine.step()

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the rate itself is in the optimiser's state."""
        scheduler = self._plateau or self._cosine
        return {} if scheduler is None else scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` was read."""
        scheduler = self._plateau or self._cosine
        if scheduler is not None:
            scheduler.load_state_dict(state)


class EarlyStopper:
    """Stops after ``patience`` epochs without a strictly lower validation loss; 0 never stops."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best = math.inf
        self.bad_epochs = 0

    def update(self, val_loss: float) -> bool:
        """Take note of an epoch's loss; returns whether it is the best so far."""
        improved = val_loss < self.best
        if improved:
            self.best = val_loss
        self.bad_epochs = 0 if improved else self.bad_epochs + 1
        return improved

    @property
    def should_stop(self) -> bool:
        return 0 < self.patience <= self.bad_epochs

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.bad_epochs = float(state["best"]), int(state["bad_epochs"])
