"""What a tracker is: records, the two Protocols, names and lengths."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sharedenc.errors import nearest
from sharedenc.redact import hide_credentials

log = logging.getLogger("sharedenc.tracking")

KIND, STUDY, STATE, REASON = (f"sharedenc.{name}" for name in ("kind", "study", "state", "reason"))
PARENT, RUN_NAME = "mlflow.parentRunId", "mlflow.runName"
REUSED_FROM = "sharedenc.reused_from"
"""Run whose artifacts stand for those of a run that was taken over from another study."""

MAX_TAG, MAX_PARAM, MAX_METRICS, MAX_PARAMS, PAGE = 5000, 6000, 1000, 100, 500
"""Lengths and batch sizes that every MLflow 3 server takes in one request."""

RUN_STATUS = {
    "waiting": "SCHEDULED",
    "running": "RUNNING",
    "done": "FINISHED",
    "stopped": "KILLED",
    "skipped": "KILLED",
    "failed": "FAILED",
}
"""MLflow's own status for each of our states."""

PATIENCE_S = 300.0
"""How long a driver waits for an answer."""
THREADS = 4
"""Requests at once where many small ones are made."""


@dataclass(frozen=True)
class RunRecord:
    """One run as read back.

    ``metrics`` holds the last value of each, ``steps`` its step; times are epoch ms.
    """

    run_id: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    status: str
    start_ms: int
    end_ms: int | None
    steps: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One value of a metric; ``at_ms`` is when it was said (epoch ms)."""

    name: str
    value: float
    step: int
    at_ms: int


@dataclass
class Patience:
    """How long a request that must be answered waits for a server that is away.

    ``tell`` hears of it once per absence; ``meanwhile`` is called about once a second (it may
    start a private server again).
    """

    seconds: float = PATIENCE_S
    tell: Callable[[str], None] = log.warning
    meanwhile: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Version:
    """A version in the model registry; ``aliases`` are names that somebody gave it."""

    model: str
    version: str
    run_id: str
    source: str
    aliases: tuple[str, ...] = ()


class RunHandle(Protocol):
    """One run that is being written. No method raises because a server is away."""

    @property
    def run_id(self) -> str: ...

    def params(self, values: Mapping[str, Any]) -> None:
        """Log values that never change; another value for a known name is a TrackingError."""

    def metrics(self, values: Mapping[str, float], step: int, at_ms: int | None = None) -> None:
        """Log everything that belongs to one step in one request.

        Once :meth:`keep_in` was called it may arrive later; all has by the return of :meth:`end`.
        ``at_ms`` is when it was first said (epoch ms; now by default): the same values said again
        for the same step and time leave one row.
        """

    def points(self, points: Sequence[Point]) -> None:
        """Log values of any steps and times in as few requests as the server takes."""

    def logged_steps(self, metric: str = "score") -> set[int]:
        """Steps of a metric that the server has, or will have once what waits here is sent.

        While the server is away only the waiting ones are known; say the rest again with the
        ``at_ms`` of the first time.
        """

    def tags(self, values: Mapping[str, Any]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file; it must stay where it is until :meth:`end` returns."""

    def keep_in(self, folder: Path) -> None:
        """Name the folder that keeps unsent messages; send what an earlier attempt left there."""

    def end(self, state: str, reason: str | None = None, *, wait_s: float | None = None) -> None:
        """Say how the run ended; for a server that is away this waits up to ``wait_s``.

        By default that is minutes, or seconds where the run is stopped and taken up again.
        """

    def deliver(self, wait_s: float) -> bool:
        """Send what is unsent, waiting up to so long for a server that is away; True if all went.

        For a run whose :meth:`end` was not to wait; files stay where they are until this returns.
        """


class Tracker(Protocol):
    """The runs of studies. Every implementation passes ``tests/contracts/tracker.py``."""

    def study(self, name: str, tags: Mapping[str, Any]) -> str:
        """Return the id of the study's parent run, found by tag or created, with ``tags`` set."""

    def child(self, study: str, parent_id: str, name: str, tags: Mapping[str, Any]) -> RunHandle:
        """Create a trial's run under ``parent_id``."""

    def resume(self, run_id: str) -> RunHandle:
        """Take a run up again; raises TrackingError when there is none."""

    def runs(self, study: str) -> list[RunRecord]:
        """Return every run of the study, its parent included, oldest first; [] if unknown."""

    def studies(self) -> list[str]:
        """Return the names of all studies, sorted."""

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return ``(step, value)`` of one metric in the order of steps, then of time."""

    def points(self, run_id: str, metric: str) -> list[Point]:
        """Return all values of one metric in the order of steps, then of time."""

    def record(self, run_id: str) -> RunRecord:
        """Return one run; raises TrackingError when there is none."""

    def find(
        self,
        tag: str,
        values: Sequence[str],
        *,
        tags: Mapping[str, str] = ...,
        limit: int = 20,
        but: str = "",
    ) -> dict[str, list[RunRecord]]:
        """Runs of all studies whose ``tag`` has one of ``values``, newest first, by value.

        ``tags`` are further tags that they have, ``but`` is a study to leave out; ``limit`` is
        per value. One request per value, and one for the list of studies.
        """

    def tag(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Set tags now; raises TrackingError when the server does not answer."""

    def untag(self, run_id: str, names: Collection[str]) -> None:
        """Remove tags now; one that is not there is no error."""

    def download(self, run_id: str, artifact: str, to: Path) -> Path:
        """Fetch an artifact (file or folder) to below ``to``; TrackingError when there is none.

        What a run does not have itself is fetched from the run that `REUSED_FROM` names.
        """

    def files(self, run_id: str, folders: Collection[str] | None = None) -> dict[str, int]:
        """Size in bytes of every artifact that the run itself has, by path.

        ``folders``: look into these only ("." is the top), and not below them.
        """

    def versions(self) -> list[Version]:
        """Return every version of every registered model."""

    def delete_files(self, run_id: str, names: Collection[str]) -> None:
        """Delete artifacts and look that they are gone; TrackingError when they are not."""


def no_study(study: str, names: Collection[str], where: str = "the tracking server") -> str:
    """Say that a study is not among ``names``, and which one may be meant."""
    known = ", ".join(sorted(names)) or "none"
    hint = nearest(study, names)
    return f"{hide_credentials(where)} has no study {study!r}; it has: {known}.{hint}"


def is_study(experiment: str) -> bool:
    """Whether an experiment's name is a study's: MLflow's own and the agent's are not."""
    return experiment != "Default" and not experiment.startswith("bench/")


def metric_name(name: str) -> str:
    """Replace what MLflow does not take in a metric's name by ``_``."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def as_texts(values: Mapping[str, Any], longest: int) -> dict[str, str]:
    return {name: hide_credentials(str(value))[:longest] for name, value in values.items()}


def study_tags(name: str, kind: str, tags: Mapping[str, Any]) -> dict[str, str]:
    return as_texts({**tags, KIND: kind, STUDY: name}, MAX_TAG)
