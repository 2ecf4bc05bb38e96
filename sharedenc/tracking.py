"""Where a training says what it does: the ``Tracker`` seam, with an MLflow and a memory twin.

One study is one experiment with one parent run; one trial is one child run of it. Everything goes
through ``MlflowClient`` with an explicit URI: no active run, no process-wide tracking URI. A run
that cannot reach its server goes on; what it had to say waits in order, also on disk once the
caller names a folder (:meth:`RunHandle.keep_in`), and is sent with the next message.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from sharedenc.errors import TrackingError, nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

KIND, STUDY, STATE, REASON = (f"sharedenc.{name}" for name in ("kind", "study", "state", "reason"))
PARENT, RUN_NAME = "mlflow.parentRunId", "mlflow.runName"

MAX_TAG, MAX_PARAM, MAX_METRICS, MAX_PARAMS, PAGE = 5000, 6000, 1000, 100, 500
"""Lengths and batch sizes that every MLflow 3 server takes in one request."""

RUN_STATUS = {
    "waiting": "SCHEDULED",
    "running": "RUNNING",
    "done": "FINISHED",
    "stopped": "KILLED",
    "skipped": "KILLED",
    "failed": "FAILED",
}
"""MLflow's own status for each of our states."""

SPOOL = "unsent.jsonl"
PARENT_WAIT_S = 10.0
"""How long a study's parent run may take to appear after its experiment."""
END_WAIT_S, STOPPED_WAIT_S = 60.0, 3.0
"""How long the end of a run waits for a server that is away."""


@dataclass(frozen=True)
class RunRecord:
    """One run as read back. ``metrics`` holds the last value of each; times are epoch ms."""

    run_id: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    status: str
    start_ms: int
    end_ms: int | None


class RunHandle(Protocol):
    """One run that is being written. No method raises because a server is away."""

    @property
    def run_id(self) -> str: ...

    def params(self, values: Mapping[str, Any]) -> None:
        """Log values that never change; another value for a known name is a TrackingError."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log everything that belongs to one step in one request."""

    def tags(self, values: Mapping[str, Any]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file; it must stay where it is until :meth:`end` returns."""

    def keep_in(self, folder: Path) -> None:
        """Name the folder that keeps unsent messages; send what an earlier attempt left there."""

    def end(self, state: str, reason: str | None = None) -> None: ...


class Tracker(Protocol):
    """The runs of studies. Every implementation passes ``tests/contracts/tracker.py``."""

    def study(self, name: str, tags: Mapping[str, Any]) -> str:
        """Return the id of the study's parent run, found by tag or created, with ``tags`` set."""

    def child(self, study: str, parent_id: str, name: str, tags: Mapping[str, Any]) -> RunHandle:
        """Create a trial's run under ``parent_id``."""

    def resume(self, run_id: str) -> RunHandle:
        """Take a run up again; raises TrackingError when there is none."""

    def runs(self, study: str) -> list[RunRecord]:
        """Return every run of the study, its parent included, oldest first; [] if unknown."""

    def studies(self) -> list[str]:
        """Return the names of all studies, sorted."""

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return ``(step, value)`` of one metric in the order of steps."""

    def download(self, run_id: str, artifact: str, to: Path) -> Path:
        """Fetch an artifact (file or folder) to below ``to``; TrackingError when there is none."""


def hide_credentials(text: str) -> str:
    """Replace ``user:password`` of any URL in ``text`` by ``***``."""
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", text)


def no_study(study: str, names: Collection[str], where: str = "the tracking server") -> str:
    """Say that a study is not among ``names``, and which one may be meant."""
    known = ", ".join(sorted(names)) or "none"
    hint = nearest(study, names)
    return f"{hide_credentials(where)} has no study {study!r}; it has: {known}.{hint}"


def is_study(experiment: str) -> bool:
    """Whether an experiment's name is a study's: MLflow's own and the agent's are not."""
    return experiment != "Default" and not experiment.startswith("bench/")


def cause_of(error: BaseException) -> str:
    """Why a request failed, in one line: what the system says, if it is the system's fault.

    The libraries in between wrap that in several lines of their own names.
    """
    deepest, system = error, ""
    while True:
        if isinstance(deepest, OSError) and deepest.strerror:
            system = deepest.strerror
        below = deepest.__cause__ or deepest.__context__
        if below is None:
            break
        deepest = below
    lines = hide_credentials(str(error)).splitlines()
    return system or (lines[0][:300] if lines else type(error).__name__)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what MLflow and the network raise into a `TrackingError` of one line."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, ConnectionError, TimeoutError) as error:
        raise TrackingError(
            f"the MLflow server refused or did not answer: {cause_of(error)}"
        ) from error
    except OSError as error:
        raise TrackingError(hide_credentials(str(error))) from error


def metric_name(name: str) -> str:
    """Replace what MLflow does not take in a metric's name by ``_``."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _texts(values: Mapping[str, Any], longest: int) -> dict[str, str]:
    return {name: hide_credentials(str(value))[:longest] for name, value in values.items()}


def _study_tags(name: str, kind: str, tags: Mapping[str, Any]) -> dict[str, str]:
    return _texts({**tags, KIND: kind, STUDY: name}, MAX_TAG)


def check_server(uri: str, *, wait_s: float = 8.0) -> None:
    """Raise TrackingError, with what to do, unless a server answers at ``uri`` within ``wait_s``.

    Any HTTP answer counts, 401 too: whether the user may log in is found out by the first request.
    """
    shown = hide_credentials(uri)
    if urlsplit(uri).scheme not in ("http", "https"):
        raise TrackingError(
            f"tracking URI {shown!r} is not an http:// or https:// address. sharedenc always talks "
            "to an MLflow server: unset MLFLOW_TRACKING_URI for a private one, or start one with "
            "`mlflow server --backend-store-uri sqlite:///mlflow.db`."
        )
    bare = urlsplit(uri)
    address = f"{bare.scheme}://{bare.netloc.rpartition('@')[2]}{bare.path.rstrip('/')}/health"
    deadline = time.monotonic() + wait_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            with urllib.request.urlopen(address, timeout=max(0.5, left_s)):
                return
        except urllib.error.HTTPError as answer:
            answer.close()
            return
        except OSError as error:
            reason = getattr(error, "reason", error)
        if time.monotonic() + 1.0 >= deadline:
            raise TrackingError(
                f"no MLflow server answers at {shown} ({reason}). Start it, correct "
                "MLFLOW_TRACKING_URI, or unset MLFLOW_TRACKING_URI so that sharedenc starts a "
                "private server."
            )
        time.sleep(0.5)


class _ServerAway(Exception):
    """The request may succeed later: nobody answered, or the server is in trouble."""


class MlflowTracker:
    """Talks to one MLflow server.

    Raises:
        TrackingError: from the constructor, within about ten seconds, when no server answers.
    """

    def __init__(self, uri: str, *, wait_s: float = 8.0) -> None:
        # MLflow's own defaults keep a training waiting for four minutes per lost request.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        check_server(uri, wait_s=wait_s)
        from mlflow import MlflowClient

        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def study(self, name: str, tags: Mapping[str, Any]) -> str:
        experiment_id, created = self._experiment(name)
        # Experiment names are unique on the server, so whoever created it makes the parent run;
        # all others wait for that run, and make it only when its maker seems to have died.
        parent = None if created else self._parent(experiment_id, wait_s=PARENT_WAIT_S)
        if parent is None:
            self._create_run(experiment_id, name, _study_tags(name, "study", {}))
            parent = self._parent(experiment_id)
        if parent is None:
            raise TrackingError(f"the parent run of study {name!r} vanished right after creation.")
        run = MlflowRun(self._client, parent)
        run.tags(_study_tags(name, "study", tags))
        return parent

    def child(self, study: str, parent_id: str, name: str, tags: Mapping[str, Any]) -> MlflowRun:
        experiment_id, _ = self._experiment(study)
        run_id = self._create_run(
            experiment_id, name, {**_study_tags(study, "trial", tags), PARENT: parent_id}
        )
        status = RUN_STATUS.get(str(tags.get(STATE)), "RUNNING")
        if status != "RUNNING":
            self._call(lambda: self._client.update_run(run_id, status=status))
        return MlflowRun(self._client, run_id)

    def resume(self, run_id: str) -> MlflowRun:
        self._call(lambda: self._client.update_run(run_id, status="RUNNING"))
        return MlflowRun(self._client, run_id)

    def runs(self, study: str) -> list[RunRecord]:
        experiment = self._call(lambda: self._client.get_experiment_by_name(study))
        return [] if experiment is None else list(self._search(experiment.experiment_id))

    def studies(self) -> list[str]:
        names: list[str] = []
        token: str | None = None
        while True:
            search = partial(self._client.search_experiments, max_results=PAGE, page_token=token)
            page = self._call(search)
            names += [experiment.name for experiment in page if is_study(experiment.name)]
            token = page.token
            if not token:
                return sorted(names)

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        points = self._call(lambda: self._client.get_metric_history(run_id, metric_name(metric)))
        return sorted((point.step, point.value) for point in points)

    def download(self, run_id: str, artifact: str, to: Path) -> Path:
        to.mkdir(parents=True, exist_ok=True)
        try:
            found = self._call(lambda: self._client.download_artifacts(run_id, artifact, str(to)))
        except OSError as error:
            raise TrackingError(
                f"artifact {artifact!r} of run {run_id} cannot be downloaded: "
                f"{hide_credentials(str(error))}"
            ) from error
        path = Path(found)
        if not path.exists():
            raise TrackingError(f"run {run_id} has no artifact {artifact!r}.")
        return path

    def _experiment(self, name: str) -> tuple[str, bool]:
        """Return the experiment's id and whether this call created it."""
        from mlflow.exceptions import MlflowException

        known = self._call(lambda: self._client.get_experiment_by_name(name))
        if known is None:
            try:
                return str(_guarded(lambda: self._client.create_experiment(name))), True
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise _refused(error) from error
            except _ServerAway as error:
                raise TrackingError(str(error)) from error
            known = self._call(lambda: self._client.get_experiment_by_name(name))
        if known is None or known.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r} was deleted on the server. Take another --name, or restore "
                "it with `mlflow experiments restore`."
            )
        return str(known.experiment_id), False

    def _parent(self, experiment_id: str, *, wait_s: float = 0.0) -> str | None:
        deadline = time.monotonic() + wait_s
        while True:
            found = next(self._search(experiment_id, f"tags.`{KIND}` = 'study'"), None)
            if found is not None:
                return found.run_id
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.2)

    def _search(self, experiment_id: str, where: str = "") -> Iterator[RunRecord]:
        token: str | None = None
        while True:
            search = partial(
                self._client.search_runs,
                [experiment_id],
                filter_string=where,
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            page = self._call(search)
            yield from map(_record, page)
            token = page.token
            if not token:
                return

    def _create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        run = self._call(
            lambda: self._client.create_run(experiment_id, tags=dict(tags), run_name=name)
        )
        return str(run.info.run_id)

    def _call(self, request: Callable[[], Any]) -> Any:
        """Make a request that must be answered now."""
        from mlflow.exceptions import MlflowException

        try:
            return _guarded(request)
        except _ServerAway as error:
            raise TrackingError(
                f"MLflow server {hide_credentials(self.uri)} does not answer: {error}"
            ) from error
        except MlflowException as error:
            raise _refused(error) from error


class MlflowRun:
    """A run on a server, with a queue of messages that have not reached it yet."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._unsent: list[dict[str, Any]] = []
        self._spool: Path | None = None
        self._away = False

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def unsent(self) -> int:
        """Number of messages that have not reached the server."""
        return len(self._unsent)

    def params(self, values: Mapping[str, Any]) -> None:
        texts = list(_texts(values, MAX_PARAM).items())
        for start in range(0, len(texts), MAX_PARAMS):
            self._say("params", dict(texts[start : start + MAX_PARAMS]))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        items = [(metric_name(name), float(value)) for name, value in values.items()]
        for start in range(0, len(items), MAX_METRICS):
            self._say("metrics", dict(items[start : start + MAX_METRICS]), step=step)

    def tags(self, values: Mapping[str, Any]) -> None:
        texts = list(_texts(values, MAX_TAG).items())
        for start in range(0, len(texts), MAX_PARAMS):
            self._say("tags", dict(texts[start : start + MAX_PARAMS]))

    def artifact(self, path: Path, folder: str = "") -> None:
        if not path.is_file():
            raise TrackingError(f"artifact {path} is not a file.")
        self._say("artifact", {"path": str(path.resolve()), "folder": folder})

    def keep_in(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._spool = folder / SPOOL
        if self._spool.is_file():
            lines = self._spool.read_text().splitlines()
            self._unsent = [json.loads(line) for line in lines] + self._unsent
        self._flush(late=True)

    def end(self, state: str, reason: str | None = None) -> None:
        self.tags({STATE: state} | ({REASON: reason} if reason is not None else {}))
        self._say("end", {"status": RUN_STATUS[state]})
        # Whoever pressed Ctrl-C waits for this; everybody else has time.
        deadline = time.monotonic() + (STOPPED_WAIT_S if state == "stopped" else END_WAIT_S)
        while self._unsent and time.monotonic() < deadline:
            time.sleep(1.0)
            self._flush(late=True)
        if self._unsent:
            where = self._spool or "memory, lost when this process ends"
            log.warning("run %s: %d unsent messages are in %s", self.run_id, self.unsent, where)

    def _say(self, kind: str, values: dict[str, Any], *, step: int = 0) -> None:
        message = {"run_id": self._run_id, "kind": kind, "values": values, "step": step}
        self._unsent.append(message | {"ms": int(time.time() * 1000)})
        self._flush(late=len(self._unsent) > 1)

    def _flush(self, *, late: bool = False) -> None:
        """Send what waits, in order; on the first that finds no server, keep the rest on disk.

        ``late``: what waits was said earlier, so that a refusal cannot be told to who said it.
        """
        from mlflow.exceptions import MlflowException

        try:
            while self._unsent:
                message = self._unsent[0]
                try:
                    _guarded(partial(self._send, message))
                except (MlflowException, OSError) as error:
                    # A refused message is refused for ever: it must not block those behind it.
                    del self._unsent[0]
                    if not late:
                        raise _refused(error) from error
                    log.warning("run %s: server refused %s: %s", self.run_id, message, error)
                else:
                    del self._unsent[0]
        except _ServerAway as error:
            if not self._away:
                log.warning("run %s: MLflow is away, going on without it (%s)", self.run_id, error)
            self._away = True
            self._write_spool()
        else:
            self._away = False
            if self._spool is not None:
                self._spool.unlink(missing_ok=True)

    def _send(self, message: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run_id, kind, values = message["run_id"], message["kind"], message["values"]
        ms, step = message["ms"], message["step"]
        match kind:
            case "params":
                params = [Param(key, value) for key, value in values.items()]
                self._client.log_batch(run_id, params=params)
            case "metrics":
                points = [Metric(key, value, ms, step) for key, value in values.items()]
                self._client.log_batch(run_id, metrics=points)
            case "tags":
                tags = [RunTag(key, value) for key, value in values.items()]
                self._client.log_batch(run_id, tags=tags)
            case "artifact":
                self._client.log_artifact(run_id, values["path"], values["folder"] or None)
            case "end":
                self._client.set_terminated(run_id, status=values["status"], end_time=ms)

    def _write_spool(self) -> None:
        if self._spool is None:
            return
        part = self._spool.with_suffix(".part")
        part.write_text("".join(json.dumps(message) + "\n" for message in self._unsent))
        os.replace(part, self._spool)


def _guarded(request: Callable[[], Any]) -> Any:
    """Make one request; a server that is away, or has trouble of its own, is ``_ServerAway``."""
    import requests
    from mlflow.exceptions import MlflowException

    passing = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "IO_ERROR")
    try:
        return request()
    except MlflowException as error:
        if error.error_code in passing:
            raise _ServerAway(cause_of(error)) from error
        raise
    except requests.RequestException as error:
        if error.response is None or error.response.status_code >= 500:
            raise _ServerAway(cause_of(error)) from error
        raise


def _refused(error: Exception) -> TrackingError:
    return TrackingError(f"MLflow refused a request: {hide_credentials(str(error))}")


def _record(run: Run) -> RunRecord:
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        status=run.info.status,
        start_ms=run.info.start_time,
        end_ms=run.info.end_time,
    )


@dataclass
class _Kept:
    """What the memory twin knows of one run."""

    record: RunRecord
    points: list[tuple[str, int, float]] = field(default_factory=list)


class MemoryTracker:
    """Keeps runs in lists and artifacts in a folder (a temporary one unless given)."""

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="sharedenc-")
        self.folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self._runs: dict[str, _Kept] = {}

    def close(self) -> None:
        """Remove the temporary folder, if there is one."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def study(self, name: str, tags: Mapping[str, Any]) -> str:
        known = [r for r in self.runs(name) if r.tags[KIND] == "study"]
        run_id = known[0].run_id if known else self._create(name, {})
        self._set_tags(run_id, _study_tags(name, "study", tags))
        return run_id

    def child(self, study: str, parent_id: str, name: str, tags: Mapping[str, Any]) -> MemoryRun:
        status = RUN_STATUS.get(str(tags.get(STATE)), "RUNNING")
        tags = {**_study_tags(study, "trial", tags), PARENT: parent_id}
        return MemoryRun(self, self._create(name, tags, status))

    def resume(self, run_id: str) -> MemoryRun:
        self._change(run_id, status="RUNNING")
        return MemoryRun(self, run_id)

    def runs(self, study: str) -> list[RunRecord]:
        return [k.record for k in self._runs.values() if k.record.tags.get(STUDY) == study]

    def studies(self) -> list[str]:
        return sorted({kept.record.tags[STUDY] for kept in self._runs.values()})

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        points = self._kept(run_id).points
        return sorted((step, value) for name, step, value in points if name == metric_name(metric))

    def download(self, run_id: str, artifact: str, to: Path) -> Path:
        source = self.folder / run_id / artifact
        target = to / artifact
        if not source.exists():
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
        texts = _texts(values, MAX_PARAM)
        changed = [name for name, text in texts.items() if known.get(name, text) != text]
        if changed:
            raise TrackingError(f"params never change, but {', '.join(changed)} would.")
        self._tracker._change(self._run_id, params={**known, **texts})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        kept = self._tracker._kept(self._run_id)
        named = {metric_name(name): float(value) for name, value in values.items()}
        kept.points += [(name, step, value) for name, value in named.items()]
        self._tracker._change(self._run_id, metrics={**kept.record.metrics, **named})

    def tags(self, values: Mapping[str, Any]) -> None:
        self._tracker._set_tags(self._run_id, _texts(values, MAX_TAG))

    def artifact(self, path: Path, folder: str = "") -> None:
        if not path.is_file():
            raise TrackingError(f"artifact {path} is not a file.")
        target = self._tracker.folder / self._run_id / PurePosixPath(folder) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    def keep_in(self, folder: Path) -> None:
        """Nothing is ever unsent here."""

    def end(self, state: str, reason: str | None = None) -> None:
        self.tags({STATE: state} | ({REASON: reason} if reason is not None else {}))
        now = int(time.time() * 1000)
        self._tracker._change(self._run_id, status=RUN_STATUS[state], end_ms=now)
