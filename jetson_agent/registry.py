"""The registry as the agent sees it, and its twin in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from jetson_agent.claims import Claims, MemoryLedger
from jetson_agent.errors import ServerError
from jetson_agent.protocol import CERTIFICATE_FILE, READY, STATE_TAG, BenchResult


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One registered version; `source` is where its folder of files lies."""

    model: str
    version: str
    run_id: str
    source: str
    tags: Mapping[str, str]
    created_ms: int = 0

    @property
    def name(self) -> str:
        return f"{self.model} v{self.version}"


class Registry(Protocol):
    """What the agent needs of a tracking server; errors are `jetson_agent.errors.ServerError`."""

    def ready_versions(self) -> list[ModelVersion]:
        """All versions with ``export.state=ready``, in no particular order."""

    def download(self, version: ModelVersion, name: str, folder: Path) -> Path:
        """Bring one file of the version into `folder`: whole, or not at all."""

    def bench_keys(self, device: str) -> dict[str, str]:
        """Bench key -> verdict of every timing of the device that is stored completely.

        Stale ones are left out: a board that has its old software back is timed anew. Cheap to
        ask while nothing changes.
        """

    def report(self, result: BenchResult, artifacts: Mapping[str, bytes] | None = None) -> str:
        """Store a result with its certificate and more files, and return its run id.

        A key has one run that counts: an incomplete one is completed, and a complete one is kept
        unless `replaces` says otherwise or it is stale. May be cut off anywhere and called again.
        Older runs that differ in `runtime` alone become stale.

        Args:
            artifacts: Relative path (``log.txt``, ``logs/build.txt``) -> content.
        """

    def claims(self, device: str) -> Claims:
        """Who does which job of the device."""


def replaces(known_verdict: str, result: BenchResult) -> bool:
    """Whether a repeated timing takes the place of one that is stored with `known_verdict`.

    A valid figure stays, and no figure of any kind gives way to none.
    """
    if known_verdict == "suspect":
        return bool(result.metrics)
    return known_verdict != "valid"


def differs_in_runtime_alone(tags: Mapping[str, str], result: BenchResult) -> bool:
    """Whether a bench run's tags are those of the same timing on other software."""
    runtime = tags.get("sharedenc.runtime", "")
    same = ("architecture", "precision", "load", "mode", "backend", "settings", "device")
    mine = result.to_tags()
    return runtime != result.runtime and all(
        tags.get(f"sharedenc.{name}", "") == mine[f"sharedenc.{name}"] for name in same
    )


def check_file_name(name: str) -> None:
    """Raise `ServerError` unless `name` is a plain file name."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ServerError(f"{name!r} is not a plain file name: nothing of it is downloaded")


def check_artifacts(artifacts: Mapping[str, bytes]) -> None:
    """Raise ValueError unless every name is a relative path that leaves the certificate alone."""
    for name in artifacts:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) in (".", CERTIFICATE_FILE):
            raise ValueError(f"artifact {name!r} is not a relative path of its own")


@dataclass
class MemoryRegistry:
    """In-memory twin for tests; `files` maps (model, version, file name) to content."""

    versions: list[ModelVersion] = field(default_factory=list)
    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    results: dict[str, BenchResult] = field(default_factory=dict)
    artifacts: dict[str, dict[str, bytes]] = field(default_factory=dict)
    # Bench key -> the runtime that made it stale.
    stale: dict[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    ledgers: dict[str, MemoryLedger] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def ready_versions(self) -> list[ModelVersion]:
        return [v for v in self.versions if v.tags.get(STATE_TAG) == READY]

    def download(self, version: ModelVersion, name: str, folder: Path) -> Path:
        check_file_name(name)
        content = self.files.get((version.model, version.version, name))
        if content is None:
            raise ServerError(f"there is no {name} of {version.name}")
        path = folder / name
        path.write_bytes(content)
        return path

    def bench_keys(self, device: str) -> dict[str, str]:
        with self._lock:
            return {
                key: result.verdict
                for key, result in self.results.items()
                if result.device == device and key not in self.stale
            }

    def report(self, result: BenchResult, artifacts: Mapping[str, bytes] | None = None) -> str:
        check_artifacts(artifacts or {})
        with self._lock:
            known = self.results.get(result.key)
            fresh = known is None or replaces(known.verdict, result) or result.key in self.stale
            if fresh and result != known:
                self.results[result.key] = replace(result)
                self.artifacts[result.key] = dict(artifacts or {})
                self.stale.pop(result.key, None)
                for key, other in self.results.items():
                    if differs_in_runtime_alone(other.to_tags(), result):
                        self.stale[key] = result.runtime
        return result.key

    def claims(self, device: str) -> Claims:
        with self._lock:
            return Claims(self.ledgers.setdefault(device, MemoryLedger(self.clock)))
