"""R9: an epoch's metrics through our tracker against one ``mlflow.log_metric`` call each.

Both write to one real server over HTTP with an SQLite store; wall time of the process that logs,
per step. The limit is one request and its answer on an open connection, which no logging that
asks for an answer can beat.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.protocol import Side, interleaved, result

STEPS = 20
EPOCH_METRICS = (
    "train/loss",
    "train/loss_det",
    "train/loss_seg",
    "val/loss",
    "val/mAP",
    "val/mAP50",
    "val/mIoU",
    "val/pixel_acc",
    "lr",
    "images_per_s",
    "score",
)

# Of the 20 classes, with ten thresholds: what a dual network's test says.
TEST_METRICS = (
    *(f"test/{name}" for name in ("mIoU", "pixel_acc", "mAP", "mAP50")),
    *(f"test/AP_{50 + 5 * step}" for step in range(10)),
    *(f"test/IoU_{number}" for number in range(21)),
    *(f"test/AP_class_{number}" for number in range(20)),
)
CASES = {"metrics of an epoch": EPOCH_METRICS, "metrics of a test": TEST_METRICS}

History = dict[str, list[tuple[int, float]]]


def run(rounds: int, uri: str | None = None, steps: int = STEPS) -> list[dict[str, Any]]:
    """Measure, with a server of our own unless ``uri`` names one."""
    rows = []
    with server_or_own(uri) as server:
        for case, names in CASES.items():
            logger = _Logger(server, names, steps)
            duel = interleaved(logger.reference, logger.ours, rounds)
            rows.append(
                result(
                    "R9",
                    f"{len(names)} {case}, wall time, mean of {steps} times",
                    duel,
                    unit="ms",
                    limit=min(logger.request() for _ in range(max(rounds, 5))),
                    check="same history of every metric",
                )
            )
    return rows


@contextmanager
def server_or_own(uri: str | None) -> Iterator[str]:
    """The server at ``uri``, or a private one for as long as it is needed."""
    if uri is not None:
        yield uri
        return
    from sharedenc.mlflow_server import serve

    named = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as server:
            yield server.uri
    finally:
        if named is not None:
            os.environ["MLFLOW_TRACKING_URI"] = named


class _Logger:
    def __init__(self, uri: str, names: Sequence[str], steps: int) -> None:
        import mlflow
        from mlflow import MlflowClient

        from sharedenc.tracking import MlflowTracker

        self._mlflow = mlflow
        self._uri, self._names, self._steps = uri, names, range(1, steps + 1)
        self._client = MlflowClient(tracking_uri=uri)
        self._tracker = MlflowTracker(uri)
        self._study = f"benchmark-{time.time_ns()}"
        self._parent = self._tracker.study(self._study, {})
        experiment = self._client.get_experiment_by_name(self._study)
        assert experiment is not None
        self._experiment_id = experiment.experiment_id

    def _values(self, step: int) -> dict[str, float]:
        """Made-up values that differ by metric and step."""
        return {name: number + step / 64 for number, name in enumerate(self._names)}

    def reference(self) -> Side:
        """The loop that MLflow's first page shows."""
        self._mlflow.set_tracking_uri(self._uri)
        with self._mlflow.start_run(experiment_id=self._experiment_id) as run:
            start = time.perf_counter()
            for step in self._steps:
                for name, value in self._values(step).items():
                    self._mlflow.log_metric(name, value, step=step)
            seconds = time.perf_counter() - start
        return Side(1000 * seconds / len(self._steps), self._history(run.info.run_id))

    def ours(self) -> Side:
        """What a trial does: all that belongs to one step at once."""
        run = self._tracker.child(self._study, self._parent, "trial", {})
        start = time.perf_counter()
        for step in self._steps:
            run.metrics(self._values(step), step)
        seconds = time.perf_counter() - start
        run.end("done")
        return Side(1000 * seconds / len(self._steps), self._history(run.run_id))

    def request(self) -> float:
        """Milliseconds of one request that does nothing, on an open connection."""
        import requests

        with requests.Session() as session:
            session.get(f"{self._uri}/health").raise_for_status()
            start = time.perf_counter()
            session.get(f"{self._uri}/health").raise_for_status()
            return 1000 * (time.perf_counter() - start)

    def _history(self, run_id: str) -> History:
        return {
            name: [
                (point.step, point.value) for point in self._client.get_metric_history(run_id, name)
            ]
            for name in self._names
        }
