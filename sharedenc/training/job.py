"""What a trial is asked to do, and what it answers: plain values that cross processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sharedenc.data.classes import ClassList
from sharedenc.errors import FailureKind
from sharedenc.spec import Cell, Trial
from sharedenc.training.failures import failure_kind
from sharedenc.training.interval import DEFAULT_INTERVAL

__all__ = [
    "PREEMPTED",
    "TOGETHER",
    "EpochReport",
    "OnEpoch",
    "Outcome",
    "TrialJob",
    "TrialResult",
    "TrialStoppedError",
    "failure_kind",
    "rank",
    "score",
    "trial_params",
    "trial_tags",
]


def never() -> str:
    """The reason to stop of a trial that nobody stops: none."""
    return ""


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """One trial and its places.

    ``pack`` is a finished pack's folder, ``weights`` the ``--weights`` option, ``parent`` the best
    checkpoint of a swap's source, ``device`` where to compute (``cpu``, ``cuda``). ``workers`` are
    loader processes. ``keep`` says whether a finished trial uploads its files, ``predictions`` and
    ``test`` whether it ends with a page of pictures and with test scores. ``storage`` is the
    address of what outlives the machine, ``checkpoint_every`` how often the state is saved
    (``10m``, ``2epochs``, ``100steps``); ``fresh`` forgets what earlier attempts left.
    ``stop`` is asked before every step: a reason means that the trial saves and ends now.
    ``baselines`` are the best validation scores of the tasks' baselines: with them, a dual trial is
    ranked by how far it is from them. ``taps_budget_bytes`` is what the maps of frozen encoders may
    take in this machine's cache folder, ``cache_dir`` (None: the usual one); 0 keeps none.
    """

    trial: Trial
    pack: Path
    weights: str
    parent: Path | None
    work_dir: Path
    device: str
    workers: int = 0
    plugins: tuple[str, ...] = ()
    keep: bool = True
    predictions: bool = True
    test: bool = True
    storage: str | None = None
    checkpoint_every: str = DEFAULT_INTERVAL
    fresh: bool = False
    stop: Callable[[], str] = field(default=never, repr=False, compare=False)
    baselines: Mapping[str, float] = field(default_factory=dict)
    taps_budget_bytes: int = 4 << 30
    cache_dir: Path | None = None


PREEMPTED = "preempted"
"""What the reason of a stop starts with when the machine is taken away: the trial runs again."""
TOGETHER = "sharedenc.together"
"""Tag of a run: a JSON list of all runs that it last trained beside, its own too; empty alone."""


class TrialStoppedError(Exception):
    """Raised inside a trial that was asked to stop; its state is saved. The text is the reason."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave: ``epoch`` counts from 1 to at most ``epochs``.

    ``metrics`` has the trial's ``score`` among them; ``rank`` is what brackets compare; ``at_ms``
    is when the epoch ended (epoch ms); ``members`` trials trained it together.
    """

    epoch: int
    epochs: int
    metrics: dict[str, float]
    seconds: float
    at_ms: int | None = None
    rank: float = math.nan
    members: int = 1


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
    """The named end of a trial, whatever was raised in it.

    ``preempted`` and ``stopped`` trials go on from their saved state when they run again.
    ``error`` is the class of what was raised and ``exit_code`` that of the error; ``epochs_done``
    counts those of earlier attempts too.
    """

    state: Literal["done", "stopped", "failed", "preempted"]
    kind: FailureKind | None = None
    reason: str | None = None
    traceback: str | None = None
    result: TrialResult | None = field(default=None, repr=False)
    exit_code: int = 0
    error: str | None = None
    epochs_done: int = 0
    peak_memory_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the result's among them."""
        return asdict(self)


SCORES: dict[str, str] = {"det": "mAP", "seg": "mIoU"}
"""The figure that a task is judged by."""


def score(cell: Cell, metrics: Mapping[str, float], prefix: str = "") -> float:
    """Rank a trial: mAP, mIoU, or for two tasks their mean; what is undefined counts as 0.

    Source: methods 6.3 (validation scores, never the loss, which changes with alpha).
    """
    return sum(metrics.get(prefix + SCORES[task], 0.0) for task in cell.tasks) / len(cell.tasks)


def rank(cell: Cell, metrics: Mapping[str, float], baselines: Mapping[str, float]) -> float:
    """What brackets compare: the score, or for a dual with baselines the mean relative change.

    ``metrics`` are named ``val/...``; ``baselines`` are the best scores by task. Without a positive
    score of both baselines there is nothing to be relative to.

    Source: methods 6.3, ``dm = 1/2 [(mAP / mAP_b - 1) + (mIoU / mIoU_b - 1)]``, in percent.
    """
    if len(cell.tasks) < 2 or not all(baselines.get(task, 0.0) > 0 for task in cell.tasks):
        return score(cell, metrics, "val/")
    changes = [
        metrics.get(f"val/{SCORES[task]}", 0.0) / baselines[task] - 1.0 for task in cell.tasks
    ]
    return 100.0 * sum(changes) / len(changes)


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
        "compatible_key": trial.compatible_key,
        "content": json.dumps(trial.content(), sort_keys=True),
        "backbone": cell.backbone,
        "strategy": cell.strategy,
        "freeze": cell.freeze,
        "task": cell.graph,
        "data": data,
        "data_digest": trial.data_digest,
        "classes": json.dumps(classes.names),
    }
    return {f"sharedenc.{name}": value for name, value in tags.items()}
