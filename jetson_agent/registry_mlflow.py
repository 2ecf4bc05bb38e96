"""The registry on an MLflow server: the one file of the agent that imports mlflow."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from jetson_agent.errors import ServerError
from jetson_agent.protocol import (
    BENCH_KEY_TAG,
    BENCH_KIND,
    CERTIFICATE_FILE,
    KIND_TAG,
    READY,
    STATE_TAG,
    BenchResult,
    bench_experiment,
)
from jetson_agent.registry import ModelVersion, replaces

PAGE = 200
HEALTH_TIMEOUT_S = 10.0
COMPLETE = ("FINISHED", "FAILED")


def check_server(uri: str) -> None:
    """Raise `ServerError` unless something answers at `uri` over HTTP."""
    shown = without_credentials(uri)
    if urlsplit(uri).scheme not in ("http", "https"):
        raise ServerError(
            f"tracking URI {shown!r} is not an http(s) address: the agent talks to an MLflow "
            "server; start one with `sharedenc ui` or `mlflow server`"
        )
    try:
        address = f"{_without_userinfo(uri).rstrip('/')}/health"
        with urllib.request.urlopen(address, timeout=HEALTH_TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        # A proxy may refuse this path to strangers; that something answers is enough.
        error.close()
    except OSError as error:
        raise ServerError(
            f"no MLflow server answers at {shown} ({getattr(error, 'reason', error)}): start it, "
            "or give another address with --tracking-uri or MLFLOW_TRACKING_URI"
        ) from error


def without_credentials(uri: str) -> str:
    """`uri` for people to read: user and password left out."""
    return _without_userinfo(uri) if "@" in uri else uri


def _without_userinfo(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class MlflowRegistry:
    """Reads model versions and writes bench runs of its own, and nothing else."""

    def __init__(self, uri: str) -> None:
        check_server(uri)
        # Few retries: a result that cannot be sent stays in the outbox, and the board goes on.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # MLflow would print the address of each run on standard output, into our JSON.
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def ready_versions(self) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        token: str | None = None
        with _server_errors("list the registered models"):
            while True:
                page = self._client.search_model_versions(
                    f"tags.`{STATE_TAG}` = '{READY}'", max_results=PAGE, page_token=token
                )
                found += [
                    ModelVersion(
                        model=version.name,
                        version=str(version.version),
                        run_id=version.run_id or "",
                        source=version.source or "",
                        tags=dict(version.tags),
                        created_ms=int(version.creation_timestamp or 0),
                    )
                    for version in page
                ]
                token = page.token
                if not token:
                    return found

    def download(self, version: ModelVersion, name: str, folder: Path) -> Path:
        scheme, _, rest = version.source.partition(":/")
        run_id, _, path = rest.strip("/").partition("/")
        if scheme != "runs" or not run_id:
            raise ServerError(
                f"source {version.source!r} of {version.name} is not runs:/<run>/<folder>: "
                "register it with `sharedenc export`"
            )
        with _server_errors(f"download {name} of {version.name}"):
            where = f"{path}/{name}" if path else name
            return Path(self._client.download_artifacts(run_id, where, str(folder)))

    def bench_keys(self, device: str) -> dict[str, str]:
        with _server_errors(f"read what is timed on {device}"):
            experiment = self._client.get_experiment_by_name(bench_experiment(device))
            if experiment is None:
                return {}
            keys: dict[str, str] = {}
            token: str | None = None
            while True:
                page = self._client.search_runs(
                    [experiment.experiment_id],
                    f"tags.`{KIND_TAG}` = '{BENCH_KIND}'",
                    max_results=PAGE,
                    page_token=token,
                )
                for run in page:
                    if run.info.status in COMPLETE and BENCH_KEY_TAG in run.data.tags:
                        tags = run.data.tags
                        keys[tags[BENCH_KEY_TAG]] = tags.get("sharedenc.verdict", "")
                token = page.token
                if not token:
                    return keys

    def report(self, result: BenchResult) -> str:
        from mlflow.entities import Metric, RunTag

        with _server_errors("store a result"):
            experiment_id = self._experiment(bench_experiment(result.device))
            known = self._client.search_runs(
                [experiment_id], f"tags.`{BENCH_KEY_TAG}` = '{result.key}'", max_results=1
            )
            tags = result.to_tags()
            if known:
                run = known[0]
                stored = run.data.tags.get("sharedenc.verdict", "")
                if run.info.status in COMPLETE and not replaces(stored, result):
                    return str(run.info.run_id)
            else:
                name = f"{result.model}/v{result.version}/{result.precision}/{result.load}"
                run = self._client.create_run(experiment_id, tags=tags, run_name=name)
            run_id = str(run.info.run_id)
            now_ms = int(time.time() * 1000)
            self._client.log_batch(
                run_id,
                metrics=[
                    Metric(name, value, now_ms, 0)
                    for name, value in result.metrics.items()
                    if run.data.metrics.get(name) != value
                ],
                tags=[RunTag(name, value) for name, value in tags.items()],
            )
            self._client.log_dict(run_id, result.certificate, CERTIFICATE_FILE)
            status = "FAILED" if result.verdict == "failed" else "FINISHED"
            self._client.set_terminated(run_id, status)
            return run_id

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                # Another process was faster.
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            raise ServerError(
                f"experiment {name} is deleted on the server: restore it, or name the device "
                "otherwise with --device"
            )
        return str(experiment.experiment_id)


@contextlib.contextmanager
def _server_errors(action: str) -> Iterator[None]:
    """Turn whatever the client raises into a `ServerError` that says what was tried."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ServerError(f"the tracking server would not {action}: {lines[0][:500]}") from error
