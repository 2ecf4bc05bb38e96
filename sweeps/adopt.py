"""A finished trial of another study, given a run of its own in this one."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sharedenc.tracking import REUSED_FROM, THREADS, Point, RunHandle, RunRecord, Tracker

SINGLE = ("test/", "params/", "export/")
"""Metrics that a trial says once, at its end or its start: their last value is their history."""
OWN = frozenset(
    f"sharedenc.{name}"
    for name in (
        "kind",
        "study",
        "stage",
        "state",
        "reason",
        "attempt",
        "creation",
        "needs",
        "search",
        "number",
        "reused",
        "reused_from",
        "why_not",
        "superseded",
        "rerun",
    )
)
"""Tags that belong to a run's place in its own study."""


def origin(record: RunRecord) -> str:
    """The run that holds the artifacts of ``record``."""
    return record.tags.get(REUSED_FROM) or record.run_id


def adopt(tracker: Tracker, source: RunRecord, run: RunHandle, tags: Mapping[str, Any]) -> None:
    """Copy params, tags, last values and history of ``source`` into ``run``, and end it as done.

    Artifacts are not copied: `REUSED_FROM` says where they are. ``tags`` are those of the run's
    place in its study. Doing it twice changes nothing, so an interrupted copy is done again.
    """
    run.params(source.params)
    run.points(_points(tracker, source))
    copied = {
        name: value
        for name, value in source.tags.items()
        if name.startswith("sharedenc.") and name not in OWN
    }
    run.tags({**copied, **tags, REUSED_FROM: origin(source)})


def _points(tracker: Tracker, source: RunRecord) -> list[Point]:
    """Every value of every metric, with the time at which it was said."""

    def history(name: str) -> list[Point]:
        return tracker.points(source.run_id, name)

    end_ms = source.end_ms or source.start_ms
    single = [
        Point(name, value, source.steps.get(name, 0), end_ms)
        for name, value in source.metrics.items()
        if name.startswith(SINGLE)
    ]
    names = [name for name in source.metrics if not name.startswith(SINGLE)]
    with ThreadPoolExecutor(THREADS) as pool:
        return single + [point for points in pool.map(history, names) for point in points]
