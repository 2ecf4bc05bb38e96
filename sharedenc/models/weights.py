"""Initial weights of an encoder: torchvision's, a local file's, or random and calibrated."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from sharedenc.errors import SpecError, WeightsError, check_choice, nearest
from sharedenc.models.encoders import ENCODERS, Encoder, batch_norms

WAYS_OUT = (
    "Ways out: on a machine with a network run `sharedenc weights fetch --out DIR` and pass "
    "`--weights DIR`; pass a state dict of your own with `--weights PATH` or "
    "`--weights BACKBONE=PATH`; or start from random weights with `--weights none`."
)

# Whole parts of a checkpoint that an encoder has no use for.
_OTHER_PARTS = ("fc.", "classifier.", "det_head.", "seg_head.")
# torchvision's DenseNet files are older than its ban on dots in module names.
_OLD_DENSE_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.pth$")


@dataclass(frozen=True)
class OfficialWeights:
    """Pretrained weights to download; a file name's hash suffix is the start of its SHA-256."""

    name: str
    url: str

    @property
    def file_name(self) -> str:
        """The URL's last part, which is also the name in torch.hub's cache."""
        return self.url.rsplit("/", 1)[-1]


def torchvision_default(architecture: str) -> OfficialWeights:
    """The weights that torchvision calls DEFAULT (MobileNetV3-Large: IMAGENET1K_V2)."""
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    return OfficialWeights(name=f"torchvision:{weights}", url=weights.url)


OFFICIAL: dict[str, OfficialWeights] = {
    name: torchvision_default(name)
    for name in ("resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121")
}


@dataclass(frozen=True)
class InitialWeights:
    """Where an encoder starts: a name for people, a digest for the trial's key, and the tensors.

    ``source`` is ``none``, the name of official weights, or a path. ``load`` is None for random
    weights; otherwise it reads (or downloads) a state dict for `load_encoder_weights`.
    """

    source: str
    digest: str
    load: Callable[[], dict[str, Tensor]] | None


def resolve_weights(option: str, backbone: str) -> InitialWeights:
    """Read the ``--weights`` option for one backbone; downloads nothing.

    Args:
        option: ``default``, ``none``, a file or folder, or a comma-separated list that may hold one
            of these for all backbones and ``BACKBONE=PATH`` (or ``=none``, ``=default``) for some.
            Backbones that a list leaves out are on ``default``.
        backbone: A registered backbone.

    Raises:
        SpecError: the option cannot be read.
        WeightsError: there is no such file, or no official weights for this backbone.
    """
    check_choice("backbone", backbone, ENCODERS)
    choice = _choice_for(option, backbone)
    if choice == "none":
        return InitialWeights("none", "none", None)
    if choice == "default":
        return _official(backbone)
    return _local(Path(choice).expanduser(), backbone)


def _choice_for(option: str, backbone: str) -> str:
    if option in ("default", "none"):
        return option
    if option and os.path.exists(os.path.expanduser(option)):  # no error for a long list
        return option
    for_all: list[str] = []
    for_some: dict[str, str] = {}
    for part in (part.strip() for part in option.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            for_all.append(part)
        elif name not in ENCODERS:
            raise SpecError(
                f"--weights {part!r}: there is no backbone {name!r}; there are "
                f"{', '.join(ENCODERS)}.{nearest(name, ENCODERS)}"
            )
        elif name in for_some:
            raise SpecError(f"--weights {option!r} names {name} twice")
        else:
            for_some[name] = value
    if len(for_all) > 1 or "" in for_all or "" in for_some.values():
        raise SpecError(
            f"--weights {option!r} cannot be read; it is default, none, PATH, or a list such as "
            "none,mobilenet_v3_large=PATH"
        )
    return for_some.get(backbone, for_all[0] if for_all else "default")


def _official(backbone: str) -> InitialWeights:
    official = OFFICIAL.get(backbone)
    if official is None:
        raise WeightsError(f"there are no official weights for {backbone!r}. {WAYS_OUT}")
    return InitialWeights(official.name, official.file_name, lambda: _download(official))


def _download(official: OfficialWeights) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            official.url,
            map_location="cpu",
            progress=sys.stderr.isatty(),
            check_hash=True,
            weights_only=True,
        )
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        http.client.HTTPException,
        pickle.UnpicklingError,
    ) as error:
        raise WeightsError(
            f"{official.name} could not be had from {official.url}: {error}. {WAYS_OUT}"
        ) from error
    return state


def _local(path: Path, backbone: str) -> InitialWeights:
    """A file, or the backbone's own file in a folder that `sharedenc weights fetch` wrote.

    An untouched official file has the digest of a download, so both give the same trial keys.
    """
    official = OFFICIAL.get(backbone)
    if path.is_dir():
        if official is None:
            raise WeightsError(
                f"{path} is a folder, and {backbone!r} has no official file name to look for in "
                f"it; pass --weights {backbone}=FILE"
            )
        path = _in_folder(path, official.file_name, backbone)
    if not path.is_file():
        raise WeightsError(f"there are no weights at {path} for {backbone!r}. {WAYS_OUT}")
    digest = file_sha256(path)
    if official is not None and path.name == official.file_name:
        suffix = _HASH_IN_NAME.search(path.name)
        if suffix is not None and not digest.startswith(suffix[1]):
            raise WeightsError(
                f"{path} is not the official file of this name: its SHA-256 begins with "
                f"{digest[:8]} and not with {suffix[1]}. It is cut or changed: fetch it again "
                "(sharedenc weights fetch), or rename it if it is your own"
            )
        digest = path.name
    return InitialWeights(str(path), digest, lambda: read_state(path))


def _in_folder(folder: Path, file_name: str, backbone: str) -> Path:
    for place in (folder, folder / "checkpoints", folder / "hub" / "checkpoints"):
        if (place / file_name).is_file():
            return place / file_name
    raise WeightsError(f"{folder} has no {file_name}, which {backbone!r} needs. {WAYS_OUT}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file (64 hex digits)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a torch file that holds nothing but tensors.

    Raises:
        WeightsError: the file is missing, cut, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path, device="cpu")
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        # torch's reader of old files stumbles over plain text with a bare number.
        reason = (str(error).splitlines() or [""])[0]
        reason = f"{type(error).__name__} {reason}".rstrip()
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}). It is cut, or neither safetensors nor "
            "what torch.save(model.state_dict(), ...) writes"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"{path} does not hold a state dict (names and tensors); save model.state_dict()"
        )
    return content


def load_encoder_weights(encoder: Encoder, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into an encoder, checking every name and shape first.

    Accepted are the encoder's own names, torchvision's (without ``body.``), and those of a whole
    network (``encoder.*``); classifiers and heads are left out, and a missing batch counter is 0.

    Raises:
        WeightsError: a tensor is missing, unknown, of another shape or not finite; nothing was
            copied.
    """
    own = encoder.state_dict()
    given = _own_names(state, own)
    shapes = [
        f"{name} is {tuple(given[name].shape)} in the weights and {tuple(own[name].shape)} here"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    missing = [
        name for name in own if name not in given and not name.endswith("num_batches_tracked")
    ]
    unknown = [name for name in given if name not in own]
    if shapes:
        raise WeightsError(f"the weights are of another network: {_first(shapes, '; ')}")
    if missing or unknown:
        raise WeightsError(
            "the weights are of another network: "
            f"missing are {_first(missing)}; not known here are {_first(unknown)}"
        )
    broken = [name for name in own if name in given and not bool(given[name].isfinite().all())]
    if broken:
        raise WeightsError(f"the weights hold NaN or infinity in {_first(broken)}")
    with torch.no_grad():
        for name, tensor in own.items():
            if name in given:
                tensor.copy_(given[name])
            else:
                tensor.zero_()


def _own_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    of_network = any(name.startswith("encoder.") for name in state)
    named: dict[str, Tensor] = {}
    for given_name, tensor in state.items():
        name = _OLD_DENSE_NAME.sub(r"\1\2.", given_name)
        if name.startswith(_OTHER_PARTS):
            continue
        if of_network:
            name = name.removeprefix("encoder.")
        if name not in own and f"body.{name}" in own:
            name = f"body.{name}"
        named[name] = tensor
    return named


def _first(items: list[str], separator: str = ", ", count: int = 3) -> str:
    if not items:
        return "none"
    more = f"{separator}and {len(items) - count} more" if len(items) > count else ""
    return separator.join(items[:count]) + more


def calibrate_batchnorm(encoder: Encoder, normalised_batches: Iterable[Tensor]) -> int:
    """Replace running statistics by the plain average over batches ``[B, 3, H, W]``; in one pass.

    Random encoders need it: with the initial statistics (mean 0, variance 1) the deep features of
    MobileNetV3 and EfficientNetV2 vanish in evaluation mode. Weights, momenta and modes stay.

    Returns:
        The number of batches seen.

    Raises:
        WeightsError: there was no batch.
    """
    norms = list(batch_norms(encoder).values())
    modes: dict[nn.Module, bool] = {part: part.training for part in encoder.modules()}
    momenta = [norm.momentum for norm in norms]
    device = next(encoder.parameters()).device
    batches = 0
    try:
        # Only the normalisations train: stochastic depth would change what they see.
        encoder.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        with torch.no_grad():
            for images in normalised_batches:
                encoder(images.to(device))
                batches += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in modes.items():
            part.training = mode
    if batches == 0:
        raise WeightsError("batch-norm calibration got no images; calibration_images must be > 0")
    return batches
