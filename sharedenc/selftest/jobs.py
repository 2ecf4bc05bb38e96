"""Trial jobs as plain JSON values, and what could change how they end: code, versions, device."""

from __future__ import annotations

import gc
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import sharedenc
from sharedenc.spec import BACKBONES, Trial
from sharedenc.training.device import device_name
from sharedenc.training.job import TrialJob

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "opencv-python-headless")
_PATHS = ("pack", "parent", "work_dir")


def job_to_dict(job: TrialJob) -> dict[str, Any]:
    """A job as JSON values, without its callables; `job_from_dict` is the inverse."""
    values: dict[str, Any] = {}
    for item in fields(job):
        value = getattr(job, item.name)
        if item.name == "trial":
            value = value.to_dict()
        elif item.name in _PATHS:
            value = None if value is None else str(value)
        elif callable(value):
            continue
        values[item.name] = value
    return values


def job_from_dict(values: Mapping[str, Any]) -> TrialJob:
    """Inverse of `job_to_dict`; loads the plugins that the job names."""
    from sharedenc.models.plugins import load_entry_points, load_plugin

    load_entry_points(check=False)
    for plugin in values["plugins"]:
        load_plugin(Path(plugin), check=False)
    paths = {name: None if values[name] is None else Path(values[name]) for name in _PATHS}
    plain: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
    }
    return TrialJob(**plain | paths | {"trial": Trial.from_dict(values["trial"])})


def synchronise(device: str) -> None:
    """Wait until the device has done everything it was told to; needed before reading a clock."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def release(device: str) -> None:
    """Give freed memory back, so that the next trial is not charged with the last one's."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


@cache
def code_digest() -> str:
    """SHA-256 of the package's own modules, names and contents."""
    root = Path(sharedenc.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of what decides whether a trial runs; packages that are missing are not
    there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(job: TrialJob, **settings: Any) -> str:
    """SHA-256 of everything that could change the outcome of checking a job.

    The package's code, installed versions, device, recipe, numerics, data, weights, the backbone's
    plugin, backbone, strategy, freeze mode and task; and ``settings`` of the check. Learning rate,
    seed and places are not in it.
    """
    trial = job.trial
    content = {
        "code": code_digest(),
        "versions": versions(),
        "device": [job.device, device_name(job.device)],
        "cell": trial.cell.name,
        "backbone": BACKBONES[trial.cell.backbone].digest,
        "recipe": trial.recipe.to_dict(),
        "numerics": vars(trial.numerics),
        "data": trial.data_digest,
        "weights": trial.weights_digest,
        "workers": job.workers,
        "settings": settings,
    }
    if job.device.startswith("cuda"):
        import torch

        content["memory"] = torch.cuda.get_device_properties(job.device).total_memory
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
