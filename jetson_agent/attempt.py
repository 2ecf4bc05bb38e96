"""One try of a job: fetch its files, look at them, build and time; and what follows a failure."""

from __future__ import annotations

import errno
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jetson_agent.artifacts import Artifacts, RefusedError
from jetson_agent.compare import compare_files
from jetson_agent.errors import BackendError, ServerError
from jetson_agent.failures import ACTIONS, Failure
from jetson_agent.jobs import Bench, Candidate, Job, Part
from jetson_agent.journal import Entry, State
from jetson_agent.onnxcheck import ModelRefused, check_file
from jetson_agent.protocol import QUANTIZED, REFERENCE_FILE
from jetson_agent.registry import Registry
from jetson_agent.stopping import StopFlag
from jetson_agent.timing import Stopped, Timing, time_file

# A job during which the agent was lost so often is given up: it may be what takes the board down.
MAX_INTERRUPTED = 3

Note = Callable[[State], None]


class NothingToTimeError(Exception):
    """No version that has the architecture of a job may be loaded."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The files of one part of a job, and the version that they are of."""

    candidate: Candidate
    model: Path
    reference: Path | None


@dataclass(kw_only=True)
class Workbench:
    """Where tries are made.

    Engines and timing caches go to `engines`. `refused` has the reason for each version, file and
    digest that was refused since this process began. The three functions are replaced in tests
    of what is around them.
    """

    artifacts: Artifacts
    engines: Path
    say: Callable[[str], None]
    stopping: StopFlag
    refused: dict[tuple[str, str, str], str] = field(default_factory=dict)
    time_model: Callable[..., Timing] = time_file
    compare_models: Callable[..., Timing] = compare_files
    check_model: Callable[..., object] = check_file

    def attempt(
        self, job: Job, bench: Bench, registry: Registry, entry: Entry, note: Note
    ) -> tuple[Timing, list[Candidate]]:
        """Try a job once; whatever is wrong with the model is in the timing.

        Args:
            note: Called as each state is reached.

        Returns:
            The timing, and the version that was timed for each part.

        Raises:
            NothingToTimeError, ServerError, Stopped: there is nothing to report.
            OSError: the disk does not take the files.
        """
        if entry.interrupted >= MAX_INTERRUPTED:
            return _given_up(entry), [part.candidates[0] for part in job.parts]
        try:
            fetched = [self._fetch(part, job, bench, registry, note) for part in job.parts]
        except (OSError, ServerError) as error:
            if _says_full(error):
                # So the next try has room; the job is not to blame, and keeps its tries.
                self.apply(Failure(kind="disk"), entry, bench)
            raise
        note("CHECKED")
        self.engines.mkdir(parents=True, exist_ok=True)
        settings = bench.settings
        if entry.workspace_mib:
            settings = replace(settings, workspace_mib=entry.workspace_mib)
        common = (job.precision, job.load, settings, bench.device, self.stopping)
        keywords = {"say": self.say, "cache": self.engines, "note": note}
        try:
            if job.compares:
                models = [found.model for found in fetched]
                timing = self.compare_models(models, *common, **keywords)
            else:
                [found] = fetched
                timing = self.time_model(
                    found.model, *common, reference=found.reference, **keywords
                )
        except (Stopped, ServerError):
            raise
        except Exception as error:  # a fault of ours must not end the daemon, nor be repeated
            timing = _broken(error)
        return timing, [found.candidate for found in fetched]

    def blocked(self, job: Job) -> bool:
        """Whether no version is left that may be loaded."""
        return any(
            all(self._name(part, candidate) in self.refused for candidate in part.candidates)
            for part in job.parts
        )

    def is_here(self, job: Job) -> bool:
        """Whether the job needs no download."""
        return all(
            any(
                self.artifacts.has(part.file, candidate.manifest.files[part.file])
                for candidate in part.candidates
            )
            for part in job.parts
        )

    def apply(self, failure: Failure, entry: Entry, bench: Bench) -> dict[str, Any]:
        """Do what the table of failures says before the next try; returns changes of the entry."""
        change = ACTIONS[failure.kind].change
        if change == "halve-workspace":
            whole = entry.workspace_mib or bench.settings.workspace_mib
            return {"workspace_mib": max(1, whole // 2)}
        if change in ("rebuild", "evict"):
            shutil.rmtree(self.engines, ignore_errors=True)
        if change == "evict":
            freed = self.artifacts.evict(keep=(), everything=True)
            self.say(f"deleted {freed / 2**20:.0f} MiB of downloaded files: the disk is full")
        return {}

    def _fetch(self, part: Part, job: Job, bench: Bench, registry: Registry, note: Note) -> Fetched:
        """The files of the newest version whose files are what they should be, if any is."""
        needed = {c.manifest.files[p.file] for p in job.parts for c in p.candidates}
        recipe = bench.recipe if job.precision in QUANTIZED else None
        for candidate in part.candidates:
            name = self._name(part, candidate)
            if name in self.refused:
                continue
            version, files = candidate.version, candidate.manifest.files
            reference = None
            try:
                with self.stopping.interruptible():
                    model = self.artifacts.fetch(
                        registry, version, part.file, files[part.file], needed
                    )
                    if REFERENCE_FILE in files and not job.compares:
                        reference = self.artifacts.fetch(
                            registry, version, REFERENCE_FILE, files[REFERENCE_FILE], needed
                        )
                note("FETCHED")
                self.check_model(model, quantised=recipe)
            except (RefusedError, ModelRefused) as error:
                self.refused[name] = str(error)
                self.say(f"refused {version.name}: {error}")
                continue
            return Fetched(candidate=candidate, model=model, reference=reference)
        raise NothingToTimeError

    @staticmethod
    def _name(part: Part, candidate: Candidate) -> tuple[str, str, str]:
        return candidate.version.name, part.file, candidate.manifest.files[part.file]


def _broken(error: Exception) -> Timing:
    """The timing of a model whose timing raised what it should not."""
    if isinstance(error, BackendError):
        failure = Failure(kind=error.kind, lines=error.lines, node=error.node)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        failure = Failure(kind="disk", lines=[str(error)])
    else:
        failure = Failure(kind="internal", lines=[f"{type(error).__name__}: {error}"])
    return Timing(
        verdict="failed",
        reasons=[f"The agent could not time it: {error}"],
        metrics={},
        certificate={"traceback": traceback.format_exc().splitlines()[-20:]},
        checked="unchecked",
        failure=failure,
    )


def _says_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a full disk."""
    while error is not None:
        # MLflow's client keeps of what went wrong in its threads nothing but the text.
        if os.strerror(errno.ENOSPC) in str(error) or os.strerror(errno.EDQUOT) in str(error):
            return True
        error = error.__cause__
    return False


def _given_up(entry: Entry) -> Timing:
    reason = (
        f"The agent was lost {entry.interrupted} times during this job (power cut, crash or kill), "
        "and does not try it again by itself."
    )
    return Timing(
        verdict="failed",
        reasons=[reason],
        metrics={},
        certificate={},
        checked="unchecked",
        failure=None,
    )
