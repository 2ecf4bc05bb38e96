"""One network in training: its optimiser, schedule and progress, and everything to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from sharedenc.data.batch import Batch
from sharedenc.errors import NonFiniteLossError
from sharedenc.models.network import Network
from sharedenc.spec import Numerics, Recipe
from sharedenc.training.checkpoint import check_encoder
from sharedenc.training.job import EpochReport, OnEpoch
from sharedenc.training.keeper import Keeper
from sharedenc.training.loss_reader import LossReader
from sharedenc.training.losses import task_losses, total_loss
from sharedenc.training.numerics import decode, fused_optimizer, rng_state, set_rng_state
from sharedenc.training.schedule import EarlyStopper, Schedule


@dataclass
class Progress:
    """How far a trial is: epochs done, the best of them, and a row of metrics for each.

    ``said_ms`` is when each row was first told (epoch ms; None: not known), ``epoch_s`` what each
    took, ``members`` how many trained it together (both 0: not known). ``step``, ``images``,
    ``sums`` (of losses over images) and ``train_s`` belong to the epoch that is being trained.
    """

    epoch: int = 0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    said_ms: list[int | None] = field(default_factory=list)
    epoch_s: list[float] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    train_s: float = 0.0
    end: Literal["", "done", "stopped"] = ""

    def end_epoch(self, metrics: dict[str, float], seconds: float, members: int = 1) -> None:
        """Take note of a whole epoch and begin to count the next one."""
        self.epoch += 1
        self.seconds += seconds
        self.history.append(metrics)
        self.said_ms.append(int(time.time() * 1000))
        self.epoch_s.append(seconds)
        self.members.append(members)
        self.step = self.images = 0
        self.sums = {}
        self.train_s = 0.0


def make_optimizer(network: Network, recipe: Recipe, lr: float, numerics: Numerics) -> Optimizer:
    """AdamW over what trains, and nothing else: zero gradients would decay frozen weights."""
    return AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=lr,
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=fused_optimizer(numerics),
    )


class Learner:
    """A network that `sharedenc.training.loop.fit` trains, alone or beside others.

    ``error`` is what its own part raised; it takes no further step then. ``spent_s`` is its share
    of the time of everything that was done for it, alone or for others too.
    """

    def __init__(
        self,
        network: Network,
        *,
        name: str,
        recipe: Recipe,
        lr: float,
        numerics: Numerics,
        on_epoch: OnEpoch,
        keeper: Keeper,
        keep_best: Callable[[], None],
        state: Mapping[str, Any] | None = None,
        beside: bool = False,
    ) -> None:
        """
        Args:
            network: On its device, frozen as its cell says.
            name: The cell, for error messages.
            on_epoch: Gets metrics named ``train/...``, ``val/...``, ``lr`` and ``images_per_s``.
            keeper: Saves the state when it is time, and at the end.
            keep_best: Called when the validation loss is the lowest so far.
            state: What the keeper loaded, to go on from.
            beside: Whether others train on the same encoder, which then has to be that of the
                state.

        Raises:
            OtherEncoderError: it is not.
        """
        self.network, self.name, self.recipe, self.numerics = network, name, recipe, numerics
        self.error: Exception | None = None
        self.spent_s = 0.0
        self._on_epoch, self._keeper, self._keep_best = on_epoch, keeper, keep_best
        self._optimizer = make_optimizer(network, recipe, lr, numerics)
        self._trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._schedule = Schedule(self._optimizer, recipe)
        self._stopper = EarlyStopper(recipe.early_stop_patience)
        self.device = next(network.parameters()).device
        self._reader = LossReader(self.device)
        head = network.det_head
        self._anchors = None if head is None else head.anchors(recipe.image_px)
        self.progress = Progress()
        if state is not None:
            if beside and "network" in state:
                where = f"the saved state of {name}"
                check_encoder(network.encoder, state["network"], where)
            self._restore(state)
            self.spent_s = self.progress.seconds + self.progress.train_s

    @property
    def trains(self) -> bool:
        """Whether it is to take further steps."""
        return self.error is None and not self.progress.end

    @property
    def place(self) -> tuple[int, int]:
        """Epochs done, and steps of the next one: where its next step is."""
        return self.progress.epoch, self.progress.step

    def step(self, maps: Mapping[str, Tensor], batch: Batch) -> None:
        """Take the step of a batch whose maps the encoder has made.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; on a GPU that of the step before.
        """
        # A copy of the dict: a head of someone's own may replace a map for itself.
        outputs = decode(self.network, dict(maps), self.numerics)
        losses = task_losses(
            self.network, outputs, batch, self._anchors, compiled=self.numerics.compile_loss
        )
        loss = total_loss(losses, self.recipe.alpha)
        number = self.progress.step + 1
        named = {"loss": loss, **{f"loss_{task}": value for task, value in losses.items()}}
        self._reader.put(number, len(batch), named)
        self._read_losses()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self._trained, self.recipe.grad_clip)
        self._optimizer.step()
        self.progress.step = number
        self.progress.images += len(batch)

    def after_step(self) -> None:
        """Save the state when it is time."""
        self._keeper.after_step(self._state)

    def end_epoch(
        self, validated: Mapping[str, float], validated_s: float, *, members: int = 1
    ) -> None:
        """Schedule, early stop, the best network if this is it, the report, the state.

        Args:
            validated: Metrics without prefix, ``loss`` among them.
            validated_s: What the validation took.
            members: How many trained this epoch together, this one among them.
        """
        started = time.monotonic()
        self._read_losses(all=True)
        progress = self.progress
        epoch = progress.epoch + 1
        used_lr = self._schedule.lr
        val_loss = validated["loss"]
        raise_if_not_finite({"val": val_loss}, f"{self.name}, epoch {epoch}, validation")
        self._schedule.step(val_loss)
        if self._stopper.update(val_loss):
            progress.best_epoch = epoch
            self._keep_best()

        metrics = {f"train/{key}": total / progress.images for key, total in progress.sums.items()}
        metrics |= {f"val/{key}": value for key, value in validated.items()}
        metrics |= {"lr": used_lr, "images_per_s": progress.images / progress.train_s}
        seconds = progress.train_s + validated_s + time.monotonic() - started
        progress.end_epoch(metrics, seconds, members)
        # Told before the state is kept: an epoch that nobody was told of is trained again.
        report = EpochReport(
            epoch, self.recipe.epochs, metrics, seconds, progress.said_ms[-1], members=members
        )
        cut = self._on_epoch(report)
        if epoch >= self.recipe.epochs or self._stopper.should_stop:
            progress.end = "done"
        elif cut:
            progress.end = "stopped"
        if progress.end:
            self._keeper.save(self._state())
        else:
            self._keeper.after_epoch(self._state)

    def save_if_behind(self) -> None:
        """Save the state unless nothing has happened since."""
        if self._keeper.behind:
            self._keeper.save(self._state())

    def _read_losses(self, *, all: bool = False) -> None:
        progress = self.progress
        for row in self._reader.take(all=all):
            where = f"{self.name}, epoch {progress.epoch + 1}, step {row.step}"
            by_task = {
                name.removeprefix("loss_"): value
                for name, value in row.values.items()
                if name != "loss"
            }
            raise_if_not_finite(by_task, where)
            for name, value in row.values.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value * row.images

    def _state(self) -> dict[str, Any]:
        """Everything that the next step depends on; at the end only how it went."""
        self._read_losses(all=True)
        how_far = {item.name: getattr(self.progress, item.name) for item in fields(Progress)}
        if self.progress.end == "done":
            return how_far
        return how_far | {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "stopper": self._stopper.state_dict(),
            "rng": rng_state(self.device),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["end"] != "done":
            self.network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            self._stopper.load_state_dict(state["stopper"])
            set_rng_state(state["rng"], self.device)
        # States of before members were counted do not have them.
        known = {"members": [0] * state["epoch"], **state}
        self.progress = Progress(**{item.name: known[item.name] for item in fields(Progress)})
        # A trial that was cut goes on when it is asked for again.
        self.progress.end = "done" if state["end"] == "done" else ""


def raise_if_not_finite(losses: Mapping[str, float], where: str) -> None:
    """Raise NonFiniteLossError that names the place and the task."""
    for task, loss in losses.items():
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the {task} loss is {loss} in {where}. Lower --lr, set --grad-clip 1, or train "
                "with --precision float32."
            )
