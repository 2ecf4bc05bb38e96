"""The contract of an encoder from outside, tried on small images before it is registered."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sharedenc.errors import SpecError
from sharedenc.models.encoders import LEVELS, Encoder, FeatureMap
from sharedenc.models.freeze import apply_freeze

OPSET = 12
MAX_STRIDE = 64
STEPS = 2


def check_encoder(name: str, factory: Callable[[], Encoder]) -> None:
    """Try an encoder's contract: maps, freezing, bias training, export.

    Raises:
        SpecError: naming the contract that is broken, and how.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = factory()
        side = _check_declaration(name, encoder)
        images = torch.randn(2, 3, side, side)
        _check_maps(name, encoder, images)
        _check_frozen(name, encoder, images)
        _check_bias(name, encoder, images)
        _check_export(name, factory(), images[:1])


def _broken(name: str, contract: str, what: str) -> SpecError:
    return SpecError(f"backbone {name!r} breaks the contract {contract!r}: {what}")


def _check_declaration(name: str, encoder: object) -> int:
    """The side of test images in pixels: four cells of the coarsest map."""
    if not isinstance(encoder, Encoder):
        raise _broken(
            name,
            "encoder",
            f"its factory gives a {type(encoder).__name__}; derive from "
            "sharedenc.models.encoders.Encoder",
        )
    maps = getattr(encoder, "feature_maps", None)
    if (
        not isinstance(maps, dict)
        or set(maps) != set(LEVELS)
        or not all(isinstance(value, FeatureMap) for value in maps.values())
    ):
        raise _broken(
            name, "feature_maps", f"it must map {', '.join(LEVELS)} to FeatureMap, but is {maps!r}"
        )
    strides = [maps[level].stride for level in LEVELS]
    if not 1 <= strides[0] < strides[1] < strides[2] <= MAX_STRIDE:
        raise _broken(
            name,
            "strides",
            f"low < mid < high <= {MAX_STRIDE} is asked for, but they are {strides}",
        )
    return 4 * int(strides[-1])


def _check_maps(name: str, encoder: Encoder, images: Tensor) -> None:
    encoder.eval()
    with torch.no_grad():
        outputs = encoder(images)
    if set(outputs) != set(LEVELS):
        raise _broken(name, "forward", f"it must return {LEVELS}, but returns {tuple(outputs)}")
    side = images.shape[-1]
    for level, output in outputs.items():
        declared = encoder.feature_maps[level]
        if output.shape[1] != declared.channels:
            raise _broken(
                name,
                "channels",
                f"{level} is declared with {declared.channels} channels and has {output.shape[1]}",
            )
        if tuple(output.shape[-2:]) != (side // declared.stride,) * 2:
            raise _broken(
                name,
                "strides",
                f"{level} is declared at stride {declared.stride}, and {side} px images give "
                f"{tuple(output.shape[-2:])}",
            )


def _train(encoder: Encoder, images: Tensor) -> set[str]:
    """Take a few optimiser steps in training mode; return the names of the tensors that changed."""
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.train()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3) if trained else None
    for _ in range(STEPS):
        outputs = encoder(images)
        if optimiser is not None:
            optimiser.zero_grad(set_to_none=True)
            total = torch.stack([output.square().mean() for output in outputs.values()]).sum()
            torch.autograd.backward(total)
            optimiser.step()
    after = encoder.state_dict()
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def _check_frozen(name: str, encoder: Encoder, images: Tensor) -> None:
    apply_freeze(encoder, "frozen")
    changed = sorted(_train(encoder, images))
    if changed:
        raise _broken(
            name,
            "frozen",
            f"{len(changed)} tensors change in training although the encoder is frozen, "
            f"such as {changed[0]}",
        )


def _check_bias(name: str, encoder: Encoder, images: Tensor) -> None:
    apply_freeze(encoder, "bias")
    biases = {key for key, value in encoder.named_parameters() if value.requires_grad}
    if not biases:
        raise _broken(name, "bias", "it has no parameter named *.bias, so there is nothing to tune")
    changed = _train(encoder, images)
    if not changed:
        raise _broken(name, "bias", "no *.bias parameter gets a gradient")
    if other := sorted(changed - biases):
        raise _broken(name, "bias", f"{other[0]} changes although only *.bias may")


def _check_export(name: str, encoder: Encoder, images: Tensor) -> None:
    encoder.eval()
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # The exporter warns of its own successor and of shapes that it turns into constants.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                encoder,
                (images,),
                Path(folder) / "encoder.onnx",
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(LEVELS),
                dynamo=False,
            )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _broken(
            name, "export", f"it cannot be written as ONNX opset {OPSET}: {reason}"
        ) from error
