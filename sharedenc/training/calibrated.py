"""Batch-norm statistics of a random encoder: computed once per machine, kept in the cache folder.

A trial without weights starts from random ones and a pass over training images
(`calibrate_batchnorm`), which is the same for every trial of a backbone, seed and data set. What
comes out of a file has the bits of what would have been computed here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from sharedenc.files import locked
from sharedenc.models.encoders import Encoder, batch_norms
from sharedenc.models.weights import calibrate_batchnorm
from sharedenc.spec import Trial
from sharedenc.training.device import device_name
from sharedenc.training.state_file import DamagedStateError, read_state, write_state

log = logging.getLogger(__name__)

FOLDER = "calibrated"
# Of the recipe and of the results versions, those that decide what the pass sees.
RECIPE = ("image_px", "batch_size", "calibration_images")
COMPONENTS = ("data", "transforms", "encoder", "loop")

Images = Callable[[], Iterable[Tensor]]


def calibrate(encoder: Encoder, images: Images, folder: Path, key: str) -> bool:
    """Give an encoder its calibrated statistics, from a file if there is a whole one.

    Processes that need the same ones wait for the first, and then read what it wrote. Where nothing
    can be kept (a folder that is read-only, a disk that is full) they are computed.

    Args:
        encoder: On its device, in its memory format, as it was drawn.
        images: Gives the normalised batches ``[B, 3, S, S]`` of `calibrate_batchnorm`.
        folder: Where statistics are kept.
        key: `calibration_key`.

    Returns:
        Whether they came from a file.
    """
    path = folder / f"{key[:32]}.stats"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path.with_suffix(".lock")))
        except OSError as error:
            log.info("%s: batch-norm statistics are computed and not kept", error)
            calibrate_batchnorm(encoder, images())
            return False
        kept = _read(path, key, encoder)
        if kept is not None:
            for name, tensor in _statistics(encoder).items():
                tensor.copy_(kept[name])
            return True
        calibrate_batchnorm(encoder, images())
        content = {"key": key, "statistics": {n: t.cpu() for n, t in _statistics(encoder).items()}}
        try:
            write_state(path, content)
        except OSError as error:
            log.info("%s: batch-norm statistics are not kept", error)
    return False


def calibration_key(trial: Trial, encoder: Encoder) -> str:
    """SHA-256 of everything that the statistics depend on, to the bit.

    The encoder's own initial values are in it, and with them backbone, plugin and seed; so are the
    exact software and processor: other kernels round differently.
    """
    content = {
        "encoder": state_digest(encoder),
        "backbone": trial.cell.backbone,
        "data": trial.data_digest,
        "numerics": asdict(trial.numerics),
        "recipe": {name: getattr(trial.recipe, name) for name in RECIPE},
        "components": {name: trial.components[name] for name in COMPONENTS},
        "software": [torch.__version__, torchvision.__version__],
        "device": [
            device_name(trial.numerics.device),
            torch.backends.cpu.get_cpu_capability(),
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def state_digest(encoder: Encoder) -> str:
    """SHA-256 of an encoder's state: names, types, shapes and values, in any memory format."""
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _statistics(encoder: Encoder) -> dict[str, Tensor]:
    """The running statistics themselves: what is copied into them is in the encoder."""
    return {
        f"{name}.{part}": tensor
        for name, norm in batch_norms(encoder).items()
        for part, tensor in norm.named_buffers(recurse=False)
    }


def _read(path: Path, key: str, encoder: Encoder) -> dict[str, Tensor] | None:
    """What a file keeps for this encoder; None without one, or with a damaged one."""
    try:
        content: dict[str, Any] = read_state(path)
        kept: dict[str, Tensor] = content["statistics"]
        if content["key"] != key or {n: t.shape for n, t in kept.items()} != {
            n: t.shape for n, t in _statistics(encoder).items()
        }:
            raise DamagedStateError("it is of another encoder")
    except FileNotFoundError:
        return None
    except (OSError, KeyError, DamagedStateError) as error:
        log.warning("%s is damaged (%s): the statistics are computed anew", path, error)
        return None
    return kept
