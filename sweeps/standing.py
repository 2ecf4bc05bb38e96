"""How a study stands, read from the tracking server alone: ``sharedenc sweep status``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sharedenc.errors import TrackingError
from sharedenc.tracking import KIND, MAX_TAG, RunRecord, Tracker, no_study
from sharedenc.training.job import TOGETHER
from sweeps.graph import SEARCH_STAGE
from sweeps.lease import claims

ROWS = "sharedenc.rows."
"""Tags of the parent run that hold the run ids of the latest invocation's rows, in its order."""
_PER_TAG = MAX_TAG // 33


def row_tags(run_ids: Sequence[str]) -> dict[str, str]:
    """Tags of the parent run that say which runs are the study's rows now."""
    chunks = [run_ids[i : i + _PER_TAG] for i in range(0, len(run_ids), _PER_TAG)]
    tags = {f"{ROWS}{number}": ",".join(chunk) for number, chunk in enumerate(chunks)}
    # An empty one ends the list, so that a shorter one leaves nothing of a longer one behind.
    return tags | {f"{ROWS}{len(chunks)}": ""}


def rows_of(parent: RunRecord, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The study's rows in the order of its latest invocation; all trials where none is noted."""
    ids: list[str] = []
    number = 0
    while text := parent.tags.get(f"{ROWS}{number}", ""):
        ids += text.split(",")
        number += 1
    trials = {r.run_id: r for r in records if r.tags.get(KIND) == "trial"}
    if not ids:
        return [r for r in trials.values() if not r.tags.get("sharedenc.superseded")]
    return [trials[name] for name in ids if name in trials]


def status(tracker: Tracker, study: str) -> dict[str, Any]:
    """The object of ``sharedenc sweep status --json``, read from the server.

    Each cell has `state`, `attempts`, `score`, `waits_for` (``[{name, state}]``), `why` (one line
    on why it is where it is), `together` (names of the trials that it last trained with over one
    encoder), `reused` and `why_not`; ``run_by`` names who runs the study now.

    Raises:
        TrackingError: there is no such study.
    """
    records = tracker.runs(study)
    parent = next((r for r in records if r.tags.get(KIND) == "study"), None)
    if parent is None:
        raise TrackingError(no_study(study, tracker.studies()))
    rows = rows_of(parent, records)
    states = {record.name: record.tags.get("sharedenc.state", "") for record in rows}
    names = {record.run_id: record.name for record in rows}
    run_by = ", ".join(str(claim) for claim in claims(parent.tags) if claim.ticket)
    cells: list[dict[str, Any]] = []
    searches: list[dict[str, Any]] = []
    for record in rows:
        searched = record.tags.get("sharedenc.stage") == SEARCH_STAGE
        (searches if searched else cells).append(_row_of(record, states, names, bool(run_by)))
    return {
        "study": study,
        "run_by": run_by,
        "cells": cells,
        "searches": searches,
        "exit_code": exit_code([c["state"] for c in cells], [s["state"] for s in searches]),
    }


def exit_code(cells: Sequence[str], searches: Sequence[str] = ()) -> int:
    """0 when every cell is done and no search failed; 1 otherwise. A cut search is no failure."""
    good = all(state == "done" for state in cells)
    return 0 if good and all(state in ("done", "stopped") for state in searches) else 1


def together(record: RunRecord) -> list[str]:
    """Run ids of the trials that a trial last trained with, its own among them; empty alone."""
    try:
        return [str(name) for name in json.loads(record.tags.get(TOGETHER) or "[]")]
    except (ValueError, TypeError):
        return []


def _row_of(
    record: RunRecord, states: Mapping[str, str], names: Mapping[str, str], runs: bool
) -> dict[str, Any]:
    tags, params = record.tags, record.params
    state = tags.get("sharedenc.state", "")
    waits_for = []
    if state == "waiting":
        waits_for = [
            {"name": need, "state": states.get(need, "unknown")}
            for need in needs_of(record)
            if states.get(need) != "done"
        ]
    score = record.metrics.get("score", math.nan)
    return {
        "cell": tags.get("sharedenc.cell", ""),
        "name": record.name,
        "stage": tags.get("sharedenc.stage", ""),
        "seed": _number(params.get("seed", _content(tags, "seed")), int),
        "lr": _number(params.get("lr", _content(tags, "lr")), float),
        "state": state,
        "reason": tags.get("sharedenc.reason", ""),
        "why": _why(state, tags, waits_for, runs),
        "waits_for": waits_for,
        "together": [
            names.get(other, other) for other in together(record) if other != record.run_id
        ],
        "kind": tags.get("sharedenc.failure_kind", ""),
        "key": tags.get("sharedenc.key", ""),
        "run_id": record.run_id,
        "attempts": int(tags.get("sharedenc.attempt", "0") or 0),
        "score": None if math.isnan(score) else score,
        "reused": tags.get("sharedenc.reused", ""),
        "why_not": tags.get("sharedenc.why_not", ""),
    }


def _why(
    state: str, tags: Mapping[str, str], waits_for: Sequence[Mapping[str, str]], runs: bool
) -> str:
    """One line on why a row is where it is."""
    reason = tags.get("sharedenc.reason", "")
    if state != "waiting":
        return reason
    if reason:
        return reason
    if waits_for:
        return "needs " + ", ".join(f"{n['name']} ({n['state']})" for n in waits_for)
    return "waits for a free device" if runs else "waits for the same command to be run again"


def needs_of(record: RunRecord) -> list[str]:
    """Names of the trials that a trial waits for, as its run says."""
    try:
        return [str(name) for name in json.loads(record.tags.get("sharedenc.needs") or "[]")]
    except (ValueError, TypeError):
        return []


def _number(text: str, kind: Callable[[str], float]) -> float | None:
    """A number as `StudyResult.to_dict` has it; None where it is not known yet."""
    return kind(text) if text else None


def _content(tags: Mapping[str, str], name: str) -> str:
    try:
        return str(json.loads(tags["sharedenc.content"])[name])
    except (KeyError, ValueError, TypeError):
        return ""
