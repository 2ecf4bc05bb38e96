"""The rows of a study in the tracking server: the driver's side.

The driver creates a row for every trial before anything runs, finds what is done already, and
writes what no worker can: skipped trials, trials whose worker died, and what Ctrl-C stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sharedenc.data.classes import ClassList
from sharedenc.errors import TrackingError
from sharedenc.spec import State
from sharedenc.tracking import MlflowTracker, RunRecord, Tracker, no_study
from sharedenc.training.job import trial_tags
from sweeps.brackets import CUT
from sweeps.graph import SEARCH_STAGE, Node
from sweeps.state import Row

TRACEBACK_CHARS = 4000
REUSED = "reused: done in an earlier invocation"


@dataclass
class Ledger:
    """The rows of one study on one data set (its name, digest and classes)."""

    tracker: Tracker
    study: str
    data: str
    digest: str
    classes: ClassList
    parent_id: str = ""
    _known: dict[tuple[bool, str], RunRecord] = field(default_factory=dict)

    def open(self, settings: Mapping[str, Any], command: str) -> None:
        """Find or create the parent run, note this invocation, and read what is there."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        tags = {
            "sharedenc.data": self.data,
            "sharedenc.data_digest": self.digest,
            "sharedenc.classes": json.dumps(self.classes.names),
            "sharedenc.settings": json.dumps(settings),
            f"sharedenc.invocation.{now}": command[-1000:],
        }
        self.parent_id = self.tracker.study(self.study, tags)
        for record in self.tracker.runs(self.study):
            key = record.tags.get("sharedenc.key")
            if record.tags.get("sharedenc.kind") == "trial" and key:
                slot = (record.tags.get("sharedenc.stage") == SEARCH_STAGE, key)
                if not _is_settled(self._known.get(slot)):
                    self._known[slot] = record

    def reused(self, nodes: Sequence[Node]) -> dict[str, tuple[State, str]]:
        """State and reason of trials that this study has settled already, by content key.

        A search trial that its bracket has cut stays cut.
        """
        reused: dict[str, tuple[State, str]] = {}
        for node in nodes:
            record = self._record(node)
            if record is not None and _is_settled(record):
                cut = record.tags.get("sharedenc.reason", "")
                state = record.tags["sharedenc.state"]
                reused[node.id] = ("done", REUSED) if state == "done" else ("stopped", cut)
        return reused

    def _record(self, node: Node) -> RunRecord | None:
        return self._known.get((node.stage == SEARCH_STAGE, node.trial.key))

    def create(self, rows: Mapping[str, Row]) -> None:
        """Give every row its run: the known one, or a new one that waits."""
        for row in rows.values():
            record = self._record(row.node)
            if record is None:
                tags = self._tags(row.node)
                run = self.tracker.child(self.study, self.parent_id, row.node.id, tags)
                row.run_id = run.run_id
                continue
            row.run_id = record.run_id
            row.attempts = int(record.tags.get("sharedenc.attempt", "0"))
            if row.state != "waiting":
                score = record.metrics.get("score")
                row.score = row.score if score is None else score
            else:
                again = self.tracker.resume(row.run_id)
                again.tags({"sharedenc.traceback": "", "sharedenc.failure_kind": ""})
                again.end("waiting", "")

    def started(self, row: Row) -> None:
        """Say that a trial has been given to a worker."""
        self._tag(row, {"sharedenc.state": "running", "sharedenc.attempt": str(row.attempts)})

    def ended(self, row: Row) -> None:
        """Write an end that the worker may not have written itself."""
        if row.state == "done":
            return
        details = {"sharedenc.failure_kind": row.kind} if row.kind else {}
        if row.traceback:
            details["sharedenc.traceback"] = row.traceback[-TRACEBACK_CHARS:]
        run = self.tracker.resume(row.run_id)
        if details:
            run.tags(details)
        run.end(row.state, row.reason or None)

    def summary(self, tags: Mapping[str, str], files: Sequence[tuple[Path, str]] = ()) -> None:
        """Tags and files (path, folder) of the parent run."""
        parent = self.tracker.resume(self.parent_id)
        parent.tags(tags)
        for path, folder in files:
            parent.artifact(path, folder)

    def close(self, state: str, reason: str | None = None) -> None:
        """End the parent run; the next invocation opens it again."""
        self.tracker.resume(self.parent_id).end(state, reason)

    def _tags(self, node: Node) -> dict[str, Any]:
        tags = trial_tags(
            node.trial, study=self.study, stage=node.stage, data=self.data, classes=self.classes
        )
        return {**tags, "sharedenc.attempt": "0", "sharedenc.state": "waiting"}

    def _tag(self, row: Row, tags: Mapping[str, str]) -> None:
        self.tracker.resume(row.run_id).tags(tags)


def _is_settled(record: RunRecord | None) -> bool:
    if record is None:
        return False
    state, reason = (record.tags.get(f"sharedenc.{name}", "") for name in ("state", "reason"))
    return state == "done" or (state == "stopped" and reason.startswith(CUT))


@dataclass(frozen=True)
class StudyPage:
    """Where MLflow's UI shows a study: its experiment, and the paths of two pages."""

    experiment_id: str
    runs_path: str
    compare_path: str


def find_study(uri: str, study: str) -> StudyPage | None:
    """The pages of a study's trials in MLflow's UI; None when there is no such study."""
    from mlflow import MlflowClient

    experiment = MlflowClient(tracking_uri=uri).get_experiment_by_name(study)
    if experiment is None:
        return None
    number = experiment.experiment_id
    trials = [
        record.run_id
        for record in MlflowTracker(uri).runs(study)
        if record.tags.get("sharedenc.kind") == "trial"
        and record.tags.get("sharedenc.stage") != SEARCH_STAGE
    ]
    tight = (",", ":")
    query = urlencode(
        {
            "runs": json.dumps(trials, separators=tight),
            "experiments": json.dumps([number]),
        }
    )
    return StudyPage(number, f"/#/experiments/{number}/runs", f"/#/compare-runs?{query}")


def status(tracker: Tracker, study: str) -> dict[str, Any]:
    """The object of ``sharedenc sweep status --json``, read from the server.

    Raises:
        TrackingError: there is no such study.
    """
    records = tracker.runs(study)
    if not any(r.tags.get("sharedenc.kind") == "study" for r in records):
        raise TrackingError(no_study(study, tracker.studies()))
    cells: list[dict[str, Any]] = []
    searches: list[dict[str, Any]] = []
    for record in records:
        if record.tags.get("sharedenc.kind") == "trial":
            searched = record.tags.get("sharedenc.stage") == SEARCH_STAGE
            (searches if searched else cells).append(_row_of(record))
    return {
        "study": study,
        "cells": cells,
        "searches": searches,
        "exit_code": exit_code([c["state"] for c in cells], [s["state"] for s in searches]),
    }


def exit_code(cells: Sequence[str], searches: Sequence[str] = ()) -> int:
    """0 when every cell is done and no search failed; 1 otherwise. A cut search is no failure."""
    good = all(state == "done" for state in cells)
    return 0 if good and all(state in ("done", "stopped") for state in searches) else 1


def _row_of(record: RunRecord) -> dict[str, Any]:
    tags = record.tags
    return {
        "cell": tags.get("sharedenc.cell", ""),
        "name": record.name,
        "state": tags.get("sharedenc.state", ""),
        "reason": tags.get("sharedenc.reason", ""),
        "key": tags.get("sharedenc.key", ""),
        "run_id": record.run_id,
        "attempts": int(tags.get("sharedenc.attempt", "0")),
        "score": record.metrics.get("score"),
    }
