"""The network that a trial starts from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sharedenc.data.batch import eval_batches, normalise
from sharedenc.data.packed import PackedDataset, cache_dir
from sharedenc.errors import CheckpointError, DataError, WeightsError
from sharedenc.models.build import build_network
from sharedenc.models.freeze import apply_freeze
from sharedenc.models.network import Network
from sharedenc.models.weights import load_encoder_weights, resolve_weights
from sharedenc.training.calibrated import FOLDER as CALIBRATED
from sharedenc.training.calibrated import calibrate, calibration_key
from sharedenc.training.checkpoint import encoder_state
from sharedenc.training.job import TrialJob
from sharedenc.training.numerics import place


def open_pack(job: TrialJob) -> PackedDataset:
    """Open the trial's pack.

    Raises:
        DataError: it is not the data of the trial's key, or lacks what the cell's tasks need.
    """
    pack = PackedDataset.open(job.pack)
    trial = job.trial
    if pack.digest != trial.data_digest:
        raise DataError(
            f"pack {job.pack} has digest {pack.digest[:16]}, but the trial was planned for "
            f"{trial.data_digest[:16]}. Plan it again, or restore the data it was planned for."
        )
    missing = [task for task in trial.cell.tasks if task not in pack.tasks]
    if missing:
        raise DataError(
            f"{trial.cell} needs {' and '.join(missing)}, and data set {pack.name!r} only serves "
            f"{', '.join(pack.tasks)}: its annotations have no masks."
        )
    return pack


def initial_network(job: TrialJob, pack: PackedDataset) -> Network:
    """Build the cell's network: new heads, and the encoder that its strategy says, frozen so.

    A swap takes the encoder of the other task's trained baseline with its running statistics; all
    others take the initial weights, or random ones with calibrated batch norms.

    Raises:
        CheckpointError: a swap without its source, or with a damaged one.
        WeightsError: the weights do not fit, or are not those that the trial's key stands for.
    """
    trial = job.trial
    cell, recipe = trial.cell, trial.recipe
    network = build_network(cell.backbone, cell.tasks, pack.classes.num_classes, seed=trial.seed)
    network = place(network, trial.numerics, job.device)
    if cell.source is not None:
        if job.parent is None:
            raise CheckpointError(
                f"{cell} starts from the encoder of {cell.source}, and no checkpoint of it was "
                "given (--encoder FILE)."
            )
        load_encoder_weights(network.encoder, encoder_state(job.parent, cell.backbone))
    else:
        weights = resolve_weights(job.weights, cell.backbone)
        if weights.digest != trial.weights_digest:
            raise WeightsError(
                f"weights {weights.source} have digest {weights.digest[:24]}, but the trial was "
                f"planned for {trial.weights_digest[:24]}. Plan it again, or restore the file."
            )
        if weights.load is not None:
            load_encoder_weights(network.encoder, weights.load())
        else:
            calibrate(
                network.encoder,
                lambda: _calibration_images(job, pack),
                cache_dir(job.cache_dir) / CALIBRATED,
                calibration_key(trial, network.encoder),
            )
    apply_freeze(network.encoder, cell.freeze, bn_mode=recipe.bn_mode, bias_set=recipe.bias_set)
    return network


def _calibration_images(job: TrialJob, pack: PackedDataset) -> Iterator[Tensor]:
    """Training images without augmentation, normalised, on the trial's device."""
    recipe = job.trial.recipe
    for batch in eval_batches(
        pack.split("train"), recipe, workers=job.workers, limit=recipe.calibration_images
    ):
        images = batch.images.to(job.device)
        yield normalise(images, memory_format=job.trial.numerics.memory_format)


def count(network: Network) -> dict[str, int]:
    """Return numbers of parameters: ``total``, ``encoder`` and ``trainable``."""

    def size(parameters: list[torch.nn.Parameter]) -> int:
        return sum(p.numel() for p in parameters)

    everything = list(network.parameters())
    return {
        "total": size(everything),
        "encoder": size(list(network.encoder.parameters())),
        "trainable": size([p for p in everything if p.requires_grad]),
    }
