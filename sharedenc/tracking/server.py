"""The runs of an MLflow server. Everything goes through ``MlflowClient`` with an explicit URI."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.errors import TrackingError
from sharedenc.redact import hide_credentials
from sharedenc.tracking.health import check_server
from sharedenc.tracking.patience import ServerAway, guarded, patiently, refusals, refused
from sharedenc.tracking.run import MlflowRun
from sharedenc.tracking.seam import (
    KIND,
    MAX_TAG,
    PAGE,
    PARENT,
    REUSED_FROM,
    RUN_STATUS,
    STATE,
    THREADS,
    Patience,
    Point,
    RunRecord,
    Version,
    as_texts,
    is_study,
    metric_name,
    study_tags,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

CREATION = "sharedenc.creation"
"""What tells a run whose creation was answered from one that is to be created again."""
PARENT_WAIT_S = 10.0
"""How long a study's parent run may take to appear after its experiment."""


class MlflowTracker:
    """Talks to one MLflow server.

    Args:
        wait_s: How long the server may take to answer for the first time.
        patience: Wait for answers that must be had; None gives up at once. With patience, runs
            taken from this tracker wait too, and raise TrackingError when it is at its end: that
            is for a driver, which has no other place for what it has to say.

    Raises:
        TrackingError: from the constructor, within about ten seconds, when no server answers.
    """

    def __init__(self, uri: str, *, wait_s: float = 8.0, patience: Patience | None = None) -> None:
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
        self.patience = patience
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._addresses: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def study(self, name: str, tags: Mapping[str, Any]) -> str:
        experiment_id, created = self._experiment(name)
        self._ids[name] = experiment_id
        # Experiment names are unique on the server, so whoever created it makes the parent run;
        # all others wait for that run, and make it only when its maker seems to have died.
        parent = None if created else self._parent(experiment_id, wait_s=PARENT_WAIT_S)
        if parent is None:
            self._create_run(experiment_id, name, study_tags(name, "study", {}))
            parent = self._parent(experiment_id)
        if parent is None:
            raise TrackingError(f"the parent run of study {name!r} vanished right after creation.")
        self._run(parent).tags(study_tags(name, "study", tags))
        return parent

    def child(self, study: str, parent_id: str, name: str, tags: Mapping[str, Any]) -> MlflowRun:
        experiment_id = self._ids.get(study) or self._experiment(study)[0]
        run_id = self._create_run(
            experiment_id, name, {**study_tags(study, "trial", tags), PARENT: parent_id}
        )
        status = RUN_STATUS.get(str(tags.get(STATE)), "RUNNING")
        if status != "RUNNING":
            self._call(lambda: self._client.update_run(run_id, status=status))
        return self._run(run_id)

    def resume(self, run_id: str) -> MlflowRun:
        self._call(lambda: self._client.update_run(run_id, status="RUNNING"))
        return self._run(run_id)

    def handle(self, run_id: str) -> MlflowRun:
        """A run that exists, without asking for it; it never waits for the server."""
        return MlflowRun(self._client, run_id)

    def _run(self, run_id: str) -> MlflowRun:
        return MlflowRun(self._client, run_id, patience=self.patience)

    def runs(self, study: str) -> list[RunRecord]:
        experiment = self._call(lambda: self._client.get_experiment_by_name(study))
        return [] if experiment is None else list(self._search(experiment.experiment_id))

    def studies(self) -> list[str]:
        return sorted(self._studies())

    def _studies(self) -> dict[str, str]:
        """Experiment ids of all studies, by name."""
        everything = self._pages(self._client.search_experiments)
        return {e.name: str(e.experiment_id) for e in everything if is_study(e.name)}

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.points(run_id, metric)]

    def points(self, run_id: str, metric: str) -> list[Point]:
        name = metric_name(metric)
        points = self._call(lambda: self._client.get_metric_history(run_id, name))
        found = [Point(name, point.value, point.step, point.timestamp) for point in points]
        return sorted(found, key=lambda point: (point.step, point.at_ms))

    def record(self, run_id: str) -> RunRecord:
        return _record(self._call(lambda: self._client.get_run(run_id)))

    def find(
        self,
        tag: str,
        values: Sequence[str],
        *,
        tags: Mapping[str, str] = {},
        limit: int = 20,
        but: str = "",
    ) -> dict[str, list[RunRecord]]:
        if not values:
            return {}
        experiments = [number for name, number in self._studies().items() if name != but]
        if not experiments:
            return {}
        # MLflow knows neither OR nor IN for tags, so each value is a question of its own.
        more = [f"tags.`{name}` = {quoted(value)}" for name, value in tags.items()]

        def ask(value: str) -> list[RunRecord]:
            where = " and ".join([f"tags.`{tag}` = {quoted(value)}", *more])
            page = self._call(
                lambda: self._client.search_runs(
                    experiments,
                    filter_string=where,
                    max_results=limit,
                    order_by=["attributes.start_time DESC"],
                )
            )
            return [_record(run) for run in page]

        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(values, pool.map(ask, values), strict=True))

    def tag(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, text) for name, text in as_texts(values, MAX_TAG).items()]
        self._call(lambda: self._client.log_batch(run_id, tags=tags))

    def untag(self, run_id: str, names: Collection[str]) -> None:
        known = self.record(run_id).tags
        for name in names:
            if name in known:
                self._call(partial(self._client.delete_tag, run_id, name))

    def download(self, run_id: str, artifact: str, to: Path) -> Path:
        try:
            return self._download(run_id, artifact, to)
        except TrackingError:
            source = self._origin(run_id)
            if source is None:
                raise
            return self.download(source, artifact, to)

    def _origin(self, run_id: str) -> str | None:
        try:
            return self.record(run_id).tags.get(REUSED_FROM) or None
        except TrackingError:
            return None

    def _download(self, run_id: str, artifact: str, to: Path) -> Path:
        to.mkdir(parents=True, exist_ok=True)
        try:
            found = self._call(lambda: self._client.download_artifacts(run_id, artifact, str(to)))
        except (OSError, TrackingError) as error:
            raise TrackingError(
                f"artifact {artifact!r} of run {run_id} cannot be downloaded: "
                f"{hide_credentials(str(error))}"
            ) from error
        path = Path(found)
        if not path.exists():
            raise TrackingError(f"run {run_id} has no artifact {artifact!r}.")
        return path

    def files(self, run_id: str, folders: Collection[str] | None = None) -> dict[str, int]:
        store = self._store(run_id)
        sizes: dict[str, int] = {}
        left = ["."] if folders is None else sorted(folders)
        while left:
            folder = left.pop()
            path = None if folder == "." else folder
            for item in self._call(partial(store.list_artifacts, path)):
                if not item.is_dir:
                    sizes[item.path] = int(item.file_size or 0)
                elif folders is None:
                    left.append(item.path)
        return sizes

    def versions(self) -> list[Version]:
        # A version that comes out of a search does not know its aliases; its model does.
        aliases: dict[tuple[str, str], list[str]] = {}
        for model in self._pages(self._client.search_registered_models):
            for alias, version in model.aliases.items():
                aliases.setdefault((model.name, str(version)), []).append(alias)
        return [
            Version(
                model=found.name,
                version=str(found.version),
                run_id=found.run_id or "",
                source=found.source or "",
                aliases=tuple(sorted(aliases.get((found.name, str(found.version)), []))),
            )
            for found in self._pages(self._client.search_model_versions)
        ]

    def _pages(self, search: Callable[..., Any]) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self._call(partial(search, max_results=PAGE, page_token=token))
            yield from page
            token = page.token
            if not token:
                return

    def _store(self, run_id: str) -> Any:
        """The artifact store of a run; the client's own methods ask for its address each time."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self._addresses.get(run_id)
        if uri is None:
            uri = str(self._call(lambda: self._client.get_run(run_id)).info.artifact_uri)
            self._addresses[run_id] = uri
        return get_artifact_repository(uri, tracking_uri=self.uri)

    def delete_files(self, run_id: str, names: Collection[str]) -> None:
        store = self._store(run_id)
        with refusals():
            for name in names:
                store.delete_artifacts(name)
        left = sorted(self.files(run_id).keys() & set(names))
        if left:
            raise TrackingError(
                f"the artifact store still has {', '.join(left)} of run {run_id} after it was told "
                "to delete them. Does the server's user have the right to delete there?"
            )

    def _experiment(self, name: str) -> tuple[str, bool]:
        """Return the experiment's id and whether this call created it."""
        from mlflow.exceptions import MlflowException

        known = self._call(lambda: self._client.get_experiment_by_name(name))
        if known is None:
            try:
                return str(guarded(lambda: self._client.create_experiment(name))), True
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise refused(error) from error
            except ServerAway as error:
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
        token = uuid.uuid4().hex
        asked = False

        def create() -> str:
            # The answer to an earlier try may have been lost, and not the run.
            nonlocal asked
            if asked:
                where = f"tags.`{CREATION}` = '{token}'"
                for run in self._client.search_runs([experiment_id], where, max_results=1):
                    return str(run.info.run_id)
            asked = True
            values = {**tags, CREATION: token}
            run = self._client.create_run(experiment_id, tags=values, run_name=name)
            return str(run.info.run_id)

        return str(self._call(create))

    def _call(self, request: Callable[[], Any]) -> Any:
        """Make a request that must be answered now, or after a wait where there is patience."""
        from mlflow.exceptions import MlflowException

        try:
            return patiently(request, self.patience)
        except ServerAway as error:
            raise TrackingError(
                f"MLflow server {hide_credentials(self.uri)} does not answer: {error}"
            ) from error
        except MlflowException as error:
            raise refused(error) from error


def quoted(value: str) -> str:
    """A string as MLflow's search takes it, which knows no escape."""
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value:
        return f'"{value}"'
    raise TrackingError(f"MLflow cannot search for {value!r}, which has both kinds of quotes.")


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
        steps={metric.key: metric.step for metric in run.data._metric_objs},
    )
