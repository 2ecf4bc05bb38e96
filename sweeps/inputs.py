"""What a study is made of: packed data, initial weights, and the facts that keys rest on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.errors import SpecError, WeightsError
from sharedenc.spec import device_kind, installed_torch
from sweeps.facts import Facts
from sweeps.study import Study

if TYPE_CHECKING:
    from torch import Tensor

    from sharedenc.data.packed import PackedDataset
    from sharedenc.models.weights import InitialWeights
    from sharedenc.spec import Trial


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a sweep keeps its files and its rows; ``storage`` is what outlives the machines."""

    tracking_uri: str
    runs_dir: Path
    cache_dir: Path | None = None
    storage: str | None = None

    def study_dir(self, study: str) -> Path:
        """The folder of one study."""
        return self.runs_dir / "studies" / study

    def work_dir(self, study: str, trial: Trial) -> Path:
        """The folder of one trial, found by its key: a search's winner is the final trial."""
        return self.study_dir(study) / "trials" / trial.key[:16]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A study's data and weights; ``weights`` holds option and digest by backbone."""

    name: str
    data: PackedDataset
    weights: dict[str, tuple[str, str]]
    facts: Facts

    @property
    def device_name(self) -> str:
        """Name of this machine's device, as trials record it; empty when it has no such device."""
        from sharedenc.training.device import device_name

        try:
            return device_name("cuda" if self.facts.device_kind == "cuda" else "cpu")
        except (RuntimeError, AssertionError):  # torch without CUDA, or no GPU
            return ""


def gather(
    study: Study,
    places: Places,
    device: str,
    *,
    progress: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> Inputs:
    """Pack the data, find the weights, and say what the study is called.

    Raises:
        SharedencError: data or weights cannot be used.
    """
    data = open_data(study, places, progress=progress)
    for warning in data.warnings:
        note(f"warning: {warning}")
    weights = find_weights(study)
    train, val, test = (len(data.split(name)) for name in ("train", "val", "test"))
    facts = Facts(
        data_name=data.name,
        data_digest=data.digest,
        tasks=data.tasks,
        images=(train, val, test),
        weights={backbone: digest for backbone, (_, digest) in weights.items()},
        device_kind=_device_kind(device),
        torch_version=installed_torch(),
    )
    name = study.name or f"{study.kind}-{data.name}"
    return Inputs(name=name, data=data, weights=weights, facts=facts)


def open_data(study: Study, places: Places, *, progress: bool = True) -> PackedDataset:
    """Pack the study's data set, drawing the synthetic one when none was given."""
    from sharedenc.data.packed import cache_dir, prepare

    if study.data is not None:
        return prepare(Path(study.data), places.cache_dir, study.rules, progress=progress)
    if not study.synthetic_images:
        raise SpecError(
            "which data? Give --data DIR (COCO, Pascal VOC or a data.yaml), or take "
            "--preset demo, which draws its own"
        )
    from sharedenc.data.synthetic import write_synthetic

    train, val, test = study.synthetic_images
    counts = "-".join(str(n) for n in study.synthetic_images)
    source = cache_dir(places.cache_dir) / "synthetic" / counts
    if not (source / "data.yaml").is_file():
        source.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
            write_synthetic(Path(scratch) / counts, (train, val, test))
            try:
                (Path(scratch) / counts).rename(source)
            except OSError:
                if not (source / "data.yaml").is_file():  # another sweep may have been faster
                    raise
    return prepare(source, places.cache_dir, study.rules, progress=progress)


def find_weights(study: Study) -> dict[str, tuple[str, str]]:
    """Option and digest of each backbone's initial encoder, read (or downloaded) once.

    Raises:
        WeightsError: they cannot be had, before any trial starts.
    """
    cells = [*study.cells, *(search.cell for search in study.searches)]
    backbones = list(dict.fromkeys(cell.backbone for cell in cells))
    if study.weights == "none":
        return dict.fromkeys(backbones, ("none", "none"))
    from sharedenc.models.weights import resolve_weights

    found = {}
    for backbone in backbones:
        weights = resolve_weights(study.weights, backbone)
        if weights.load is not None:
            _check_weights(backbone, weights.source, weights.load())
        found[backbone] = (_weights_option(weights), weights.digest)
    return found


def _check_weights(backbone: str, source: str, state: dict[str, Tensor]) -> None:
    """Refuse weights of another network, by loading them into an encoder without memory."""
    import torch

    from sharedenc.models.encoders import build_encoder
    from sharedenc.models.weights import load_encoder_weights

    with torch.device("meta"):
        encoder = build_encoder(backbone)
    try:
        load_encoder_weights(encoder, state)
    except WeightsError as error:
        raise WeightsError(f"{source} cannot start {backbone!r}: {error}") from None


def _weights_option(weights: InitialWeights) -> str:
    if weights.load is None:
        return "none"
    path = Path(weights.source)
    return str(path.resolve()) if path.is_file() else "default"


def _device_kind(device: str) -> Any:
    kind = device_kind()
    if device == "auto":
        return kind
    if device == "cuda":
        return "cuda"
    return "cpu" if kind == "cuda" else kind
