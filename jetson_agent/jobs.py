"""What there is to time: from the versions of a registry to jobs, in the order of their use."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jetson_agent.identity import Device
from jetson_agent.protocol import (
    MODEL_FILE,
    ExportManifest,
    Int8Recipe,
    Load,
    ProtocolError,
    bench_key,
    comparison_architecture,
)
from jetson_agent.registry import ModelVersion
from jetson_agent.timing import Settings

# What a sweep with a latency budget waits for.
FIRST_PRECISIONS = ("fp32", "int8")
# The two networks of a pair that runs one after the other, and the one that does both.
COMPARED = ("seg", "det", "dual")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A version whose tags could be read."""

    version: ModelVersion
    manifest: ExportManifest


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a job; `candidates` are the versions that have its architecture, newest first."""

    file: str
    architecture: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One timing: a file, or (three `parts`) seg and det after one another against dual."""

    key: str
    architecture: str
    precision: str
    load: Load
    parts: tuple[Part, ...]

    @property
    def compares(self) -> bool:
        return len(self.parts) > 1

    @property
    def newest(self) -> Candidate:
        return self.parts[-1].candidates[0]

    @property
    def what(self) -> str:
        """For people."""
        name = f"{self.newest.version.name} {self.precision} {self.load}"
        return f"{name} against seg and det" if self.compares else name

    @property
    def order(self) -> tuple[int, str, str, str]:
        """What somebody waits for comes first: an untrained graph holds up a whole sweep."""
        quick = self.load == "single" and self.precision in FIRST_PRECISIONS
        untrained = any(c.manifest.untrained for part in self.parts for c in part.candidates)
        rank = 3 if self.compares else 2 if not quick else 0 if untrained else 1
        return rank, self.newest.version.model, self.precision, self.load


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What times here, as it is now: device, settings and what the backend can do.

    `precisions` are those to be timed whatever a version asks for, if not None.
    """

    device: Device
    settings: Settings
    can: Sequence[str]
    recipe: Int8Recipe
    loads: Sequence[Load]
    precisions: Sequence[str] | None = None

    @property
    def mode(self) -> str:
        return self.device.mode(self.settings.threads)

    def key(self, architecture: str, precision: str, load: Load) -> str:
        return bench_key(
            device=self.device.name,
            architecture=architecture,
            precision=precision,
            load=load,
            mode=self.mode,
            backend=self.settings.backend,
            runtime=self.settings.runtime,
            settings=self.settings.text,
        )


@dataclass(kw_only=True)
class Plan:
    """`jobs` in the order of their use; `lacking` counts by precision what cannot be timed here."""

    jobs: list[Job] = field(default_factory=list)
    already: set[str] = field(default_factory=set)
    lacking: Counter[str] = field(default_factory=Counter)


def read_candidates(
    versions: Iterable[ModelVersion], select: Sequence[str]
) -> tuple[list[Candidate], list[tuple[ModelVersion, str]]]:
    """Versions that this agent understands, newest first, and the others with the reason.

    Args:
        select: Shell patterns of model names; none means all.
    """
    found: list[Candidate] = []
    skipped: list[tuple[ModelVersion, str]] = []
    for version in sorted(versions, key=lambda v: (v.created_ms, int(v.version)), reverse=True):
        if select and not any(fnmatch.fnmatchcase(version.model, p) for p in select):
            continue
        try:
            manifest = ExportManifest.from_tags(version.tags, run_id=version.run_id)
            if MODEL_FILE not in manifest.files:
                raise ProtocolError(f"there is no {MODEL_FILE} among its files")
        except ProtocolError as error:
            skipped.append((version, str(error)))
            continue
        found.append(Candidate(version=version, manifest=manifest))
    return found, skipped


def make_plan(candidates: Sequence[Candidate], bench: Bench, done: Mapping[str, str]) -> Plan:
    """One job per architecture, precision and load whose key is not in `done`.

    A comparison of seg and det against dual comes once all three have figures of their own.

    Args:
        done: Key -> verdict of what need not be timed.
    """
    plan = Plan()
    files: dict[tuple[str, str], list[Candidate]] = {}
    names: dict[tuple[str, str], str] = {}
    for candidate in candidates:
        manifest = candidate.manifest
        asked = manifest.precisions if bench.precisions is None else bench.precisions
        for precision in dict.fromkeys(asked):
            found = manifest.file_for(precision, bench.recipe) if precision in bench.can else None
            if found is None:
                plan.lacking[precision] += 1
                continue
            name, architecture = found
            files.setdefault((architecture, precision), []).append(candidate)
            names.setdefault((architecture, precision), name)
    for (architecture, precision), group in files.items():
        part = Part(
            file=names[architecture, precision], architecture=architecture, candidates=tuple(group)
        )
        for load in bench.loads:
            _add(plan, bench, precision, load, architecture, (part,), done)
    for (_, precision), parts in _compared(files, names).items():
        digest = comparison_architecture([part.architecture for part in parts])
        for load in bench.loads:
            keys = [bench.key(part.architecture, precision, load) for part in parts]
            if all(done.get(key) in ("valid", "suspect") for key in keys):
                _add(plan, bench, precision, load, digest, parts, done)
    plan.jobs.sort(key=lambda job: job.order)
    return plan


def _add(
    plan: Plan,
    bench: Bench,
    precision: str,
    load: Load,
    architecture: str,
    parts: tuple[Part, ...],
    done: Mapping[str, str],
) -> None:
    key = bench.key(architecture, precision, load)
    if key in done:
        plan.already.add(key)
        return
    plan.jobs.append(
        Job(key=key, architecture=architecture, precision=precision, load=load, parts=parts)
    )


def _compared(
    files: Mapping[tuple[str, str], Sequence[Candidate]], names: Mapping[tuple[str, str], str]
) -> dict[tuple[tuple[str, str], str], tuple[Part, ...]]:
    """(data, backbone) and precision -> parts seg, det and dual, each the newest of its graph."""
    newest: dict[tuple[tuple[str, str], str], dict[str, Part]] = {}
    for (architecture, precision), group in files.items():
        manifest = group[0].manifest
        if manifest.graph in COMPARED:
            graphs = newest.setdefault(((manifest.data, manifest.backbone), precision), {})
            part = Part(
                file=names[architecture, precision],
                architecture=architecture,
                candidates=tuple(group),
            )
            graphs.setdefault(manifest.graph, part)
    return {
        place: tuple(graphs[graph] for graph in COMPARED)
        for place, graphs in newest.items()
        if set(graphs) == set(COMPARED)
    }
