"""What a trial is asked to do, and what it answers: plain values that cross processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sharedenc.data.classes import ClassList
from sharedenc.errors import FailureKind, SharedencError
from sharedenc.spec import Cell, Trial


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """One trial and its places.

    ``pack`` is a finished pack's folder, ``weights`` the ``--weights`` option, ``parent`` the best
    checkpoint of a swap's source, ``device`` where to compute (``cpu``, ``cuda``). ``workers`` are
    loader processes. ``predictions`` and ``test`` say whether the trial ends with a page of
    pictures and with test scores.
    """

    trial: Trial
    pack: Path
    weights: str
    parent: Path | None
    work_dir: Path
    device: str
    workers: int = 0
    plugins: tuple[str, ...] = ()
    predictions: bool = True
    test: bool = True


@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave: ``epoch`` counts from 1 to at most ``epochs``."""

    epoch: int
    epochs: int
    metrics: dict[str, float]
    seconds: float


OnEpoch = Callable[[EpochReport], bool]
"""Told of each epoch; True means: stop now, this trial is cut."""


@dataclass
class TrialResult:
    """What a trial that ended by itself, or was cut, gave.

    ``val`` and ``test`` hold metrics without prefix, of the best epoch's network; ``history`` one
    row of metrics per epoch; ``checkpoint`` the path of the best network.
    """

    cell: str
    key: str
    state: Literal["done", "stopped"]
    epochs: int
    best_epoch: int
    score: float
    val: dict[str, float]
    test: dict[str, float]
    history: list[dict[str, float]]
    parameters: dict[str, int]
    checkpoint: str
    seconds: float
    images_per_s: float
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """The named end of a trial, whatever was raised in it; ``exit_code`` is that of its error."""

    state: Literal["done", "stopped", "failed"]
    kind: FailureKind | None = None
    reason: str | None = None
    traceback: str | None = None
    result: TrialResult | None = field(default=None, repr=False)
    exit_code: int = 0


def score(cell: Cell, metrics: Mapping[str, float], prefix: str = "") -> float:
    """Rank a trial: mAP, mIoU, or for two tasks their mean; what is undefined counts as 0.

    Source: methods 6.3 (validation scores, never the loss, which changes with alpha).
    """
    names = {"det": "mAP", "seg": "mIoU"}
    return sum(metrics.get(prefix + names[task], 0.0) for task in cell.tasks) / len(cell.tasks)


def failure_kind(error: BaseException) -> FailureKind:
    """Sort an error: its own kind, out of memory, the machine's fault, or a bug."""
    if isinstance(error, SharedencError):
        return error.kind
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return "oom"
    return "machine" if isinstance(error, OSError) else "code"


def trial_params(trial: Trial) -> dict[str, Any]:
    """Params of a trial's run: everything that is set, by the names of the layout.

    Params never change, while one trial's weights may lie elsewhere tomorrow: their digest counts.
    """
    params: dict[str, Any] = {
        f"recipe.{name}": value for name, value in trial.recipe.to_dict().items()
    }
    params |= {f"numerics.{name}": value for name, value in asdict(trial.numerics).items()}
    return params | {"lr": trial.lr, "seed": trial.seed, "weights": trial.weights_digest}


def trial_tags(
    trial: Trial, *, study: str, stage: str, data: str, classes: ClassList
) -> dict[str, Any]:
    """Tags of a trial's run that do not change while it runs."""
    cell = trial.cell
    tags = {
        "study": study,
        "stage": stage,
        "cell": cell.name,
        "key": trial.key,
        "backbone": cell.backbone,
        "strategy": cell.strategy,
        "freeze": cell.freeze,
        "task": cell.graph,
        "data": data,
        "data_digest": trial.data_digest,
        "classes": json.dumps(classes.names),
    }
    return {f"sharedenc.{name}": value for name, value in tags.items()}
