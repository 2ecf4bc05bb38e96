"""What the registry keeps of an export beside its files: rows, tags and names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jetson_agent.protocol import INT8_FILES, MODEL_FILE, ExportManifest, model_name
from sharedenc.export.accuracy import KINDS, Accuracy
from sharedenc.export.folder import Exported, model_data
from sharedenc.export.parity import TOLERANCE
from sharedenc.models.network import Network
from sharedenc.spec import Graph

CHECKPOINT_TAG = "sharedenc.checkpoint_sha256"
PARITY_TAG = "sharedenc.parity"
CALIBRATION_TAG = "sharedenc.calibration"
# Scores of each file and cosines of each INT8 output with float's, as short JSON.
ACCURACY_TAG = "sharedenc.accuracy"
# Why a version has no INT8 files although they were asked for.
INT8_REASON_TAG = "sharedenc.int8_reason"
# What an assembled version serves, and its parts' runs as JSON, by task.
DEPLOYMENT_TAG = "sharedenc.deployment"
PARTS_TAG = "sharedenc.parts"
# End of the names of models whose versions were exported for their speed alone.
UNTRAINED = "-untrained"

Outcome = Literal["registered", "present", "missing", "failed"]


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What became of one graph.

    ``registered``: a version was made or completed. ``present``: it was there and ready.
    ``missing``: no finished run gives it. ``failed``: the export is wrong; ``reason`` says why of
    both. ``version`` is set in the first two. ``files`` (name: sha256) and ``architectures`` are
    those of the version; ``accuracy`` is its tag; ``int8_reason`` says why INT8 failed, which
    leaves a version with the float file.
    """

    cell: str
    graph: str
    outcome: Outcome
    run_id: str = ""
    model: str = ""
    version: str = ""
    sha256: str = ""
    architecture: str = ""
    reason: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    architectures: Mapping[str, str] = field(default_factory=dict)
    precisions: Sequence[str] = ()
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    int8_reason: str = ""

    @property
    def ready(self) -> bool:
        return self.outcome in ("registered", "present")


@dataclass(frozen=True)
class OpenRun:
    """A finished run's network, its meta with the run's own tags, and its checkpoint's digest.

    An ``untrained`` network has no checkpoint: the digest is that of what it is built from.
    ``tags`` are for its versions, beside the usual ones; ``start`` is what the run says of its
    beginning: ``weights``, ``seed`` and ``bn_mode``.
    """

    run_id: str
    network: Network
    meta: dict[str, Any]
    checkpoint_sha256: str
    tolerance: float = TOLERANCE
    untrained: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    start: Mapping[str, str] = field(default_factory=dict)


def model_of(run: OpenRun, graph: Graph) -> str:
    """Name of the registered model that a graph of ``run`` belongs to."""
    name = model_name(model_data(run.meta), run.network.backbone, graph)
    return f"{name}{UNTRAINED}" if run.untrained else name


def has_int8(version: Any) -> bool:
    files = ExportManifest.from_tags(version.tags).files
    return set(INT8_FILES.values()) <= set(files)


def accuracy_tag(accuracy: Accuracy | None, exported: Exported) -> str:
    cosines = {
        KINDS[name]: {output: round(value, 5) for output, value in outputs.items()}
        for name, outputs in exported.cosines.items()
    }
    scores = {} if accuracy is None else accuracy.to_dict()
    return json.dumps({**scores, "cosine": cosines} if cosines else scores)


def short_parity(parity: Mapping[str, Mapping[str, float]]) -> str:
    """How well each output agrees with torch, three digits: evidence that rides with a version."""
    return json.dumps(
        {
            output: {name: float(f"{value:.3g}") for name, value in numbers.items()}
            for output, numbers in parity.items()
        }
    )


def row_of(cell: str, graph: str, outcome: Outcome, model: str, version: Any) -> Registered:
    manifest = ExportManifest.from_tags(version.tags)
    return Registered(
        cell=cell,
        graph=graph,
        outcome=outcome,
        run_id=version.run_id,
        model=model,
        version=str(version.version),
        sha256=manifest.files[MODEL_FILE],
        architecture=manifest.architecture,
        files=manifest.files,
        architectures=manifest.architectures,
        precisions=manifest.precisions,
        accuracy=json.loads(version.tags.get(ACCURACY_TAG) or "{}"),
        int8_reason=version.tags.get(INT8_REASON_TAG, ""),
    )
