"""A trained network in Python, from wherever it is kept."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharedenc.errors import ExportError, TrackingError
from sharedenc.models.network import Network
from sharedenc.training.checkpoint import load_network

RUN_ID = re.compile(r"[0-9a-f]{32}")
VERSION = re.compile(r"models:/(?P<name>[^/]+)/(?P<version>\d+)")


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode on the CPU, with its checkpoint's meta."""

    network: Network
    meta: dict[str, Any]


def load(source: str | Path, tracking_uri: str | None = None) -> Network:
    """The network of a run, a registered version or a checkpoint, in eval mode on the CPU.

    Args:
        source: a path to ``best.safetensors``, a run's id (32 hex digits), or
            ``models:/<name>/<version>``, which gives the whole network that the version was
            exported from (for a version of graph ``encoder``, too), or that was assembled for it.
        tracking_uri: the MLflow server; by default that of ``MLFLOW_TRACKING_URI``.

    Raises:
        CheckpointError: the file is damaged or of another network.
        TrackingError: the server is not known or does not answer, or has no such run.
        ExportError: ``source`` is none of the three.
    """
    return load_with_meta(source, tracking_uri).network


def load_with_meta(source: str | Path, tracking_uri: str | None = None) -> Loaded:
    """`load`, with the checkpoint's meta: classes, normalisation, cell, key, ...

    A run adds its id, its study and, as ``recipe``, its thresholds.
    """
    text = str(source)
    version = VERSION.fullmatch(text)
    if not version and not RUN_ID.fullmatch(text):
        if not Path(text).is_file():
            raise ExportError(
                f"{text!r} is no checkpoint file, no run id (32 hex digits) and no registered "
                "version (models:/<name>/<number>)."
            )
        return Loaded(*load_network(Path(text)))
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise TrackingError(
            f"{text} is kept on an MLflow server, and which one is not known: pass tracking_uri, "
            "or set MLFLOW_TRACKING_URI."
        )
    from sharedenc.export.registry import Registry

    registry = Registry(uri)
    run_id = registry.run_of_version(version["name"], version["version"]) if version else text
    with tempfile.TemporaryDirectory(prefix="sharedenc-load-") as folder:
        run = registry.open_run(run_id, Path(folder), finished=False)
    return Loaded(run.network, run.meta)
