"""The training loop: epochs of steps, validation, schedule, early stop, and what to resume from."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from sharedenc.data.batch import Batch
from sharedenc.errors import NonFiniteLossError
from sharedenc.models.network import Network
from sharedenc.spec import Numerics, Recipe
from sharedenc.training.checkpoint import load_resume, save_resume
from sharedenc.training.job import EpochReport, OnEpoch
from sharedenc.training.losses import task_losses, total_loss
from sharedenc.training.numerics import forward
from sharedenc.training.schedule import EarlyStopper, Schedule


@dataclass
class Progress:
    """How far a trial is: epochs done, the best of them, and a row of metrics for each."""

    epoch: int = 0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    end: Literal["", "done", "stopped"] = ""


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
    key: str,
    batches: Callable[[int], Iterable[Batch]],
    validate: Callable[[], Mapping[str, float]],
    keep_best: Callable[[], None],
    on_epoch: OnEpoch,
    resume_file: Path,
) -> Progress:
    """Train until the recipe's epochs are done, early stopping strikes or ``on_epoch`` says stop.

    After each epoch: validation, learning-rate schedule, early stop (both on the validation loss),
    the best network if this is it, the resume file, the report. A trial that is interrupted goes
    on from its last whole epoch, with the result it would have had.

    Args:
        network: On its device, frozen as its cell says.
        name: The cell, for error messages.
        key: The trial's key; a resume file of another one is refused.
        batches: Gives the batches of an epoch (from 1).
        validate: Gives metrics without prefix, ``loss`` among them.
        keep_best: Called when the validation loss is the lowest so far.
        on_epoch: Gets metrics named ``train/...``, ``val/...``, ``lr`` and ``images_per_s``.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
        CheckpointError: the resume file is damaged.
    """
    optimizer = make_optimizer(network, recipe, lr)
    schedule = Schedule(optimizer, recipe)
    stopper = EarlyStopper(recipe.early_stop_patience)
    state = load_resume(resume_file, key)
    progress = Progress()
    if state is not None:
        progress = _restore(state, network, optimizer, schedule, stopper)
    anchors = None if network.det_head is None else network.det_head.anchors(recipe.image_px)

    while not progress.end:
        epoch = progress.epoch + 1
        started = time.monotonic()
        used_lr = schedule.lr
        trained, images = train_epoch(
            network,
            batches(epoch),
            optimizer,
            anchors=anchors,
            recipe=recipe,
            numerics=numerics,
            device=device,
            where=f"{name}, epoch {epoch}",
        )
        train_s = time.monotonic() - started
        validated = validate()
        val_loss = validated["loss"]
        raise_if_not_finite({"val": torch.tensor(val_loss)}, f"{name}, epoch {epoch}, validation")
        schedule.step(val_loss)
        if stopper.update(val_loss):
            progress.best_epoch = epoch
            keep_best()

        metrics = {f"train/{key}": value for key, value in trained.items()}
        metrics |= {f"val/{key}": value for key, value in validated.items()}
        metrics |= {"lr": used_lr, "images_per_s": images / train_s}
        seconds = time.monotonic() - started
        progress.epoch = epoch
        progress.seconds += seconds
        progress.history.append(metrics)
        # Told before the state is kept: an epoch that nobody was told of is trained again.
        cut = on_epoch(EpochReport(epoch, recipe.epochs, metrics, seconds))
        if epoch >= recipe.epochs or stopper.should_stop:
            progress.end = "done"
        elif cut:
            progress.end = "stopped"
        save_resume(
            resume_file, {"key": key, **_state(progress, network, optimizer, schedule, stopper)}
        )
    return progress


def train_epoch(
    network: Network,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    anchors: Tensor | None,
    recipe: Recipe,
    numerics: Numerics,
    device: str,
    where: str,
) -> tuple[dict[str, float], int]:
    """Take one step per batch; returns mean losses over images and the number of images.

    The losses are named ``loss``, ``loss_det`` and ``loss_seg``.
    """
    network.train()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[str, float] = defaultdict(float)
    images = 0
    for step, batch in enumerate(batches, start=1):
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
        images += len(batch)
        sums["loss"] += float(loss.detach()) * len(batch)
        for task, value in losses.items():
            sums[f"loss_{task}"] += float(value.detach()) * len(batch)
    return {name: total / images for name, total in sums.items()}, images


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
    """Everything that the next epoch depends on; after the last one only how it went."""
    how_far = {
        "epoch": progress.epoch,
        "best_epoch": progress.best_epoch,
        "history": progress.history,
        "seconds": progress.seconds,
        "end": progress.end,
    }
    if progress.end == "done":
        return how_far
    on_cuda = next(network.parameters()).device.type == "cuda"
    return how_far | {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "stopper": stopper.state_dict(),
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state_all() if on_cuda else [],
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
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng_cuda"])
    return Progress(
        epoch=state["epoch"],
        best_epoch=state["best_epoch"],
        history=list(state["history"]),
        seconds=state["seconds"],
        # A trial that was cut goes on when it is asked for again.
        end="done" if state["end"] == "done" else "",
    )
