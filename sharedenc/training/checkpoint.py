"""Files of a trial: the best network (safetensors) and the state to resume from (torch).

Every file is written beside its place, flushed to disk and renamed: a crash leaves the old one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sharedenc.errors import CheckpointError, SharedencError
from sharedenc.models.build import build_network
from sharedenc.models.network import Network
from sharedenc.models.plugins import load_entry_points, load_plugin
from sharedenc.spec import BACKBONES

BEST, RESUME = "best.safetensors", "last.pt"
META = "sharedenc"
ENCODER = "encoder."
RESUME_VERSION = 1


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` for good, or leave it untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_network(network: Network, path: Path, meta: Mapping[str, Any]) -> None:
    """Write a network's state dict; ``meta`` (plain JSON values) rides in the file's header.

    ``meta`` must hold ``backbone``, ``tasks`` and ``num_classes``, from which
    :func:`load_network` builds the network again.
    """
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    write_atomic(path, save(state, metadata={META: json.dumps(dict(meta))}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a checkpoint's tensors, on the CPU, and its meta.

    Raises:
        CheckpointError: the file is missing, cut, or no checkpoint of sharedenc.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
        meta = json.loads(header[META])
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}). Train the cell again, or take another "
            "checkpoint."
        ) from error
    except KeyError as error:
        raise CheckpointError(
            f"{path} is a safetensors file without sharedenc's header; a checkpoint is the "
            f"{BEST} of a trial. To start from plain weights use --weights."
        ) from error
    return state, meta


def load_network(path: Path) -> tuple[Network, dict[str, Any]]:
    """Build the network that :func:`save_network` wrote, in eval mode on the CPU.

    Raises:
        CheckpointError: the file is damaged, or its tensors do not fit the network it names.
    """
    state, meta = read_checkpoint(path)
    try:
        # On another machine the file may lie elsewhere: then who loads it first names it.
        if meta["backbone"] not in BACKBONES:
            load_entry_points(check=False)
            for plugin in meta.get("plugins", ()):
                load_plugin(Path(plugin), check=False)
        network = build_network(meta["backbone"], meta["tasks"], meta["num_classes"], seed=0)
    except (KeyError, TypeError, SharedencError) as error:
        raise CheckpointError(f"checkpoint {path} names no network of ours: {error}") from error
    load_state(network, state, path)
    return network.eval(), meta


def load_state(network: Network, state: Mapping[str, Tensor], path: Path) -> None:
    """Put a checkpoint's tensors into a network of the same kind."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {path} is of another network: {error}") from error


def encoder_state(path: Path, backbone: str) -> dict[str, Tensor]:
    """Return the encoder of a checkpoint, running statistics included, without its prefix.

    Raises:
        CheckpointError: the file is damaged or of another backbone.
    """
    state, meta = read_checkpoint(path)
    if meta.get("backbone") != backbone:
        raise CheckpointError(
            f"{path} holds a {meta.get('backbone')} encoder, and this cell needs {backbone}."
        )
    return {
        name.removeprefix(ENCODER): tensor
        for name, tensor in state.items()
        if name.startswith(ENCODER)
    }


def save_resume(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values, for :func:`load_resume`."""
    buffer = io.BytesIO()
    torch.save({**state, "version": RESUME_VERSION}, buffer)
    write_atomic(path, buffer.getvalue())


def load_resume(path: Path, key: str) -> dict[str, Any] | None:
    """Return what :func:`save_resume` wrote, or None when there is no such file.

    Raises:
        CheckpointError: the file is damaged, or belongs to a trial of another key.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the reader anywhere
        raise _unreadable(path, error) from error
    if not isinstance(state, dict) or state.get("version") != RESUME_VERSION:
        raise _unreadable(path, "not a resume file of this version")
    if state.get("key") != key:
        raise CheckpointError(
            f"{path} belongs to trial {str(state.get('key'))[:16]} and not to {key[:16]}. "
            "Remove it to start this trial from the beginning."
        )
    return state


def _unreadable(path: Path, reason: object) -> CheckpointError:
    text = (str(reason).splitlines() or [type(reason).__name__])[0]
    return CheckpointError(
        f"resume file {path} cannot be read ({text}). Remove it to start the trial from the "
        "beginning."
    )
