"""Free what finished trials keep: which artifacts may go, and what can then not be reused.

Runs and their metrics stay: only objects go, and the run says so, so that the ledger trains such
a trial again instead of counting on it. Never touched: runs of registered versions (a version
loads its network from its run), encoders that a swap still needs, files that a run of another
study stands on, and whatever a study that is being run now has.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from sharedenc.errors import SpecError, TrackingError, check_choice
from sharedenc.storage import FolderStorage, Storage
from sharedenc.tracking import KIND, STUDY, RunRecord, Tracker, no_study
from sweeps.adopt import origin
from sweeps.graph import SEARCH_STAGE
from sweeps.lease import claims
from sweeps.standing import needs_of

Keep = Literal["best", "final", "none"]
PRUNED = "sharedenc.pruned"
_UNITS = {"d": 1.0, "w": 7.0, "h": 1 / 24}


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """One run whose artifacts go. ``again``: it was finished, and would have to be trained."""

    study: str
    cell: str
    name: str
    run_id: str
    key: str
    files: dict[str, int]
    local: dict[str, int]
    stored: dict[str, int]
    again: bool

    @property
    def bytes(self) -> int:
        """What is freed, in the artifact store, in work folders and in the storage."""
        return sum(sum(part.values()) for part in (self.files, self.local, self.stored))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One run that the policy would free, and why it is kept all the same."""

    study: str
    name: str
    run_id: str
    reason: str


@dataclass
class Plan:
    """What a prune does."""

    keep: Keep
    older_than_days: float
    doomed: list[Doomed] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Everything that is freed."""
        return sum(run.bytes for run in self.doomed)

    @property
    def again(self) -> list[str]:
        """Trials that cannot be reused any more, as ``study: name``."""
        return [f"{run.study}: {run.name}" for run in self.doomed if run.again]

    def to_dict(self) -> dict[str, Any]:
        """The object of ``sharedenc prune --json``, less what was done."""
        return {
            "keep": self.keep,
            "older_than_days": self.older_than_days,
            "bytes": self.bytes,
            "runs": [asdict(run) | {"bytes": run.bytes} for run in self.doomed],
            "kept": [asdict(run) for run in self.kept],
            "not_reusable": self.again,
            "notes": self.notes,
        }


def parse_age(text: str) -> float:
    """Days of ``90d``, ``2w``, ``12h``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([dwh])", text.strip())
    if not found:
        raise SpecError(f"--older-than {text!r} is no age; write 90d (days), 2w or 12h")
    return float(found[1]) * _UNITS[found[2]]


@dataclass
class Pruner:
    """Plans and does it.

    Args:
        runs_dir: Work folders of trials, found by key; None to leave them alone.
        storage: Resume checkpoints, found by key; None to leave them alone.
        now: Epoch seconds.
    """

    tracker: Tracker
    runs_dir: Path | None = None
    storage: Storage | None = None
    now: Callable[[], float] = time.time

    def plan(
        self, studies: Sequence[str], keep: Keep = "final", older_than_days: float = 0
    ) -> Plan:
        """What goes of the named studies (all, when none is named), and what stays and why.

        Raises:
            TrackingError: there is no such study, or it is being run now.
        """
        check_choice("keep", keep, get_args(Keep))
        everything = self._read(studies)
        plan = Plan(keep, older_than_days)
        chosen = [name for name in (studies or everything) if self._is_idle(name, everything, plan)]
        wanted: list[RunRecord] = []
        for name in chosen:
            wanted += _candidates(everything[name], keep)
        old_ms = (self.now() - older_than_days * 86400) * 1000
        wanted = [record for record in wanted if (record.end_ms or record.start_ms) <= old_ms]
        reasons = self._protected(everything, {record.run_id for record in wanted})
        busy = {
            record.tags.get("sharedenc.key")
            for records in everything.values()
            for record in records
            if record.tags.get(KIND) == "trial" and record.tags.get("sharedenc.state") != "done"
        }
        names = self.storage.list("checkpoints") if self.storage is not None else []
        for record in wanted:
            reason = reasons.get(record.run_id)
            row = self._doomed(record, names, busy)
            if reason is None:
                if row.bytes or (row.again and not record.tags.get(PRUNED)):
                    plan.doomed.append(row)
            elif row.files:
                plan.kept.append(
                    Kept(study=row.study, name=row.name, run_id=row.run_id, reason=reason)
                )
        return plan

    def carry_out(self, plan: Plan, done: Callable[[Doomed], None] = lambda run: None) -> None:
        """Free it. A run is marked before its first object goes: what stops half-way is no lie.

        Raises:
            TrackingError: an object is still there after it was deleted.
        """
        today = datetime.fromtimestamp(self.now(), timezone.utc).strftime("%Y-%m-%d")
        for run in plan.doomed:
            if run.again:
                self.tracker.tag(run.run_id, {PRUNED: today})
            if run.files:
                self.tracker.delete_files(run.run_id, list(run.files))
            for name in run.stored:
                assert self.storage is not None
                self.storage.remove(name)
            for folder in {str(Path(path).parent) for path in run.local}:
                shutil.rmtree(folder, ignore_errors=True)
            done(run)

    def _read(self, studies: Sequence[str]) -> dict[str, list[RunRecord]]:
        """The runs of every study: others may stand on what these have."""
        everything = {name: self.tracker.runs(name) for name in self.tracker.studies()}
        for name in studies:
            if name not in everything:
                raise TrackingError(no_study(name, everything))
        return everything

    def _is_idle(self, study: str, everything: dict[str, list[RunRecord]], plan: Plan) -> bool:
        parent = next((r for r in everything[study] if r.tags.get(KIND) == "study"), None)
        if parent is None:
            return False
        for claim in claims(parent.tags):
            if claim.dead_here() is not True:
                plan.notes.append(f"{study}: left alone, it is being run by {claim}")
                return False
        return True

    def _protected(
        self, everything: dict[str, list[RunRecord]], doomed: set[str]
    ) -> dict[str, str]:
        """Runs that keep their artifacts whatever the policy says, and why."""
        reasons: dict[str, str] = {}
        for version in self.tracker.versions():
            name = f"{version.model} version {version.version}"
            alias = f" ({', '.join(version.aliases)})" if version.aliases else ""
            found = re.match(r"runs:/([0-9a-f]{32})", version.source)
            for run_id in {version.run_id, found[1] if found else ""} - {""}:
                reasons[run_id] = f"registered as {name}{alias}"
        for records in everything.values():
            by_name = {r.name: r for r in records if not r.tags.get("sharedenc.superseded")}
            for record in records:
                if record.tags.get(KIND) != "trial":
                    continue
                if record.tags.get("sharedenc.state") != "done":
                    for need in needs_of(record):
                        if need in by_name:
                            reason = f"{record.name} of study {record.tags.get(STUDY)} needs it"
                            reasons.setdefault(origin(by_name[need]), reason)
                elif origin(record) != record.run_id and record.run_id not in doomed:
                    reason = f"study {record.tags.get(STUDY)} reuses it ({record.name})"
                    if not record.tags.get(PRUNED):
                        reasons.setdefault(origin(record), reason)
        return reasons

    def _doomed(self, record: RunRecord, names: Sequence[str], busy: set[str | None]) -> Doomed:
        tags = record.tags
        key = tags.get("sharedenc.key", "")
        study = tags.get(STUDY, "")
        # A trial that is not done goes on from what is there by key, in whichever study.
        free = bool(key) and key not in busy
        mine = [n for n in names if n.startswith(f"checkpoints/{key}/")] if free else []
        final = tags.get("sharedenc.stage") != SEARCH_STAGE
        return Doomed(
            study=study,
            cell=tags.get("sharedenc.cell", ""),
            name=record.name,
            run_id=record.run_id,
            key=key,
            files=self.tracker.files(record.run_id),
            local=self._local(study, key) if free else {},
            stored={name: self._size(name) for name in mine},
            again=final
            and tags.get("sharedenc.state") == "done"
            and not tags.get("sharedenc.superseded"),
        )

    def _local(self, study: str, key: str) -> dict[str, int]:
        if self.runs_dir is None:
            return {}
        study_dir = self.runs_dir / "studies" / study
        folders = [study_dir / kind / key[:16] for kind in ("trials", "search")]
        files = [path for folder in folders for path in folder.glob("*") if path.is_file()]
        return {str(path): path.stat().st_size for path in files}

    def _size(self, name: str) -> int:
        """Bytes of a stored file, where its size can be had without fetching it."""
        if isinstance(self.storage, FolderStorage):
            return (self.storage.folder / name).stat().st_size
        return 0


def _candidates(records: Sequence[RunRecord], keep: Keep) -> list[RunRecord]:
    """Trials that have ended and that ``keep`` does not keep."""
    trials = [r for r in records if r.tags.get(KIND) == "trial"]
    done = [r for r in trials if r.tags.get("sharedenc.state") in ("done", "stopped")]
    kept: set[str] = set()
    finals = [
        record
        for record in done
        if record.tags.get("sharedenc.state") == "done"
        and record.tags.get("sharedenc.stage") != SEARCH_STAGE
        and not record.tags.get("sharedenc.superseded")
    ]
    if keep == "final":
        kept = {record.run_id for record in finals}
    elif keep == "best":
        best: dict[str, RunRecord] = {}
        for record in finals:
            cell = record.tags.get("sharedenc.cell", "")
            if cell not in best or _score(record) > _score(best[cell]):
                best[cell] = record
        kept = {record.run_id for record in best.values()}
    return [
        record
        for record in done
        if record.run_id not in kept
        # What was stopped in a final trial goes on at the next invocation.
        and (record in finals or _is_over(record))
    ]


def _is_over(record: RunRecord) -> bool:
    tags = record.tags
    searched = tags.get("sharedenc.stage") == SEARCH_STAGE
    return searched or bool(tags.get("sharedenc.superseded"))


def _score(record: RunRecord) -> float:
    score = record.metrics.get("score", -math.inf)
    return -math.inf if math.isnan(score) else score
