"""A tracker in memory: for tests, and for training without a server."""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from sharedenc.errors import TrackingError
from sharedenc.redact import redacted
from sharedenc.tracking.seam import (
    KIND,
    MAX_PARAM,
    MAX_TAG,
    PARENT,
    REASON,
    REUSED_FROM,
    RUN_NAME,
    RUN_STATUS,
    STATE,
    STUDY,
    Point,
    RunRecord,
    Version,
    as_texts,
    metric_name,
    study_tags,
)


@dataclass
class _Kept:
    """What the memory twin knows of one run."""

    record: RunRecord
    # Name, step, time and text of a value -> value: what a server holds apart, NaN too.
    points: dict[tuple[str, int, int, str], float] = field(default_factory=dict)


class MemoryTracker:
    """Keeps runs in lists and artifacts in a folder (a temporary one unless given)."""

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="sharedenc-")
        self.folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self._runs: dict[str, _Kept] = {}
        self.registered: list[Version] = []

    def close(self) -> None:
        """Remove the temporary folder, if there is one."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def study(self, name: str, tags: Mapping[str, Any]) -> str:
        known = [r for r in self.runs(name) if r.tags[KIND] == "study"]
        run_id = known[0].run_id if known else self._create(name, {})
        self._set_tags(run_id, study_tags(name, "study", tags))
        return run_id

    def child(self, study: str, parent_id: str, name: str, tags: Mapping[str, Any]) -> MemoryRun:
        status = RUN_STATUS.get(str(tags.get(STATE)), "RUNNING")
        tags = {**study_tags(study, "trial", tags), PARENT: parent_id}
        return MemoryRun(self, self._create(name, tags, status))

    def resume(self, run_id: str) -> MemoryRun:
        self._change(run_id, status="RUNNING")
        return MemoryRun(self, run_id)

    def runs(self, study: str) -> list[RunRecord]:
        return [k.record for k in self._runs.values() if k.record.tags.get(STUDY) == study]

    def studies(self) -> list[str]:
        return sorted({kept.record.tags[STUDY] for kept in self._runs.values()})

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.points(run_id, metric)]

    def points(self, run_id: str, metric: str) -> list[Point]:
        wanted = metric_name(metric)
        found = [
            Point(name, value, step, ms)
            for (name, step, ms, _), value in self._kept(run_id).points.items()
            if name == wanted
        ]
        return sorted(found, key=lambda point: (point.step, point.at_ms))

    def record(self, run_id: str) -> RunRecord:
        return self._kept(run_id).record

    def find(
        self,
        tag: str,
        values: Sequence[str],
        *,
        tags: Mapping[str, str] = {},
        limit: int = 20,
        but: str = "",
    ) -> dict[str, list[RunRecord]]:
        newest = [kept.record for kept in reversed(self._runs.values())]
        others = [r for r in newest if r.tags.get(STUDY) != but or not but]
        wanted = [r for r in others if all(r.tags.get(n) == v for n, v in tags.items())]
        return {v: [r for r in wanted if r.tags.get(tag) == v][:limit] for v in values}

    def tag(self, run_id: str, values: Mapping[str, Any]) -> None:
        self._set_tags(run_id, as_texts(values, MAX_TAG))

    def untag(self, run_id: str, names: Collection[str]) -> None:
        tags = self._kept(run_id).record.tags
        self._change(run_id, tags={n: v for n, v in tags.items() if n not in names})

    def files(self, run_id: str, folders: Collection[str] | None = None) -> dict[str, int]:
        root = self.folder / self._kept(run_id).record.run_id
        files = {p.relative_to(root): p.stat().st_size for p in root.rglob("*") if p.is_file()}
        return {
            name.as_posix(): size
            for name, size in files.items()
            if folders is None or str(name.parent) in folders
        }

    def versions(self) -> list[Version]:
        return list(self.registered)

    def delete_files(self, run_id: str, names: Collection[str]) -> None:
        for name in names:
            (self.folder / run_id / name).unlink(missing_ok=True)

    def download(self, run_id: str, artifact: str, to: Path) -> Path:
        source = self.folder / run_id / artifact
        target = to / artifact
        if not source.exists():
            origin = self._kept(run_id).record.tags.get(REUSED_FROM)
            if origin:
                return self.download(origin, artifact, to)
            raise TrackingError(f"run {run_id} has no artifact {artifact!r}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        return target

    def _create(self, name: str, tags: Mapping[str, str], status: str = "RUNNING") -> str:
        run_id = uuid.uuid4().hex
        tags = {**tags, RUN_NAME: name}
        now = int(time.time() * 1000)
        self._runs[run_id] = _Kept(RunRecord(run_id, name, tags, {}, {}, status, now, None))
        return run_id

    def _kept(self, run_id: str) -> _Kept:
        try:
            return self._runs[run_id]
        except KeyError:
            raise TrackingError(f"there is no run {run_id!r}.") from None

    def _change(self, run_id: str, **values: Any) -> None:
        kept = self._kept(run_id)
        kept.record = replace(kept.record, **values)

    def _set_tags(self, run_id: str, values: Mapping[str, str]) -> None:
        self._change(run_id, tags={**self._kept(run_id).record.tags, **values})


class MemoryRun:
    """A run of a :class:`MemoryTracker`."""

    def __init__(self, tracker: MemoryTracker, run_id: str) -> None:
        self._tracker = tracker
        self._run_id = run_id

    @property
    def run_id(self) -> str:
        return self._run_id

    def params(self, values: Mapping[str, Any]) -> None:
        known = self._tracker._kept(self._run_id).record.params
        texts = as_texts(values, MAX_PARAM)
        changed = [name for name, text in texts.items() if known.get(name, text) != text]
        if changed:
            raise TrackingError(f"params never change, but {', '.join(changed)} would.")
        self._tracker._change(self._run_id, params={**known, **texts})

    def metrics(self, values: Mapping[str, float], step: int, at_ms: int | None = None) -> None:
        kept = self._tracker._kept(self._run_id)
        ms = int(time.time() * 1000) if at_ms is None else at_ms
        named = {metric_name(name): float(value) for name, value in values.items()}
        kept.points |= {(name, step, ms, str(value)): value for name, value in named.items()}
        steps = {**kept.record.steps, **dict.fromkeys(named, step)}
        self._tracker._change(self._run_id, metrics={**kept.record.metrics, **named}, steps=steps)

    def points(self, points: Sequence[Point]) -> None:
        for point in points:
            self.metrics({point.name: point.value}, point.step, point.at_ms)

    def logged_steps(self, metric: str = "score") -> set[int]:
        return {step for step, _ in self._tracker.history(self._run_id, metric)}

    def tags(self, values: Mapping[str, Any]) -> None:
        self._tracker._set_tags(self._run_id, as_texts(values, MAX_TAG))

    def artifact(self, path: Path, folder: str = "") -> None:
        if not path.is_file():
            raise TrackingError(f"artifact {path} is not a file.")
        target = self._tracker.folder / self._run_id / PurePosixPath(folder) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = redacted(path)
        if text is None:
            shutil.copyfile(path, target)
        else:
            target.write_text(text)

    def keep_in(self, folder: Path) -> None:
        """Nothing is ever unsent here."""

    def deliver(self, wait_s: float) -> bool:
        return True

    def end(self, state: str, reason: str | None = None, *, wait_s: float | None = None) -> None:
        self.tags({STATE: state} | ({REASON: reason} if reason is not None else {}))
        now = int(time.time() * 1000)
        self._tracker._change(self._run_id, status=RUN_STATUS[state], end_ms=now)
