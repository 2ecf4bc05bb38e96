"""What a worker gets of a trial: plain values and places, made by the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.graph import SEARCH_STAGE, Node
from sweeps.inputs import Inputs, Places
from sweeps.order import Demand
from sweeps.resolver import baseline_scores
from sweeps.resources import loaders
from sweeps.state import Row
from sweeps.study import Study


@dataclass(frozen=True, kw_only=True)
class Payloads:
    """Makes the input of a started row; see `sweeps.worker`."""

    study: Study
    inputs: Inputs
    places: Places
    workers: int | None
    checkpoint_every: str
    rerun: frozenset[str]
    reuse: bool = True
    taps_budget_bytes: int = 0

    def make(self, rows: Mapping[str, Row], row: Row, demand: Demand) -> dict[str, Any]:
        """JSON values; no credential is in them. ``demand`` is what the trial has been given."""
        node, trial = row.node, row.trial
        assert trial is not None, "a row that starts has a trial"
        search = node.stage == SEARCH_STAGE
        places = self.places
        return {
            "node": node.id,
            "trial": trial.to_dict(),
            "pack": str(self.inputs.data.root),
            "pack_digest": self.inputs.data.digest,
            "cache_dir": None if places.cache_dir is None else str(places.cache_dir.resolve()),
            "storage": places.storage,
            "weights": self.inputs.weights[node.cell.backbone][0],
            "parent": self._parent(rows, node),
            "work_dir": str(places.work_dir(self.inputs.name, trial).resolve()),
            "device": trial.numerics.device,
            "workers": loaders(demand, self.workers),
            "plugins": list(self.study.plugins),
            "keep": not search,
            "predictions": not search,
            "test": not search,
            "tracking_uri": places.tracking_uri,
            "run_id": row.run_id,
            "checkpoint_every": self.checkpoint_every,
            # The default of the machine that it runs on.
            "drain_file": None,
            # Asked for again: what earlier attempts left is forgotten, once.
            "fresh": self._is_fresh(rows, row),
            "baselines": dict(baseline_scores(node, rows)),
            "taps_budget_bytes": self.taps_budget_bytes,
            "attempt": row.attempts,
        }

    def _is_fresh(self, rows: Mapping[str, Row], row: Row) -> bool:
        if self.reuse and row.node.id not in self.rerun:
            return False
        if row.attempts != 1 or row.preemptions:
            return False
        # What its search has trained in this invocation, with the same key, is it.
        trained = (rows[name] for name in row.node.after)
        won = any(r.trial == row.trial and r.state == "done" and not r.reused for r in trained)
        return not won

    def _parent(self, rows: Mapping[str, Row], node: Node) -> dict[str, str] | None:
        if node.cell.source is None:
            return None
        row = rows[node.needs[0]]
        assert row.trial is not None, "its parent is done"
        path = self.places.work_dir(self.inputs.name, row.trial).resolve() / "best.safetensors"
        return {"path": str(path), "run_id": row.run_id, "key": row.trial.key}
