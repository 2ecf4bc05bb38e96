"""R9: an epoch's metrics through our tracker against one ``mlflow.log_metric`` call each.

Both write to one real server over HTTP with an SQLite store; wall time, per step. Two figures are
compared with the loop's, which is one call after the other: until everything that is said in a row
has arrived, and how long a training waits that says a row, trains on, and says the next (ours puts
the row on the disk, and a thread sends it). The limits are one request for all rows and its answer
on an open connection, and a line appended to a file.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.protocol import Side, interleaved, result

if TYPE_CHECKING:
    from sharedenc.tracking import MlflowRun

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
    with server_or_own(uri) as server, tempfile.TemporaryDirectory() as folder:
        for case, names in CASES.items():
            logger = _Logger(server, names, steps, Path(folder))
            for what, ours, limit in (
                ("all arrived", logger.arrived, logger.request),
                ("wait of the training", logger.waited, logger.line),
            ):
                duel = interleaved(logger.reference, ours, rounds)
                rows.append(
                    result(
                        "R9",
                        f"{len(names)} {case}, {what}, wall time, mean of {steps} times",
                        duel,
                        unit="ms",
                        limit=min(limit() for _ in range(max(rounds, 5))),
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
    def __init__(self, uri: str, names: Sequence[str], steps: int, folder: Path) -> None:
        import mlflow
        from mlflow import MlflowClient

        from sharedenc.tracking import MlflowTracker

        self._mlflow = mlflow
        self._uri, self._names, self._steps = uri, names, range(1, steps + 1)
        self._folder = folder
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

    def arrived(self) -> Side:
        """Rows in a row, until the server has all of them."""
        with self._trial() as run:
            start = time.perf_counter()
            for step in self._steps:
                run.metrics(self._values(step), step)
            self._settle(run)
            seconds = time.perf_counter() - start
        return self._side(seconds, run)

    def waited(self) -> Side:
        """What a trial does: say an epoch's row and train on; only the saying is timed."""
        seconds = 0.0
        with self._trial() as run:
            for step in self._steps:
                start = time.perf_counter()
                run.metrics(self._values(step), step)
                seconds += time.perf_counter() - start
                self._settle(run)
        return self._side(seconds, run)

    @contextmanager
    def _trial(self) -> Iterator[MlflowRun]:
        created = self._tracker.child(self._study, self._parent, "trial", {})
        run = self._tracker.handle(created.run_id)
        run.keep_in(self._folder / run.run_id)
        yield run
        run.end("done")

    def _settle(self, run: MlflowRun) -> None:
        while run.unsent:
            time.sleep(0.0002)

    def _side(self, seconds: float, run: MlflowRun) -> Side:
        return Side(1000 * seconds / len(self._steps), self._history(run.run_id))

    def request(self) -> float:
        """Milliseconds of one request that does nothing, on an open connection, per step."""
        import requests

        with requests.Session() as session:
            session.get(f"{self._uri}/health").raise_for_status()
            start = time.perf_counter()
            session.get(f"{self._uri}/health").raise_for_status()
            return 1000 * (time.perf_counter() - start) / len(self._steps)

    def line(self) -> float:
        """Milliseconds to append one line of the row's size to a file."""
        text = json.dumps(self._values(1)) + "\n"
        start = time.perf_counter()
        with (self._folder / "line").open("a") as file:
            file.write(text)
        return 1000 * (time.perf_counter() - start)

    def _history(self, run_id: str) -> History:
        return {
            name: [
                (point.step, point.value) for point in self._client.get_metric_history(run_id, name)
            ]
            for name in self._names
        }
