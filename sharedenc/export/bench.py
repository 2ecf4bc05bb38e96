"""Timings as they lie on the tracking server: read by a sweep with a budget, brought by a file."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetson_agent.protocol import (
    BENCH_KEY_TAG,
    BENCH_KIND,
    CERTIFICATE_FILE,
    KIND_TAG,
    STALE_TAG,
    TIMINGS_HEADER,
    BenchResult,
    ProtocolError,
    Seen,
    bench_experiment,
    seen_agents,
)
from sharedenc.errors import ExportError
from sharedenc.tracking import refusals

PAGE = 1000
COMPLETE = ("FINISHED", "FAILED")


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One stored timing; `metrics` as in `jetson_agent.protocol.BenchResult`, ``ended_ms`` UTC."""

    run_id: str
    key: str
    device: str
    architecture: str
    precision: str
    load: str
    mode: str
    backend: str
    runtime: str
    verdict: str
    reasons: str
    stale: bool
    metrics: Mapping[str, float]
    ended_ms: int


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of one result of a file: ``stored``, or ``present`` when it was there before."""

    result: BenchResult
    outcome: str
    run_id: str


class Bench:
    """The timings on one tracking server.

    Raises:
        TrackingError: by every method, when the server is away or refuses.
    """

    def __init__(self, uri: str) -> None:
        # MLflow would print the address of each run on standard output, into our JSON.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def rows(self, device: str) -> list[BenchRow]:
        """Every complete timing of a device, oldest first."""
        with refusals():
            experiment = self._client.get_experiment_by_name(bench_experiment(device))
            if experiment is None:
                return []
            runs = self._runs(experiment.experiment_id)
        found = [_row(run) for run in runs if run.info.status in COMPLETE]
        return sorted(found, key=lambda row: row.ended_ms)

    def devices(self) -> list[str]:
        """Names of the devices that have reported something."""
        prefix = bench_experiment("")
        with refusals():
            found = self._client.search_experiments(
                filter_string=f"name LIKE '{prefix}%'", max_results=PAGE
            )
        return sorted(experiment.name.removeprefix(prefix) for experiment in found)

    def seen(self, device: str) -> list[Seen]:
        """The agents of a device, last seen first."""
        with refusals():
            experiment = self._client.get_experiment_by_name(bench_experiment(device))
        return [] if experiment is None else seen_agents(dict(experiment.tags))

    def store(self, result: BenchResult) -> Imported:
        """Store a result that came in a file; one that is there already stays as it is."""
        from mlflow.entities import Metric

        with refusals():
            experiment_id = self._experiment(bench_experiment(result.device))
            known = self._runs(experiment_id, f"tags.`{BENCH_KEY_TAG}` = '{result.key}'")
            for run in known:
                # Of software that the board no longer has: the same figures are no newer ones.
                stale = STALE_TAG in run.data.tags
                if run.info.status in COMPLETE and not (
                    stale and dict(run.data.metrics) != result.metrics
                ):
                    return Imported(result=result, outcome="present", run_id=run.info.run_id)
            begun = [run for run in known if run.info.status not in COMPLETE]
            name = f"{result.model}/{result.precision}/{result.load}"
            run = (
                begun[0]
                if begun
                else self._client.create_run(experiment_id, tags=result.to_tags(), run_name=name)
            )
            run_id, at_ms = run.info.run_id, int(run.info.start_time or time.time() * 1000)
            self._client.log_batch(
                run_id, metrics=[Metric(k, v, at_ms, 0) for k, v in result.metrics.items()]
            )
            with tempfile.TemporaryDirectory(prefix="sharedenc-timings-") as folder:
                certificate = Path(folder, CERTIFICATE_FILE)
                certificate.write_text(json.dumps(result.certificate, indent=2))
                self._client.log_artifact(run_id, str(certificate))
            status = "FAILED" if result.verdict == "failed" else "FINISHED"
            self._client.set_terminated(run_id, status)
        return Imported(result=result, outcome="stored", run_id=run_id)

    def _experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return str(self._client.create_experiment(name))
        if experiment.lifecycle_stage == "deleted":
            raise ExportError(f"experiment {name} is deleted on the server: restore it first.")
        return str(experiment.experiment_id)

    def _runs(self, experiment_id: str, *more: str) -> list[Any]:
        clauses = [f"tags.`{KIND_TAG}` = '{BENCH_KIND}'", *more]
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [experiment_id], " AND ".join(clauses), max_results=PAGE, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found


def read_results(path: Path) -> Iterator[BenchResult]:
    """The results of a file that ``jetson-agent measure --out`` wrote.

    A last line that was cut by a power cut is left out; any other broken line is an error.

    Raises:
        ExportError: no such file, no file of timings, or a line that is no result.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not lines or _json(lines[0]) != TIMINGS_HEADER:
        raise ExportError(
            f"{path} is no file of timings (its first line is not {json.dumps(TIMINGS_HEADER)}): "
            "write one on the board with `jetson-agent measure FILE.onnx --out timings.jsonl`."
        )
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            yield BenchResult.from_json(line)
        except (ProtocolError, TypeError) as error:
            if number == len(lines) and _json(line) is None:
                return
            raise ExportError(f"line {number} of {path}: {error}") from error


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _row(run: Any) -> BenchRow:
    tags = run.data.tags

    def tag(name: str) -> str:
        return str(tags.get(f"sharedenc.{name}", ""))

    return BenchRow(
        run_id=run.info.run_id,
        key=tags.get(BENCH_KEY_TAG, ""),
        device=tag("device"),
        architecture=tag("architecture"),
        precision=tag("precision"),
        load=tag("load"),
        mode=tag("mode"),
        backend=tag("backend"),
        runtime=tag("runtime"),
        verdict=tag("verdict"),
        reasons=tag("reasons"),
        stale=STALE_TAG in tags,
        metrics={k: v for k, v in run.data.metrics.items() if math.isfinite(v)},
        ended_ms=int(run.info.end_time or run.info.start_time or 0),
    )
