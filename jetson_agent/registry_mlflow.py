"""The registry on an MLflow server: the one file of the agent that imports mlflow.

Clients from 2.22 to 3.x do. What is written: runs in the experiment ``bench/<device>`` and tags of
that experiment, and once per device an experiment ``bench-ledger/<device>`` that names the ledger.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from jetson_agent.claims import SKEW_S, Claims
from jetson_agent.credentials import Server, find_server, without_credentials
from jetson_agent.errors import AgentError, ServerError
from jetson_agent.ledger_mlflow import MlflowLedger, active_id
from jetson_agent.protocol import (
    BENCH_KEY_TAG,
    BENCH_KIND,
    CERTIFICATE_FILE,
    KIND_TAG,
    READY,
    REPLACED_KIND,
    STALE_TAG,
    STATE_TAG,
    BenchResult,
    bench_experiment,
)
from jetson_agent.registry import (
    ModelVersion,
    check_artifacts,
    check_file_name,
    differs_in_runtime_alone,
    replaces,
)
from jetson_agent.server_clock import ServerClock, ask_server
from jetson_agent.server_errors import explain

__all__ = ["MlflowRegistry", "without_credentials"]

PAGE = 1000
COMPLETE = ("FINISHED", "FAILED")
# How long `bench_keys` believes that nobody has deleted a run by hand.
FRESH_S = 600.0
CHANGED_TAG = "sharedenc.changed"
CONTENT_TAG = "sharedenc.content"
VERDICT_TAG = "sharedenc.verdict"


class MlflowRegistry:
    """Reads model versions and writes bench runs of its own, and nothing else.

    Makes no request before it is asked something: a daemon starts before its server does.

    Args:
        server: Its address, or what `find_server` made of that.
        clock: The time that claims go by; the server's by default.

    Raises:
        ServerError: an address that is none of a server.
    """

    def __init__(
        self,
        server: str | Server,
        *,
        clock: Callable[[], float] | None = None,
        skew_s: float = SKEW_S,
    ) -> None:
        self.server = server if isinstance(server, Server) else find_server(server)
        self.server.apply()
        self.clock = ServerClock(lambda: ask_server(self.server))
        self._now = clock or self.clock.now
        self._skew_s = skew_s
        self._ledgers: dict[str, MlflowLedger] = {}
        self._experiments: dict[str, str] = {}
        # Device -> (when read, the experiment's tag at that time, keys).
        self._keys: dict[str, tuple[float, str, dict[str, str]]] = {}
        # Few retries: a result that cannot be sent stays in the outbox, and the board goes on.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # MLflow would print the address of each run on standard output, into our JSON.
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        from mlflow import MlflowClient

        uri = self.server.uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def check(self) -> None:
        """Raise `ServerError` unless an MLflow server answers that lets this user in."""
        with self.asking("list experiments"):
            self._client.search_experiments(max_results=1)

    def ready_versions(self) -> list[ModelVersion]:
        found: dict[tuple[str, str], ModelVersion] = {}
        token: str | None = None
        with self.asking("list the registered models"):
            while True:
                page = self._client.search_model_versions(
                    f"tags.`{STATE_TAG}` = '{READY}'", max_results=PAGE, page_token=token
                )
                for version in page:
                    # Pages shift when a version is registered meanwhile.
                    found[version.name, str(version.version)] = ModelVersion(
                        model=version.name,
                        version=str(version.version),
                        run_id=version.run_id or "",
                        source=version.source or "",
                        tags=dict(version.tags),
                        created_ms=int(version.creation_timestamp or 0),
                    )
                token = page.token
                if not token:
                    return list(found.values())

    def download(self, version: ModelVersion, name: str, folder: Path) -> Path:
        check_file_name(name)
        scheme, _, rest = version.source.partition(":/")
        run_id, _, path = rest.strip("/").partition("/")
        if scheme != "runs" or not run_id:
            raise ServerError(
                f"source {version.source!r} of {version.name} is not runs:/<run>/<folder>: "
                "register it with `sharedenc export`"
            )
        where = f"{path}/{name}" if path else name
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
            with self.asking(f"download {name} of {version.name}"), self._named():
                got = Path(self._client.download_artifacts(run_id, where, part))
            if not got.is_file():
                raise ServerError(f"{name} of {version.name} is no file on the server")
            return got.replace(folder / name)

    def bench_keys(self, device: str) -> dict[str, str]:
        with self.asking(f"read what is timed on {device}"):
            experiment = self._client.get_experiment_by_name(bench_experiment(device))
            if experiment is None:
                return {}
            changed = experiment.tags.get(CHANGED_TAG, "")
            read_at, then, keys = self._keys.get(device, (0.0, "", {}))
            now = time.monotonic()
            if device not in self._keys or then != changed or now - read_at >= FRESH_S:
                keys = {
                    run.data.tags[BENCH_KEY_TAG]: run.data.tags.get(VERDICT_TAG, "")
                    for run in self._runs(experiment.experiment_id)
                    if run.info.status in COMPLETE and STALE_TAG not in run.data.tags
                }
                self._keys[device] = now, changed, keys
            return dict(keys)

    def bench_rows(self, device: str) -> list[tuple[str, str, str]]:
        """Bench key, mode and verdict of every complete run of the device that is not stale."""
        with self.asking(f"read what is timed on {device}"):
            experiment = self._client.get_experiment_by_name(bench_experiment(device))
            runs = self._runs(experiment.experiment_id) if experiment else []
            return [
                (
                    run.data.tags[BENCH_KEY_TAG],
                    run.data.tags.get("sharedenc.mode", ""),
                    run.data.tags.get(VERDICT_TAG, ""),
                )
                for run in runs
                if run.info.status in COMPLETE and STALE_TAG not in run.data.tags
            ]

    def report(self, result: BenchResult, artifacts: Mapping[str, bytes] | None = None) -> str:
        files = {CERTIFICATE_FILE: json.dumps(result.certificate, indent=2).encode()}
        check_artifacts(artifacts or {})
        files |= artifacts or {}
        with self.asking("store a result"):
            run = self._run_for(result)
            if run.info.status not in COMPLETE:
                self._fill(run, result, files)
            # Also when the run was complete: the call that completed it may have ended there.
            self._mark_stale(result)
            experiment_id = run.info.experiment_id
            self._client.set_experiment_tag(experiment_id, CHANGED_TAG, uuid4().hex)
            self._keys.pop(result.device, None)
            return str(run.info.run_id)

    def claims(self, device: str) -> Claims:
        return Claims(self._ledger(device), skew_s=self._skew_s)

    def experiment(self, device: str) -> str:
        """Id of the device's experiment, which is made if need be."""
        name = bench_experiment(device)
        known = self._experiments.get(name)
        if known is None:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    self._client.create_experiment(name)
                except Exception:
                    # Another process was faster, if it is there now.
                    if self._client.get_experiment_by_name(name) is None:
                        raise
                found = self._client.get_experiment_by_name(name)
            known = self._experiments[name] = active_id(found)
        return known

    @contextlib.contextmanager
    def asking(self, action: str) -> Iterator[None]:
        """Turn whatever the client raises into a `ServerError` that says what was tried.

        An answer that is not MLflow's breaks the client in many ways, hence every exception.
        """
        try:
            yield
        except AgentError:
            raise
        except Exception as error:
            told = explain(error, action, self.server)
            if told.code == "RESOURCE_DOES_NOT_EXIST":
                # An experiment that was deleted for good has another id when it comes back.
                self._experiments.clear()
                for ledger in self._ledgers.values():
                    ledger.forget()
            raise told from error

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the server in the environment: for artifacts, clients up to 3.1 look there."""
        before = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ["MLFLOW_TRACKING_URI"] = self.server.uri
        try:
            yield
        finally:
            if before is None:
                del os.environ["MLFLOW_TRACKING_URI"]
            else:
                os.environ["MLFLOW_TRACKING_URI"] = before

    def _ledger(self, device: str) -> MlflowLedger:
        if device not in self._ledgers:
            self._ledgers[device] = MlflowLedger(self, self._client, device, self._now)
        return self._ledgers[device]

    def forget(self, device: str) -> None:
        """Read the keys of the device anew when they are asked for next."""
        self._keys.pop(device, None)

    def _runs(self, experiment_id: str, *more: str) -> list[Any]:
        clauses = [f"tags.`{KIND_TAG}` = '{BENCH_KIND}'", *more]
        found: dict[str, Any] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [experiment_id], " AND ".join(clauses), max_results=PAGE, page_token=token
            )
            found |= {run.info.run_id: run for run in page if BENCH_KEY_TAG in run.data.tags}
            token = page.token
            if not token:
                return list(found.values())

    def _run_for(self, result: BenchResult) -> Any:
        """The run that is to hold a result.

        Which run of a key counts is an entry of the ledger, so that two agents, or one whose
        request got no answer and was sent again, agree on one.
        """
        ledger, content = self._ledger(result.device), _content(result)
        while True:
            runs = {run.info.run_id: run for run in self._runs_of_key(result)}
            elected = ledger.elected(result.key)
            run = runs.get(elected[-1]) if elected else None
            if run is not None:
                tags = run.data.tags
                stored = tags.get(VERDICT_TAG, "")
                good = run.info.status in COMPLETE and STALE_TAG not in tags
                same = tags.get(CONTENT_TAG, content) == content
                if same or (good and not replaces(stored, result)):
                    return run
            # One that was made for this very result when the call that made it was cut off.
            begun = [
                run
                for run_id, run in sorted(runs.items())
                if run_id not in elected
                and run.info.status not in COMPLETE
                and run.data.tags.get(CONTENT_TAG, content) == content
            ]
            candidate = begun[0] if begun else self._create(result, content)
            if ledger.elect(result.key, len(elected) + 1, candidate.info.run_id):
                return candidate

    def _runs_of_key(self, result: BenchResult) -> list[Any]:
        return self._runs(
            self.experiment(result.device), f"tags.`{BENCH_KEY_TAG}` = '{result.key}'"
        )

    def _create(self, result: BenchResult, content: str) -> Any:
        return self._client.create_run(
            self.experiment(result.device),
            start_time=int(self._now() * 1000),
            tags={**result.to_tags(), CONTENT_TAG: content},
            run_name=f"{result.model}/v{result.version}/{result.precision}/{result.load}",
        )

    def _fill(self, run: Any, result: BenchResult, files: Mapping[str, bytes]) -> None:
        """Complete a run; each request may be made again without another effect."""
        from mlflow.entities import Metric

        run_id = run.info.run_id
        with tempfile.TemporaryDirectory(prefix="jetson-agent-") as folder:
            for name, inside in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(inside)
            with self._named():
                self._client.log_artifacts(run_id, folder)
        # The same time again: the server takes a value with the same time and step once.
        at_ms = int(run.info.start_time)
        metrics = [Metric(name, value, at_ms, 0) for name, value in result.metrics.items()]
        self._client.log_batch(run_id, metrics=metrics)
        elected, content = self._ledger(result.device).elected(result.key), _content(result)
        for other in self._runs_of_key(result):
            other_id = other.info.run_id
            # Nothing that may yet be elected: of two agents, each would undo the other's run.
            mine = other.data.tags.get(CONTENT_TAG) == content and other_id not in elected
            if mine or other_id in elected[:-1]:
                self._client.set_tag(other_id, KIND_TAG, REPLACED_KIND)
                if other.info.status not in COMPLETE:
                    self._client.set_terminated(other_id, "KILLED")
        if run_id == elected[-1]:
            status = "FAILED" if result.verdict == "failed" else "FINISHED"
            self._client.set_terminated(run_id, status, end_time=int(self._now() * 1000))

    def _mark_stale(self, result: BenchResult) -> None:
        # A digest; what is none would break the filter.
        digest = result.architecture if "'" not in result.architecture else ""
        filters = [f"tags.`sharedenc.architecture` = '{digest}'"] if digest else []
        for run in self._runs(self.experiment(result.device), *filters):
            tags = run.data.tags
            if STALE_TAG not in tags and differs_in_runtime_alone(tags, result):
                self._client.set_tag(run.info.run_id, STALE_TAG, result.runtime)


def _content(result: BenchResult) -> str:
    """Tells a result from another one with the same key."""
    return hashlib.sha256(result.to_json().encode()).hexdigest()[:32]
