"""The registry as the agent sees it, and its twin in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jetson_agent.protocol import READY, STATE_TAG, BenchResult


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
        """Versions with ``export.state=ready``, in no particular order."""

    def download(self, version: ModelVersion, name: str, folder: Path) -> Path:
        """Bring one file of the version into `folder`."""

    def bench_keys(self, device: str) -> dict[str, str]:
        """Bench key -> verdict of every timing of the device that is stored completely."""

    def report(self, result: BenchResult) -> str:
        """Store a result and return its run id.

        A key has one run: an incomplete one is completed, and a complete one is kept unless
        `replaces` says otherwise.
        """


def replaces(known_verdict: str, result: BenchResult) -> bool:
    """Whether a repeated timing takes the place of one that is stored with `known_verdict`.

    A valid figure stays, and no figure of any kind gives way to none.
    """
    if known_verdict == "suspect":
        return bool(result.metrics)
    return known_verdict != "valid"


@dataclass
class MemoryRegistry:
    """In-memory twin for tests; `files` maps (model, version, file name) to content."""

    versions: list[ModelVersion] = field(default_factory=list)
    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    results: dict[str, BenchResult] = field(default_factory=dict)

    def ready_versions(self) -> list[ModelVersion]:
        return [v for v in self.versions if v.tags.get(STATE_TAG) == READY]

    def download(self, version: ModelVersion, name: str, folder: Path) -> Path:
        path = folder / name
        path.write_bytes(self.files[version.model, version.version, name])
        return path

    def bench_keys(self, device: str) -> dict[str, str]:
        return {key: r.verdict for key, r in self.results.items() if r.device == device}

    def report(self, result: BenchResult) -> str:
        known = self.results.get(result.key)
        if known is None or replaces(known.verdict, result):
            self.results[result.key] = result
        return result.key
