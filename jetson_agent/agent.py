"""One pass of the agent: what is there to time, time it, keep it, send it."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jetson_agent.errors import AgentError, ServerError
from jetson_agent.identity import Device
from jetson_agent.outbox import Outbox
from jetson_agent.protocol import (
    MODEL_FILE,
    BenchResult,
    ExportManifest,
    Load,
    ProtocolError,
    bench_key,
)
from jetson_agent.registry import ModelVersion, Registry
from jetson_agent.timing import Settings, Stopped, Timing, sha256_of, time_file

Say = Callable[[str], None]
TimeFile = Callable[[Path, str, Load, Settings, Device, threading.Event], Timing]


class RefusedError(Exception):
    """A file that is not what its registration says; nothing of it is timed."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A version whose tags could be read."""

    version: ModelVersion
    manifest: ExportManifest


@dataclass(kw_only=True)
class Job:
    """One architecture, precision and load; `candidates` are the versions that have it."""

    precision: str
    load: Load
    candidates: list[Candidate]

    @property
    def order(self) -> tuple[str, str, str]:
        return self.candidates[0].version.model, self.precision, self.load


@dataclass(kw_only=True)
class Summary:
    """What one pass did; it is what ``once --json`` prints."""

    device: str
    timed: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    already_timed: int = 0
    sent: int = 0
    waiting: int = 0
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """1 if a file was refused, a model has no good answer or a result is not sent; else 0."""
        bad = [row for row in self.timed if row["verdict"] in ("failed", "wrong")]
        return 1 if self.refused or bad or self.waiting else 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold the lock of the state folder: two timings at once would spoil each other.

    Raises:
        AgentError: another agent holds it.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AgentError(
                f"another jetson-agent works with {state}: wait until it ends, or give another "
                "folder with --state-dir"
            ) from error
        yield


@dataclass(kw_only=True)
class Agent:
    """The agent's collaborators and choices.

    `precisions` is what the backend can do; downloads go to `work` and are deleted after their
    timing; `select` holds shell patterns of model names (none means all), `retry` verdicts whose
    timings are repeated.
    """

    registry: Registry
    outbox: Outbox
    device: Device
    settings: Settings
    precisions: Sequence[str]
    loads: Sequence[Load]
    work: Path
    say: Say
    stopping: threading.Event
    select: Sequence[str] = ()
    retry: Sequence[str] = ()
    time_model: TimeFile = time_file

    def once(self) -> Summary:
        """Time every architecture that is registered and not yet timed on this device."""
        summary = Summary(device=self.device.name)
        self._send(summary)
        candidates = self._read_candidates(summary)
        known = self.registry.bench_keys(self.device.name)
        done = {key for key, verdict in known.items() if verdict not in self.retry}
        done |= {result.key for result in self.outbox.pending()}
        jobs = self._plan(candidates, done, summary)
        if not jobs:
            self.say("nothing to do")
        for number, job in enumerate(jobs, start=1):
            if self.stopping.is_set():
                break
            try:
                result = self._run(job, summary)
            except Stopped:
                break
            if result is not None:
                self.outbox.put(result)
                summary.timed.append(_row(result))
                self.say(f"[{number}/{len(jobs)}] {describe(result)}")
                self._send(summary)
        summary.stopped = self.stopping.is_set()
        summary.waiting = len(self.outbox)
        return summary

    def _read_candidates(self, summary: Summary) -> list[Candidate]:
        """Versions that this agent understands, newest first; others are skipped by name."""
        found = []
        versions = self.registry.ready_versions()
        for version in sorted(versions, key=lambda v: (v.created_ms, int(v.version)), reverse=True):
            if self.select and not any(fnmatch.fnmatchcase(version.model, p) for p in self.select):
                continue
            try:
                manifest = ExportManifest.from_tags(version.tags, run_id=version.run_id)
                if MODEL_FILE not in manifest.files:
                    raise ProtocolError(f"there is no {MODEL_FILE} among its files")
            except ProtocolError as error:
                self._skip(summary, version, str(error))
                continue
            found.append(Candidate(version=version, manifest=manifest))
        return found

    def _skip(self, summary: Summary, version: ModelVersion, reason: str) -> None:
        summary.skipped.append({"model": version.name, "reason": reason})
        self.say(f"skipped {version.name}: {reason}")

    def _plan(self, candidates: Sequence[Candidate], done: set[str], summary: Summary) -> list[Job]:
        """One job per architecture, precision and load that is not in `done`, by model name."""
        jobs: dict[str, Job] = {}
        already: set[str] = set()
        for candidate in candidates:
            for precision in candidate.manifest.precisions:
                if precision not in self.precisions:
                    reason = f"backend {self.settings.backend} has no precision {precision}"
                    self._skip(summary, candidate.version, reason)
                    continue
                for load in self.loads:
                    key = self._key(candidate.manifest.architecture, precision, load)
                    if key in done:
                        already.add(key)
                    elif key in jobs:
                        jobs[key].candidates.append(candidate)
                    else:
                        jobs[key] = Job(precision=precision, load=load, candidates=[candidate])
        summary.already_timed = len(already)
        return sorted(jobs.values(), key=lambda job: job.order)

    def _key(self, architecture: str, precision: str, load: Load) -> str:
        return bench_key(
            device=self.device.name,
            architecture=architecture,
            precision=precision,
            load=load,
            mode=self.device.mode(self.settings.threads),
            backend=self.settings.backend,
            runtime=self.settings.runtime,
        )

    def _run(self, job: Job, summary: Summary) -> BenchResult | None:
        """Time the newest version of the job whose files are what they should be, if any is."""
        for candidate in job.candidates:
            version, manifest = candidate.version, candidate.manifest
            self.work.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="download-", dir=self.work) as folder:
                try:
                    model = fetch(self.registry, candidate, Path(folder))
                except (RefusedError, ServerError) as error:
                    row = {"model": version.name, "reason": str(error)}
                    if row not in summary.refused:
                        summary.refused.append(row)
                        self.say(f"refused {version.name}: {error}")
                    continue
                timing = self.time_model(
                    model, job.precision, job.load, self.settings, self.device, self.stopping
                )
            return BenchResult(
                device=self.device.name,
                architecture=manifest.architecture,
                precision=job.precision,
                load=job.load,
                mode=self.device.mode(self.settings.threads),
                backend=self.settings.backend,
                runtime=self.settings.runtime,
                verdict=timing.verdict,
                reasons=timing.reasons,
                metrics=timing.metrics,
                certificate={**timing.certificate, "files": manifest.files},
                model=version.model,
                version=version.version,
                study=manifest.study,
                backbone=manifest.backbone,
                graph=manifest.graph,
            )
        return None

    def _send(self, summary: Summary) -> None:
        """Send what is kept; what cannot be sent stays."""
        try:
            for result in self.outbox.pending():
                self.registry.report(result)
                self.outbox.sent(result)
                summary.sent += 1
        except ServerError as error:
            self.say(f"{len(self.outbox)} results wait in {self.outbox.folder}: {error}")


def fetch(registry: Registry, candidate: Candidate, folder: Path) -> Path:
    """Download a version's files and check each one's sha256; returns the ONNX file.

    Raises:
        RefusedError: a file is not the one that was registered.
    """
    for name, digest in candidate.manifest.files.items():
        path = registry.download(candidate.version, name, folder)
        if (actual := sha256_of(path)) != digest:
            raise RefusedError(
                f"sha256 of {name} is {actual}, but {digest} was registered: the file is not the "
                "one that was exported; export and register it again"
            )
    return folder / MODEL_FILE


def describe(result: BenchResult) -> str:
    """One line for people."""
    version = f" v{result.version}" if result.version else ""
    head = f"{result.model}{version} {result.precision} {result.load}"
    if result.metrics:
        m = result.metrics
        head += (
            f": p50 {m['latency_ms/p50']:.3g} ms, p99 {m['latency_ms/p99']:.3g} ms, "
            f"{m['throughput_qps']:.4g} queries/s, n = {m['n']:.0f}"
        )
    return f"{head}, {result.verdict}" + (
        f" ({' '.join(result.reasons)})" if result.reasons else ""
    )


def _row(result: BenchResult) -> dict[str, Any]:
    row = asdict(result)
    del row["certificate"]
    return {**row, "key": result.key}
