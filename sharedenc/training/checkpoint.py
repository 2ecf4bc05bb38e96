"""Networks as files: safetensors with a description inside, from which they are built again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sharedenc.errors import CheckpointError, SharedencError
from sharedenc.files import write_atomic
from sharedenc.models.build import build_network
from sharedenc.models.encoders import Encoder
from sharedenc.models.network import Network
from sharedenc.models.plugins import load_entry_points, load_plugin
from sharedenc.spec import BACKBONES

BEST = "best.safetensors"
META = "sharedenc"
ENCODER = "encoder."


class OtherEncoderError(CheckpointError):
    """Saved tensors are those of another encoder than the one that several trials share.

    A trial of which that is so goes on alone, as after a fault of the machine.
    """

    kind = "machine"


def save_network(network: Network, path: Path, meta: Mapping[str, Any]) -> None:
    """Write a network's state dict; ``meta`` (plain JSON values) rides in the file's header.

    ``meta`` must hold ``backbone``, ``tasks`` and ``num_classes``, from which
    :func:`load_network` builds the network again.
    """
    write_atomic(path, network_bytes(network_tensors(network), meta))


def network_tensors(network: Network, *, encoder: bool = True) -> dict[str, Tensor]:
    """A copy of a network's state dict on the CPU, in torch's plain memory format.

    Args:
        encoder: Whether the encoder's tensors are to be among them.
    """
    plain = torch.contiguous_format
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=plain)
        for name, tensor in network.state_dict().items()
        if encoder or not name.startswith(ENCODER)
    }


def network_bytes(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """The content of a checkpoint, for :func:`read_checkpoint`."""
    content: bytes = save(dict(tensors), metadata={META: json.dumps(dict(meta))})
    return content


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


def check_encoder(encoder: Encoder, state: Mapping[str, Tensor], where: object) -> None:
    """Raise OtherEncoderError unless a network's saved state has this encoder, to the bit.

    Args:
        where: What holds the state, for the error.
    """
    saved = {name: tensor for name, tensor in state.items() if name.startswith(ENCODER)}
    present = {ENCODER + name: tensor for name, tensor in encoder.state_dict().items()}
    if saved.keys() == present.keys() and all(
        _same_bits(tensor, saved[name]) for name, tensor in present.items()
    ):
        return
    raise OtherEncoderError(
        f"{where} holds another encoder than the one that several trials train on here, as "
        "statistics of another machine may make it. Let the trial go on alone."
    )


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same bytes, on whatever device and in whatever layout."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    flat = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (first, second)]
    return flat[0].equal(flat[1])


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
