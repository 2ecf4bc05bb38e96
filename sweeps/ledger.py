"""The rows of a study in the tracking server: the driver's side.

The driver creates a row for every trial before anything runs, finds what is done already, in this
study or in another one on the same data, and writes what no worker can: skipped trials, trials
whose worker died, and what Ctrl-C stopped.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from sharedenc.data.classes import ClassList
from sharedenc.errors import SpecError
from sharedenc.redact import hide_credentials
from sharedenc.spec import Cell, Numerics, Trial
from sharedenc.tracking import KIND, STUDY, THREADS, MlflowTracker, RunHandle, RunRecord, Tracker
from sharedenc.training.job import trial_tags
from sweeps.adopt import OWN, adopt
from sweeps.brackets import CUT
from sweeps.differences import content_of, differences, flat, nearest, told
from sweeps.fusion import alone_s, shared_part
from sweeps.graph import SEARCH_STAGE
from sweeps.proposals import Proposal
from sweeps.standing import exit_code, row_tags, status, together
from sweeps.state import Row, Settled
from sweeps.verify import Verifier

__all__ = ["Ledger", "Measured", "Reuse", "StudyPage", "exit_code", "find_study", "status"]

Reuse = Literal["strict", "compatible", "none"]

TRACEBACK_CHARS = 4000
REUSED = "reused: done in an earlier invocation"
KEY, COMPATIBLE = "sharedenc.key", "sharedenc.compatible_key"
MOST_MEASURED, MOST_COMPARED, MANY = 500, 20, 100


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a finished trial on this data took, in seconds of wall time.

    Of one that trained with others ``seconds_per_epoch`` is what it would take alone, and its peak
    of memory, which was that of them all, is 0: unknown.
    """

    cell: Cell
    image_px: int
    batch_size: int
    numerics: Mapping[str, str]
    device: str
    seconds_per_epoch: float
    epochs: int
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class _Hit:
    """A finished run that stands for a trial; ``foreign``: the row still needs a run of its own."""

    record: RunRecord
    settled: Settled
    foreign: bool


@dataclass
class Ledger:
    """The rows of one study on one data set (its name, digest and classes).

    ``folder`` keeps what has been verified from one invocation to the next.
    """

    tracker: Tracker
    study: str
    data: str
    digest: str
    classes: ClassList
    parent_id: str = ""
    folder: Path | None = None
    reuse: Reuse = "strict"
    rerun: frozenset[str] = frozenset()
    _records: list[RunRecord] = field(default_factory=list)
    _by_id: dict[str, RunRecord] = field(default_factory=dict)
    _own: dict[tuple[bool, str], list[RunRecord]] = field(default_factory=dict)
    _hits: dict[str, _Hit | None] = field(default_factory=dict)
    _why: dict[str, str] = field(default_factory=dict)
    _by_cell: dict[str, list[RunRecord]] = field(default_factory=dict)
    _proposals: dict[str, dict[int, Proposal]] = field(default_factory=dict)
    _run_key: dict[str, str] = field(default_factory=dict)
    _rows: Mapping[str, Row] = field(default_factory=dict)
    _alone: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._verifier = Verifier(self.tracker, self.folder)

    # What is there.

    def read(self) -> None:
        """Read the study's rows, writing nothing; for a plan. Fine where there is no study."""
        trials = [r for r in self.tracker.runs(self.study) if r.tags.get(KIND) == "trial"]
        self._records = trials
        self._by_id = {record.run_id: record for record in trials}
        self._run_key = {r.run_id: r.tags.get(KEY, "") for r in trials}
        self._own = {}
        for record in reversed(trials):
            for name in (f"key {record.tags.get(KEY)}", f"name {record.name}"):
                self._own.setdefault((_is_search(record), name), []).append(record)

    def open(self, settings: Mapping[str, Any], command: str) -> None:
        """Find or create the parent run, note this invocation, and read what is there."""
        self.attach()
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        tags = {
            "sharedenc.data": self.data,
            "sharedenc.data_digest": self.digest,
            "sharedenc.classes": json.dumps(self.classes.names),
            "sharedenc.settings": json.dumps(settings),
            f"sharedenc.invocation.{now}": hide_credentials(command)[-1000:],
        }
        self.tracker.study(self.study, tags)
        self.read()

    def attach(self) -> str:
        """Find or create the parent run and return its id; what a lease needs before `open`."""
        if not self.parent_id:
            self.parent_id = self.tracker.study(self.study, {})
        return self.parent_id

    def lookup(
        self,
        trials: Sequence[tuple[str, Trial]],
        *,
        reuse: Reuse = "strict",
        rerun: Collection[str] = (),
        searches: Mapping[str, str] | None = None,
    ) -> dict[str, Settled]:
        """Which trials are done already, by node id. Writes nothing.

        This study first, then every other study on the server. A hit counts only when its
        artifacts' bytes have the recorded SHA-256; those of search trials are not needed.

        Args:
            trials: Node ids and what they train.
            reuse: `strict`: the same key; `compatible`: the same apart from numerics; `none`.
            rerun: Node ids that are to be trained again.
            searches: Digest of the search by node id, for search trials.
        """
        self.reuse, self.rerun = reuse, frozenset(rerun)
        searches = searches or {}
        wanted: dict[str, Trial] = {}
        for name, trial in trials:
            if name in self.rerun:
                self._miss(name, trial, "--rerun asks for it")
            elif reuse == "none":
                self._miss(name, trial, "--reuse none")
            else:
                wanted[name] = trial
        self._look(wanted, searches, KEY, {n: t.key for n, t in wanted.items()})
        if reuse == "compatible":
            left = {name: trial for name, trial in wanted.items() if self._hits.get(name) is None}
            keys = {name: trial.compatible_key for name, trial in left.items()}
            self._look(left, searches, COMPATIBLE, keys)
        self._verifier.save()
        hits = ((name, self._hits.get(name)) for name in wanted)
        return {name: hit.settled for name, hit in hits if hit is not None}

    def settled(self, row: Row) -> Settled | None:
        """What `SweepState` asks of a row whose trial is known.

        A trial that `lookup` has not seen is looked up now. A hit of another study gets its run
        here. None: it has to be trained, and its run says what it trains.
        """
        name, trial = row.node.id, row.trial
        assert trial is not None, "asked only when it is known"
        if name not in self._hits:
            searches = {name: row.node.search} if row.node.search else {}
            self.lookup([(name, trial)], reuse=self.reuse, rerun=self.rerun, searches=searches)
        hit = self._hits[name]
        if hit is None:
            self.resolved(row)
            return None
        if not hit.foreign or not self.parent_id:
            return hit.settled
        return self._adopt(row, hit)

    def why_not(self, trial: Trial) -> str:
        """Why no finished trial stands for this one, in one line.

        Which part of the key differs from the nearest finished trial of its cell, in this study or
        else in others on the same data; ``no run of this cell yet`` when there is none.
        """
        known = self._why.get(trial.key)
        if known:
            return known
        now = flat(trial.content())
        near = nearest(now, self._done_of(trial.cell))
        return "no run of this cell yet" if near is None else told(near)

    def proposed(self, search: str, number: int) -> Proposal | None:
        """What an earlier invocation, or another study, proposed for a search's trial."""
        if search not in self._proposals:
            found = [r for r in self._records if r.tags.get("sharedenc.search") == search]
            elsewhere = self.tracker.find("sharedenc.search", [search], limit=200)
            others = [r for r in elsewhere.get(search, []) if r.tags.get(STUDY) != self.study]
            # Later ones win: the oldest of other studies, then this study's own.
            self._proposals[search] = dict(filter(None, map(_proposal, [*others, *found])))
        return self._proposals[search].get(number)

    def measured(self) -> list[Measured]:
        """Finished trials on this data, of all studies, newest first."""
        tags = {"sharedenc.state": "done"}
        name = "sharedenc.data_digest"
        found = self.tracker.find(name, [self.digest], tags=tags, limit=MOST_MEASURED)
        return [m for m in map(_measured, found.get(self.digest, [])) if m is not None]

    # What is written.

    def create(self, rows: Mapping[str, Row]) -> None:
        """Give every row its run: the known one, or a new one that waits."""
        taken: set[str] = set()
        missed = [r for r in rows.values() if r.trial and self._hits.get(r.node.id) is None]
        self._load_cells(dict.fromkeys(row.node.cell.name for row in missed))
        for row in rows.values():
            hit = self._hits.get(row.node.id)
            if hit is not None and not hit.foreign:
                self._use(row, hit.record, taken)
        new: list[Row] = []
        for row in rows.values():
            if not row.run_id:
                record = self._unfinished(row, taken)
                if record is None:
                    new.append(row)
                else:
                    self._use(row, record, taken)
                    self._wait_again(row, record)
        # A large study makes its rows several at a time; a small one in its order.
        with ThreadPoolExecutor(THREADS if len(new) > MANY else 1) as pool:
            list(pool.map(self._new, new))
        self._rows = rows
        self._write_rows()

    def _write_rows(self) -> None:
        ids = [row.run_id for row in self._rows.values()]
        self.tracker.tag(self.parent_id, row_tags(ids))

    def resolved(self, row: Row) -> None:
        """Make the row's run say which trial it is; a run of another trial is left alone."""
        assert row.trial is not None, "called when it is known"
        if not self.parent_id or not row.run_id:
            return
        key = row.trial.key
        if self._run_key.get(row.run_id) == key:
            return
        record = self._by_id.get(row.run_id)
        if record is not None and not _is_blank(record):
            self._new(row)
            self._write_rows()
        else:
            self.tracker.tag(row.run_id, self._tags(row))
            self._run_key[row.run_id] = key

    def started(self, row: Row) -> None:
        """Say that a trial has been given to a worker."""
        run = self.tracker.resume(row.run_id)
        run.tags({"sharedenc.state": "running", "sharedenc.attempt": str(row.attempts)})

    def again(self, row: Row) -> None:
        """Say that a trial waits once more, after a preemption or a fault of its machine."""
        run = self.tracker.resume(row.run_id)
        run.tags({"sharedenc.failure_kind": row.kind, "sharedenc.attempt": str(row.attempts)})
        run.end("waiting", row.reason)

    def waits(self, row: Row, reason: str) -> None:
        """Say why a row was not started in this invocation; the next one forgets it."""
        self.tracker.tag(row.run_id, {"sharedenc.reason": reason})

    def ended(self, row: Row) -> None:
        """Write an end that the worker may not have written itself."""
        if row.state == "done" or row.reused or not row.run_id:
            return
        details = {"sharedenc.failure_kind": row.kind} if row.kind else {}
        if row.traceback:
            # What is cut first may lose the part by which a credential is known.
            details["sharedenc.traceback"] = hide_credentials(row.traceback)[-TRACEBACK_CHARS:]
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

    # Looking up.

    def _look(
        self, trials: Mapping[str, Trial], searches: Mapping[str, str], tag: str, keys: Any
    ) -> None:
        own: dict[str, list[RunRecord]] = {}
        for record in reversed(self._records):
            own.setdefault(record.tags.get(tag, ""), []).append(record)
        left = self._judge(trials, searches, {n: own.get(keys[n], []) for n in trials})
        away = [n for n in left if not any(_asked_again(r) for r in own.get(keys[n], []))]
        # One question tells whether other studies have anything at all on this data.
        digest, done = "sharedenc.data_digest", {"sharedenc.state": "done"}
        if len(away) > 1 and not self._elsewhere(digest, [self.digest], done, 1):
            self._alone = True
            return
        wanted = sorted({keys[n] for n in away})
        found = self._elsewhere(tag, wanted, {}, 20)
        self._judge(
            {n: trials[n] for n in away}, searches, {n: found.get(keys[n], []) for n in away}
        )

    def _elsewhere(
        self, tag: str, values: Sequence[str], tags: Mapping[str, str], limit: int
    ) -> dict[str, list[RunRecord]]:
        """Runs of other studies by the value of a tag, newest first; no empty lists."""
        found = self.tracker.find(tag, values, tags=tags, limit=limit, but=self.study)
        return {value: records for value, records in found.items() if records}

    def _judge(
        self,
        trials: Mapping[str, Trial],
        searches: Mapping[str, str],
        candidates: Mapping[str, Sequence[RunRecord]],
    ) -> list[str]:
        """Take the first candidate of each trial that will do; return the names without one."""

        def judge(name: str) -> bool:
            for record in candidates[name]:
                hit = self._hit(name, trials[name], record, searches.get(name))
                if hit is not None:
                    with self._lock:
                        self._hits[name] = hit
                    return True
            with self._lock:
                self._hits.setdefault(name, None)
            return False

        with ThreadPoolExecutor(THREADS) as pool:
            good = list(pool.map(judge, trials))
        return [name for name, found in zip(trials, good, strict=True) if not found]

    def _hit(self, name: str, trial: Trial, record: RunRecord, search: str | None) -> _Hit | None:
        tags = record.tags
        stage_fits = _is_search(record) == (search is not None)
        cut = search is not None and _is_cut(record) and tags.get("sharedenc.search") == search
        here = tags.get(STUDY) == self.study
        if tags.get("sharedenc.state") != "done":
            if not (cut or (search is not None and here and _is_cut(record))):
                return None
        elif tags.get("sharedenc.superseded"):
            return None
        elif search is None and not stage_fits:
            return None
        elif search is None:
            problem = _pruned(record) or self._verifier.problem(record)
            if problem:
                with self._lock:
                    self._why[trial.key] = f"{_where(record, self.study)}: {problem}"
                return None
        how = self._how(trial, record)
        settled = self._settled(trial, record, how, search)
        return _Hit(record, settled, foreign=not (here and stage_fits))

    def _how(self, trial: Trial, record: RunRecord) -> str:
        """In what a compatible trial differs; empty for the same key."""
        if record.tags.get(KEY) == trial.key:
            return ""
        now = flat(trial.content())
        parts = differences(content_of(record, now), now)
        return told([d for d in parts if d.part != "parent"]) if parts else "its numerics"

    def _settled(self, trial: Trial, record: RunRecord, how: str, search: str | None) -> Settled:
        tags = record.tags
        state = tags["sharedenc.state"]
        here = tags.get(STUDY) == self.study
        place = "study" if here else f"other study {tags.get(STUDY, '')}"
        reason = tags.get("sharedenc.reason", "")
        if state == "done":
            reason = REUSED if here else f"reused: done in study {tags.get(STUDY, '')}"
            reason += f" (compatible: {how})" if how else ""
        history: list[tuple[int, float]] = []
        if search is not None:
            # Brackets compare the rank, which is the score where a trial says none.
            name = "rank" if "rank" in record.metrics else "score"
            last = _epochs(record)
            for step, value in self.tracker.history(record.run_id, name):
                if step <= last and (not history or history[-1][0] != step):
                    history.append((step, value))
        return Settled(
            state="done" if state == "done" else "stopped",
            reason=reason,
            score=record.metrics.get("score", math.nan),
            run_id=record.run_id,
            reused=place + (", compatible" if how else ""),
            attempts=_attempts(record) if here else 0,
            history=history,
            trial=_trained(trial, record) if how else None,
        )

    def _miss(self, name: str, trial: Trial, reason: str) -> None:
        self._hits[name] = None
        self._why[trial.key] = reason

    def _done_of(self, cell: Cell) -> list[RunRecord]:
        """Finished trials of a cell: this study's, else the newest of other studies."""
        self._load_cells([cell.name])
        return self._by_cell[cell.name]

    def _load_cells(self, cells: Iterable[str]) -> None:
        """Read the finished trials of cells: one question for each that this study has none of."""
        new: dict[str, list[RunRecord]] = {n: [] for n in cells if n not in self._by_cell}
        self._by_cell |= new
        for record in reversed(self._records):
            name = record.tags.get("sharedenc.cell", "")
            done = record.tags.get("sharedenc.state") == "done"
            if name in new and done and len(self._by_cell[name]) < MOST_COMPARED:
                self._by_cell[name].append(record)
        left = [name for name in new if not self._by_cell[name]]
        if left and not self._alone:
            tags = {"sharedenc.state": "done", "sharedenc.data_digest": self.digest}
            self._by_cell |= self._elsewhere("sharedenc.cell", left, tags, MOST_COMPARED)

    # Rows and runs.

    def _unfinished(self, row: Row, taken: set[str]) -> RunRecord | None:
        """The run of this study that the row goes on with: of its key, else a blank of its name."""

        def free(name: str) -> list[RunRecord]:
            found = self._own.get((row.node.stage == SEARCH_STAGE, name), [])
            return [record for record in found if record.run_id not in taken]

        if row.trial is not None:
            for record in free(f"key {row.trial.key}"):
                if self._goes_on(row, record):
                    return record
        named = free(f"name {row.node.id}")
        if row.trial is None:
            # Very likely the one that it will turn out to be; `resolved` makes sure.
            named.sort(key=_is_blank)
            return next((r for r in named if not r.tags.get("sharedenc.superseded")), None)
        return next((record for record in named if _is_blank(record)), None)

    def _goes_on(self, row: Row, record: RunRecord) -> bool:
        """Whether an unfinished or unusable run is taken up again rather than replaced."""
        tags = record.tags
        if tags.get("sharedenc.superseded"):
            return False
        if tags.get("sharedenc.state") != "done" and not _is_cut(record):
            return row.node.id not in self.rerun or _asked_again(record)
        # It is finished and will not do: its artifacts are gone, or it is to be trained again.
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.tracker.tag(record.run_id, {"sharedenc.superseded": now})
        return False

    def _use(self, row: Row, record: RunRecord, taken: set[str]) -> None:
        taken.add(record.run_id)
        row.run_id = record.run_id
        row.attempts = _attempts(record)
        if record.tags.get("sharedenc.state") == "done":
            row.score = record.metrics.get("score", row.score)

    def _wait_again(self, row: Row, record: RunRecord) -> None:
        """Set an unfinished run back to waiting."""
        if record.tags.get("sharedenc.state") == "done" or _is_cut(record):
            return
        tags = {"sharedenc.traceback": "", "sharedenc.failure_kind": ""}
        if row.trial is not None:
            tags |= self._tags(row)
            self._run_key[record.run_id] = row.trial.key
        tags["sharedenc.attempt"] = str(row.attempts)
        run = self.tracker.resume(row.run_id)
        run.tags(tags)
        run.end("waiting", "")

    def _new(self, row: Row) -> RunHandle:
        name = row.node.id
        run = self.tracker.child(self.study, self.parent_id, name, self._tags(row))
        row.run_id, row.attempts = run.run_id, 0
        self._run_key[row.run_id] = "" if row.trial is None else row.trial.key
        return run

    def _adopt(self, row: Row, hit: _Hit) -> Settled:
        record = self._by_id.get(row.run_id)
        if not row.run_id or (record is not None and not _is_blank(record)):
            self._new(row)
            self._write_rows()
        run = self.tracker.resume(row.run_id)
        # It keeps the source's key: a compatible trial is not found under another one later.
        assert row.trial is not None, "what was found had a key"
        tags = {name: value for name, value in self._tags(row).items() if name in OWN}
        tags |= {COMPATIBLE: row.trial.compatible_key, "sharedenc.reused": hit.settled.reused}
        adopt(self.tracker, hit.record, run, tags)
        run.end(hit.settled.state, hit.settled.reason)
        found = replace(hit.settled, run_id=row.run_id)
        self._hits[row.node.id] = _Hit(hit.record, found, foreign=False)
        return found

    def _tags(self, row: Row) -> dict[str, Any]:
        node, trial = row.node, row.trial
        tags: dict[str, Any] = {
            "sharedenc.stage": node.stage,
            "sharedenc.cell": node.cell.name,
            "sharedenc.needs": json.dumps([*node.needs, *node.after]),
            "sharedenc.attempt": "0",
            "sharedenc.state": "waiting",
        }
        if node.search is not None:
            tags |= {"sharedenc.search": node.search, "sharedenc.number": str(node.number)}
        if node.id in self.rerun:
            tags["sharedenc.rerun"] = "asked"
        if trial is None:
            return tags
        tags |= trial_tags(
            trial, study=self.study, stage=node.stage, data=self.data, classes=self.classes
        )
        if self._hits.get(node.id) is None:
            tags["sharedenc.why_not"] = self.why_not(trial)
        return tags


def _is_search(record: RunRecord) -> bool:
    return record.tags.get("sharedenc.stage") == SEARCH_STAGE


def _is_cut(record: RunRecord) -> bool:
    state, reason = (record.tags.get(f"sharedenc.{name}", "") for name in ("state", "reason"))
    return state == "stopped" and reason.startswith(CUT)


def _is_blank(record: RunRecord) -> bool:
    """Whether a run has said nothing yet that cannot be changed: it has never been trained."""
    return not record.params and record.tags.get("sharedenc.state") != "done"


def _asked_again(record: RunRecord) -> bool:
    """Whether a run stands for a --rerun that has not ended."""
    tags = record.tags
    return bool(tags.get("sharedenc.rerun")) and tags.get("sharedenc.state") != "done"


def _trained(asked: Trial, record: RunRecord) -> Trial | None:
    """The trial that a compatible run is of; None where the run does not say it."""
    try:
        content = json.loads(record.tags["sharedenc.content"])
        numerics = Numerics(**content["numerics"])
    except (KeyError, ValueError, TypeError):
        return None
    found = replace(asked, numerics=numerics, parent_key=content.get("parent"))
    return found if found.key == record.tags.get(KEY) else None


def _pruned(record: RunRecord) -> str:
    when = record.tags.get("sharedenc.pruned")
    return f"its artifacts were pruned on {when}" if when else ""


def _where(record: RunRecord, study: str) -> str:
    name = record.tags.get(STUDY, "")
    return "done in this study" if name == study else f"done in study {name}"


def _attempts(record: RunRecord) -> int:
    text = record.tags.get("sharedenc.attempt", "0")
    return int(text) if text.isdigit() else 0


def _epochs(record: RunRecord) -> int:
    """The last epoch; a finished trial's score is said once more at a step behind it."""
    return record.steps.get("lr", record.steps.get("score", 0))


def _proposal(record: RunRecord) -> tuple[int, Proposal] | None:
    try:
        content = json.loads(record.tags["sharedenc.content"])
        number = int(record.tags["sharedenc.number"])
        return number, Proposal(float(content["lr"]), content["recipe"]["scheduler"])
    except (KeyError, ValueError, TypeError):
        return None


def _measured(record: RunRecord) -> Measured | None:
    params, metrics, tags = record.params, record.metrics, record.tags
    try:
        epochs = _epochs(record)
        seconds = metrics["seconds"]
        cell = Cell.parse(tags["sharedenc.cell"])
        epoch_s = metrics.get("epoch_s", seconds / epochs)
        members = len(together(record)) or 1
        # Of older runs only who began together is known.
        mean = 1.0 / metrics["epoch_share"] if "epoch_share" in metrics else members
        return Measured(
            cell=cell,
            image_px=int(params["recipe.image_px"]),
            batch_size=int(params["recipe.batch_size"]),
            numerics={
                name.removeprefix("numerics."): value
                for name, value in params.items()
                if name.startswith("numerics.")
            },
            device=tags.get("sharedenc.device_name", ""),
            seconds_per_epoch=alone_s(epoch_s, shared_part(cell.backbone), mean),
            epochs=epochs,
            seconds=seconds,
            peak_memory_bytes=0 if members > 1 else int(metrics["peak_memory_bytes"]),
        )
    except (ValueError, ZeroDivisionError, LookupError, SpecError):  # a plugin's backbone
        return None


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
