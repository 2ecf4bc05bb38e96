"""How a study ended: its rows, its rates, its exit code, and all of that as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.graph import SEARCH_STAGE
from sweeps.rates import Winner
from sweeps.standing import exit_code
from sweeps.state import Row

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """How a study ended.

    ``pack`` is the packed data set's folder; ``rates`` maps backbones to the one rate that serves
    their baselines; ``interrupted`` says what stopped it, ``exhausted`` which limit was reached.
    """

    study: str
    parent_id: str
    pack: Path
    rows: list[Row]
    winners: list[Winner] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    why_not: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: str = ""
    exhausted: str = ""

    @property
    def finals(self) -> list[Row]:
        """Rows of the study's cells, searches left out."""
        return [row for row in self.rows if row.node.stage != SEARCH_STAGE]

    @property
    def searches(self) -> list[Row]:
        """Rows of the learning-rate searches."""
        return [row for row in self.rows if row.node.stage == SEARCH_STAGE]

    @property
    def exit_code(self) -> int:
        """0 when all is done; 1: something failed, was skipped or not started; 130: stopped."""
        if self.interrupted:
            return INTERRUPTED
        return exit_code([row.state for row in self.finals], [row.state for row in self.searches])

    def to_dict(self) -> dict[str, Any]:
        """The object of ``sharedenc sweep --json``."""
        return {
            "study": self.study,
            "cells": [self._row(row) for row in self.finals],
            "searches": [self._row(row) for row in self.searches],
            "learning_rates": {w.group or w.cell: w.lr for w in self.winners},
            "seconds": round(self.seconds, 1),
            "stopped": self.interrupted or self.exhausted,
            "exit_code": self.exit_code,
        }

    def _row(self, row: Row) -> dict[str, Any]:
        trial = row.trial
        return {
            "cell": row.node.cell.name,
            "name": row.node.id,
            "stage": row.node.stage,
            "seed": row.node.seed,
            "lr": None if trial is None else trial.lr,
            "state": row.state,
            "reason": row.reason,
            "kind": row.kind,
            "key": "" if trial is None else trial.key,
            "run_id": row.run_id,
            "attempts": row.attempts,
            "preemptions": row.preemptions,
            "score": None if math.isnan(row.score) else row.score,
            "reused": row.reused,
            "why_not": "" if row.reused else self.why_not.get(row.node.id, ""),
        }
