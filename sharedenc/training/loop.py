"""The training loop: epochs of steps, validation, schedule, early stop, and what to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from sharedenc.data.batch import Batch
from sharedenc.errors import NonFiniteLossError
from sharedenc.models.network import Network
from sharedenc.spec import Numerics, Recipe
from sharedenc.training.job import EpochReport, OnEpoch, TrialStoppedError
from sharedenc.training.keeper import Keeper
from sharedenc.training.losses import task_losses, total_loss
from sharedenc.training.numerics import forward, rng_state, set_rng_state
from sharedenc.training.schedule import EarlyStopper, Schedule


@dataclass
class Progress:
    """How far a trial is: epochs done, the best of them, and a row of metrics for each.

    ``said_ms`` is when each row was first told (epoch ms; None: not known), ``epoch_s`` what each
    took. ``step``, ``images``, ``sums`` (of losses over images) and ``train_s`` belong to the epoch
    that is being trained.
    """

    epoch: int = 0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    said_ms: list[int | None] = field(default_factory=list)
    epoch_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    train_s: float = 0.0
    end: Literal["", "done", "stopped"] = ""

    def end_epoch(self, metrics: dict[str, float], seconds: float) -> None:
        """Take note of a whole epoch and begin to count the next one."""
        self.epoch += 1
        self.seconds += seconds
        self.history.append(metrics)
        self.said_ms.append(int(time.time() * 1000))
        self.epoch_s.append(seconds)
        self.step = self.images = 0
        self.sums = {}
        self.train_s = 0.0


def make_optimizer(network: Network, recipe: Recipe, lr: float) -> Optimizer:
    """AdamW over what trains, and nothing else: zero gradients would decay frozen weights."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    on_cuda = parameters[0].device.type == "cuda"
    return AdamW(
        parameters,
        lr=lr,
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=on_cuda,
    )


def fit(
    network: Network,
    *,
    recipe: Recipe,
    lr: float,
    numerics: Numerics,
    device: str,
    name: str,
    batches: Callable[[int, int], Iterable[Batch]],
    validate: Callable[[], Mapping[str, float]],
    on_epoch: OnEpoch,
    keeper: Keeper,
    keep_best: Callable[[], None],
    state: Mapping[str, Any] | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> Progress:
    """Train until the recipe's epochs are done, early stopping strikes or ``on_epoch`` says stop.

    After each epoch: validation, learning-rate schedule, early stop (both on the validation loss),
    the best network if this is it, the report, the state. A trial that is interrupted goes on from
    its last saved step, with the result it would have had, to the same bits.

    Args:
        network: On its device, frozen as its cell says.
        name: The cell, for error messages.
        batches: Gives the batches of an epoch (from 1) after the first so many.
        validate: Gives metrics without prefix, ``loss`` among them.
        on_epoch: Gets metrics named ``train/...``, ``val/...``, ``lr`` and ``images_per_s``.
        keeper: Saves the state when it is time, and at the end.
        keep_best: Called when the validation loss is the lowest so far.
        state: What the keeper loaded, to go on from.
        check_stop: Raises TrialStoppedError when the trial is to save and end.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
        TrialStoppedError: as ``check_stop`` (or ``validate``) raised it; the state is saved.
    """
    optimizer = make_optimizer(network, recipe, lr)
    schedule = Schedule(optimizer, recipe)
    stopper = EarlyStopper(recipe.early_stop_patience)
    progress = Progress()
    if state is not None:
        progress = _restore(state, network, optimizer, schedule, stopper)
    anchors = None if network.det_head is None else network.det_head.anchors(recipe.image_px)

    def present() -> dict[str, Any]:
        return _state(progress, network, optimizer, schedule, stopper)

    while not progress.end:
        epoch = progress.epoch + 1
        used_lr = schedule.lr
        try:
            train_epoch(
                network,
                batches(epoch, progress.step),
                optimizer,
                progress,
                anchors=anchors,
                recipe=recipe,
                numerics=numerics,
                device=device,
                where=f"{name}, epoch {epoch}",
                check_stop=check_stop,
                after_step=lambda: keeper.after_step(present),
            )
            started = time.monotonic()
            validated = validate()
        except TrialStoppedError:
            if keeper.behind:
                keeper.save(present())
            raise
        val_loss = validated["loss"]
        raise_if_not_finite({"val": torch.tensor(val_loss)}, f"{name}, epoch {epoch}, validation")
        schedule.step(val_loss)
        if stopper.update(val_loss):
            progress.best_epoch = epoch
            keep_best()

        metrics = {f"train/{key}": total / progress.images for key, total in progress.sums.items()}
        metrics |= {f"val/{key}": value for key, value in validated.items()}
        metrics |= {"lr": used_lr, "images_per_s": progress.images / progress.train_s}
        seconds = progress.train_s + time.monotonic() - started
        progress.end_epoch(metrics, seconds)
        # Told before the state is kept: an epoch that nobody was told of is trained again.
        at_ms = progress.said_ms[-1]
        cut = on_epoch(EpochReport(epoch, recipe.epochs, metrics, seconds, at_ms))
        if epoch >= recipe.epochs or stopper.should_stop:
            progress.end = "done"
        elif cut:
            progress.end = "stopped"
        if progress.end:
            keeper.save(present())
        else:
            keeper.after_epoch(present)
    return progress


def train_epoch(
    network: Network,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    progress: Progress,
    *,
    anchors: Tensor | None,
    recipe: Recipe,
    numerics: Numerics,
    device: str,
    where: str,
    check_stop: Callable[[], None] = lambda: None,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Take one step per batch and count it in ``progress``.

    The sums are of ``loss``, ``loss_det`` and ``loss_seg``.
    """
    network.train()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    before = time.monotonic()
    for step, batch in enumerate(batches, start=progress.step + 1):
        check_stop()
        batch = batch.to(device)
        outputs = forward(network, batch.images, numerics)
        losses = task_losses(network, outputs, batch, anchors)
        raise_if_not_finite(losses, f"{where}, step {step}")
        loss = total_loss(losses, recipe.alpha)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(trained, recipe.grad_clip)
        optimizer.step()
        named = {"loss": loss, **{f"loss_{task}": value for task, value in losses.items()}}
        for key, value in named.items():
            total = progress.sums.get(key, 0.0)
            progress.sums[key] = total + float(value.detach()) * len(batch)
        progress.step = step
        progress.images += len(batch)
        progress.train_s += time.monotonic() - before
        after_step()
        before = time.monotonic()


def raise_if_not_finite(losses: Mapping[Any, Tensor], where: str) -> None:
    """Raise NonFiniteLossError that names the place and the task."""
    for task, loss in losses.items():
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(
                f"the {task} loss is {float(loss.detach())} in {where}. Lower --lr, set "
                "--grad-clip 1, or train with --precision float32."
            )


def _state(
    progress: Progress,
    network: Network,
    optimizer: Optimizer,
    schedule: Schedule,
    stopper: EarlyStopper,
) -> dict[str, Any]:
    """Everything that the next step depends on; at the end only how it went."""
    how_far = {item.name: getattr(progress, item.name) for item in fields(progress)}
    if progress.end == "done":
        return how_far
    return how_far | {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "stopper": stopper.state_dict(),
        "rng": rng_state(next(network.parameters()).device),
    }


def _restore(
    state: Mapping[str, Any],
    network: Network,
    optimizer: Optimizer,
    schedule: Schedule,
    stopper: EarlyStopper,
) -> Progress:
    if state["end"] != "done":
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        stopper.load_state_dict(state["stopper"])
        set_rng_state(state["rng"], next(network.parameters()).device)
    progress = Progress(**{item.name: state[item.name] for item in fields(Progress)})
    # A trial that was cut goes on when it is asked for again.
    progress.end = "done" if state["end"] == "done" else ""
    return progress
