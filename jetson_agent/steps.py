"""The steps of a timing, each in a child process: build an engine, check it, time it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from jetson_agent.backends.base import Built, Samples
from jetson_agent.check import Check
from jetson_agent.conditions import Watch
from jetson_agent.engines import EngineCache, sha256_of
from jetson_agent.errors import BackendError
from jetson_agent.failures import FailureKind, classify
from jetson_agent.identity import Device
from jetson_agent.preflight import Limits, Preflight, wait
from jetson_agent.proc import child_environment, run_child
from jetson_agent.protocol import Load, slug
from jetson_agent.settings import Settings

Say = Callable[[str], None]


def agent_version() -> str:
    """Version of the installed distribution, or ``unknown`` in a bare source tree."""
    try:
        return metadata.version("sharedenc")
    except metadata.PackageNotFoundError:
        return "unknown"


class Stopped(Exception):
    """The user asked to stop while a model was being timed; there is no result."""


class ChildError(BackendError):
    """A child that gave no answer; `tail` is the end of what it printed."""

    def __init__(self, message: str, *, kind: FailureKind, lines: list[str], tail: str) -> None:
        super().__init__(message, kind=kind, lines=lines)
        self.tail = tail


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that can be timed; `cached` if it was there before, under `key`."""

    model: Path
    number: int
    key: str
    built: Built
    cached: bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """One timing of an engine, and what went on meanwhile."""

    engine: Engine
    samples: Samples
    conditions: dict[str, Any]


class Steps:
    """What the steps of one timing have in common; use it in a ``with`` block.

    Args:
        cache: Where engines and timing caches are kept; None for a folder that is deleted.
    """

    def __init__(
        self,
        settings: Settings,
        device: Device,
        stopping: threading.Event,
        say: Say,
        cache: Path | None,
    ) -> None:
        self.settings = settings
        self._device = device
        self._stopping = stopping
        self.say = say
        self._temporary = Path(tempfile.mkdtemp(prefix="jetson-agent-"))
        self._folder = cache or self._temporary
        self._cache = EngineCache(self._folder / "engines")

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def preflight(self) -> Preflight:
        """Wait for a cool and idle board. Raises `Stopped`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        limits = Limits(deadline_s=self.settings.preflight_s, folder=self._folder)
        found = wait(self._device, limits=limits, stopping=self._stopping, say=self.say)
        if self._stopping.is_set():
            raise Stopped
        return found

    def build(self, model: Path, precision: str, number: int, *, anew: bool = False) -> Engine:
        """The engine of build `number`, from 0; `anew` even if it is there already.

        Raises:
            BackendError: it cannot be built.
            Stopped: the user does not want to wait.
        """
        key = self._key(model, precision, number)
        if anew:
            self._cache.drop(key)
        if built := self._cache.get(key):
            return Engine(model=model, number=number, key=key, built=built, cached=True)
        # With a timing cache a build takes over what earlier ones have measured: two such builds
        # are one, and the spread between builds would be none.
        timing_cache = None
        if number == 0:
            timing_cache = self._folder / f"timing-{slug(self.settings.runtime)}.cache"
        answer = self._ask(
            self.settings.build_deadline_s,
            do="build",
            model=str(model.resolve()),
            precision=precision,
            folder=str(self._cache.workplace(key)),
            threads=self.settings.threads or 1,
            workspace_mib=self.settings.workspace_mib,
            timing_cache=str(timing_cache) if timing_cache else "",
        )
        built = self._cache.put(key, Built.from_json(answer["built"]))
        return Engine(model=model, number=number, key=key, built=built, cached=False)

    def check(self, engine: Engine, reference: Path | None) -> tuple[Check, dict[str, str]]:
        """Whether its outputs are right, and the type and shape of each; raises as `build`."""
        answer = self._ask(
            self.settings.run_deadline_s,
            do="check",
            model=str(engine.model.resolve()),
            built=engine.built.to_json(),
            reference=str(reference.resolve()) if reference else "",
            seed=self.settings.seed,
        )
        return Check.from_json(answer["check"]), answer["outputs"]

    def measure(self, engine: Engine, load: Load, profile: Path | None = None) -> Run:
        """Time it once; raises as `build`."""
        with Watch() as watch:
            answer = self._ask(
                self.settings.run_deadline_s,
                on_start=watch.begin,
                do="measure",
                built=engine.built.to_json(),
                load=load,
                warmup_s=self.settings.warmup_s,
                duration_s=self.settings.duration_s,
                seed=self.settings.seed,
                cuda_graph=self.settings.cuda_graph,
                profile=str(profile.resolve()) if profile else "",
            )
        samples = Samples.from_json(answer["samples"])
        return Run(engine=engine, samples=samples, conditions=watch.result(samples.wall_s))

    def evaluate(self, engine: Engine, deadline_s: float, **request: Any) -> dict[str, Any]:
        """Run many photos on it, see `jetson_agent.evaluate.answer`; raises as `build`."""
        return self._ask(deadline_s, do="evaluate", built=engine.built.to_json(), **request)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for what one step leaves beside its answer."""
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=self._temporary) as folder:
            yield Path(folder)

    def _key(self, model: Path, precision: str, number: int) -> str:
        # Flags follow from precision, workspace, the runtime's version and the agent's own.
        s = self.settings
        flags = [precision, s.workspace_mib, s.threads, s.runtime, agent_version()]
        text = json.dumps([s.backend, self._device.name, *flags, number, sha256_of(model)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _ask(
        self, deadline_s: float, on_start: Callable[[], None] | None = None, **request: Any
    ) -> dict[str, Any]:
        """Have a child do one step.

        The backend has a little less time than the child, so that it can end its tool and say so.
        """
        request["backend"] = self.settings.backend
        request["deadline_s"] = max(deadline_s - 5.0, 0.8 * deadline_s)
        with tempfile.TemporaryDirectory(prefix="step-", dir=self._temporary) as folder:
            request_path, answer_path = Path(folder, "request.json"), Path(folder, "answer.json")
            request_path.write_text(json.dumps(request))
            finished = run_child(
                [sys.executable, "-m", "jetson_agent.child", str(request_path), str(answer_path)],
                deadline_s=deadline_s,
                stopping=self._stopping,
                log=Path(folder, "child.log"),
                environment=child_environment(),
                on_start=on_start,
            )
            answer: dict[str, Any] | None = None
            if finished.returncode == 0 and answer_path.exists():
                answer = json.loads(answer_path.read_text())
        if finished.stopped:
            raise Stopped
        if answer is None:
            if finished.timed_out:
                message = f"It did not end within the deadline of {deadline_s:g} s."
            else:
                last = finished.tail.splitlines()[-1:] or ["it printed nothing"]
                message = f"The process that worked on it {finished.describe}: {last[0]}"
            found = classify(finished.tail, finished.returncode, finished.timed_out)
            raise ChildError(message, kind=found.kind, lines=found.lines, tail=finished.tail)
        if error := answer.get("error"):
            raise BackendError(error.pop("message"), **error)
        return answer


def merge_conditions(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What went on during several runs, in the shape of what went on during one.

    Time, energy and samples add up; of what has a start and an end the first start and the last
    end count, of highest and lowest values those of all; shares are means of runs of equal length.
    """
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(key for one in found for key in one):
        values = [one[name] for one in found if one.get(name) is not None]
        merged[name] = _merge(name, values) if values else None
    return merged


FIRST, LAST = ("start",), ("end", "counters", "interval_s", "error")
HIGHEST = ("max", "peak", "gpu_load_others", "share_of_cpu")
LOWEST = ("min", "idle", "free_memory_gib")
SUMMED = ("window_s", "own_cpu_s", "energy_j", "energy_s", "samples", "cpu_s", "tegrastats_cpu_s")


def _merge(name: str, values: list[Any]) -> Any:
    if name in FIRST:
        return values[0]
    if name in LAST:
        return values[-1]
    if isinstance(values[0], dict):
        if name in HIGHEST:
            keys = dict.fromkeys(key for value in values for key in value)
            return {key: max(v[key] for v in values if key in v) for key in keys}
        return merge_conditions(values)
    if isinstance(values[0], list):
        return list(dict.fromkeys(entry for value in values for entry in value))
    if not isinstance(values[0], (int, float)):
        return values[-1]
    if name in HIGHEST:
        return max(values)
    if name in LOWEST:
        return min(values)
    total = sum(values)
    return round(total if name in SUMMED else total / len(values), 6)
