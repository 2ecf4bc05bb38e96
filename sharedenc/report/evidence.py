"""What stands behind a report's numbers: training curves, predictions on photos, provenance."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from sharedenc.data.progress import progress
from sharedenc.errors import TrackingError
from sharedenc.report.collect import RunData, StudyRows, TrialRow, read_runs
from sharedenc.tracking import REUSED_FROM, THREADS, MlflowTracker, refusals

if TYPE_CHECKING:
    from sharedenc.report.photos import Tiles

RUNS_AT_ONCE, MOST_ROWS = 100, 25_000
"""Runs and rows of one answer with the histories of a metric."""
PAGE_FOLDER = "predictions"
MOST_NAMED = 5
"""Cells that a note names."""
MOST_KEPT = 200
_TILES: dict[str, Tiles] = {}
"""By run: a finished trial's page does not change, and a watched report is made again and again."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of one trial over its epochs: ``(epoch, value)``."""

    cell: str
    seed: int | None
    metric: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One test photo as JPEG files: the truth, and what each cell's network predicts on it."""

    image_id: str
    truth: Mapping[str, bytes]
    predictions: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the numbers come from: ``rows`` of a name and one or more values, for people."""

    rows: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All of it; ``notes`` says what could not be had."""

    curves: tuple[Curve, ...] = ()
    photos: tuple[Photo, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)
    notes: tuple[str, ...] = ()


def gather(
    uri: str,
    rows: StudyRows,
    *,
    predictions: bool = True,
    curves: bool = True,
    shown: bool = False,
) -> Evidence:
    """Read from the server at ``uri`` what stands behind a study's numbers.

    Whatever cannot be had leaves a note that says which and why; nothing here fails a report.

    Args:
        rows: The study, as collected.
        predictions: Fetch and cut a page of pictures for each cell.
        curves: Fetch the training curves.
        shown: Show a progress bar on standard error.
    """
    from sharedenc.report.provenance import provenance

    server = _Server(uri)
    try:
        found = server.runs(rows.study)
    except TrackingError as error:
        return Evidence(
            notes=(f"Curves, predictions and provenance could not be read: {error}.",),
        )
    notes: list[str] = []
    lines: tuple[Curve, ...] = ()
    photos: tuple[Photo, ...] = ()
    there = [row for row in rows.final if row.run_id in found]
    if len(there) < len(rows.final):
        gone = len(rows.final) - len(there)
        what = "1 trial was" if gone == 1 else f"{gone} trials were"
        notes.append(f"{what} deleted in MLflow while the report was made.")
    if curves:
        lines = _curves(server, there, notes, shown)
    if predictions:
        photos = _photos(server, there, notes, shown)
    return Evidence(
        curves=lines,
        photos=photos,
        provenance=provenance(rows, list(found.values())),
        notes=tuple(notes),
    )


def _curves(
    server: _Server, trials: Sequence[TrialRow], notes: list[str], shown: bool
) -> tuple[Curve, ...]:
    from sharedenc.report.curves import METRICS, shown_trials, thinned

    chosen, left_out = shown_trials(trials)
    notes += left_out
    asked = {name: [row.run_id for row in chosen if name in row.metrics] for name in METRICS}
    histories: dict[tuple[str, str], list[tuple[int, float]]] = {}
    with progress("training curves", len(METRICS), unit="metrics", shown=shown) as advance:
        for name, run_ids in asked.items():
            try:
                for run_id, points in server.histories(run_ids, name).items():
                    histories[run_id, name] = points
            except TrackingError as error:
                notes.append(f"No training curves of {name}: {error}.")
            advance(1)
    found = (
        Curve(
            cell=row.cell,
            seed=row.seed,
            metric=name,
            points=thinned(histories.get((row.run_id, name), ()), name),
        )
        for row in chosen
        for name in METRICS
    )
    return tuple(curve for curve in found if curve.points)


def _photos(
    server: _Server, trials: Sequence[TrialRow], notes: list[str], shown: bool
) -> tuple[Photo, ...]:
    from sharedenc.report.curves import representative
    from sharedenc.report.photos import cut, side_by_side

    chosen = representative(row for row in trials if row.state == "done")
    found: dict[str, Tiles] = {}
    missing: dict[str, list[str]] = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress("predictions", len(chosen), unit="cells", shown=shown) as advance,
        ThreadPoolExecutor(THREADS) as pool,
    ):

        def fetch(row: TrialRow) -> Tiles | str:
            known = _TILES.get(row.run_id)
            if known is not None:
                return known
            try:
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    tiles = cut(server.page(row.run_id, Path(folder)))
            except (TrackingError, ValueError, OSError) as error:
                return str(error)
            if len(_TILES) < MOST_KEPT:
                _TILES[row.run_id] = tiles
            return tiles

        for row, tiles in zip(chosen, pool.map(fetch, chosen), strict=True):
            advance(1)
            if isinstance(tiles, str):
                missing.setdefault(tiles, []).append(row.cell)
            else:
                found[row.cell] = tiles
    for reason, cells in missing.items():
        some = ", ".join(cells[:MOST_NAMED])
        more = f" and {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else ""
        which = "any cell" if len(cells) == len(chosen) > 1 else some + more
        notes.append(f"No predictions of {which}: {reason}.")
    photos, left_out = side_by_side(found)
    notes += left_out
    return photos


class _Server:
    """One MLflow server, as far as evidence needs it; what goes wrong is a TrackingError."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._stores: dict[str, str] = {}
        self._origins: dict[str, str] = {}

    def runs(self, study: str) -> dict[str, RunData]:
        """Every run of a study that is not deleted, by id."""
        # The tracker sets how long a request may take before the first one is made.
        MlflowTracker(self._uri)
        from mlflow import MlflowClient

        with refusals():
            self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            experiment = self._client.get_experiment_by_name(study)
            ids = [] if experiment is None else [experiment.experiment_id]
            found = read_runs(self._client, ids) if ids else []
        self._stores = {run.run_id: run.artifact_uri for run in found}
        self._origins = {run.run_id: run.tags.get(REUSED_FROM, "") for run in found}
        return {run.run_id: run for run in found}

    def histories(self, run_ids: Sequence[str], metric: str) -> dict[str, list[tuple[int, float]]]:
        """All values of a metric, ``(step, value)`` in the order of steps and time, by run."""
        found: dict[str, list[tuple[int, float]]] = {}
        for start in range(0, len(run_ids), RUNS_AT_ONCE):
            some = run_ids[start : start + RUNS_AT_ONCE]
            bulk = self._bulk(some, metric)
            found |= self._one_by_one(some, metric) if bulk is None else bulk
        return found

    def _bulk(
        self, run_ids: Sequence[str], metric: str
    ) -> dict[str, list[tuple[int, float]]] | None:
        """In one request, as MLflow's own UI asks; None where the server cannot, or cuts it."""
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        with refusals():
            answer = http_request(
                get_default_host_creds(self._uri),
                "/ajax-api/2.0/mlflow/metrics/get-history-bulk",
                "GET",
                params={"run_id": list(run_ids), "metric_key": metric},
            )
        if answer.status_code != HTTPStatus.OK:
            return None
        try:
            rows = answer.json()["metrics"]
            if len(rows) >= MOST_ROWS:
                return None
            return _by_run([(r["run_id"], r["step"], r["timestamp"], r["value"]) for r in rows])
        except (ValueError, LookupError, TypeError):
            return None

    def _one_by_one(
        self, run_ids: Sequence[str], metric: str
    ) -> dict[str, list[tuple[int, float]]]:
        def ask(run_id: str) -> list[tuple[str, int, int, float]]:
            with refusals():
                points = self._client.get_metric_history(run_id, metric)
            return [(run_id, point.step, point.timestamp, point.value) for point in points]

        with ThreadPoolExecutor(THREADS) as pool:
            return _by_run([row for rows in pool.map(ask, run_ids) for row in rows])

    def page(self, run_id: str, to: Path) -> Path:
        """Download a trial's page of pictures and its layout to below ``to``; their folder.

        Raises:
            TrackingError: they are not there; the text goes on behind a colon.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with refusals():
            owner = self._origins.get(run_id) or run_id
            if owner not in self._stores:
                self._stores[owner] = str(self._client.get_run(owner).info.artifact_uri)
            store = get_artifact_repository(self._stores[owner], tracking_uri=self._uri)
            names = {item.path for item in store.list_artifacts(PAGE_FOLDER)}
            if f"{PAGE_FOLDER}/page.png" not in names:
                raise TrackingError("the trial's files hold no page of pictures")
            if f"{PAGE_FOLDER}/page.json" not in names:
                raise TrackingError(
                    "an earlier version trained it, whose page does not say where each photo is"
                )
            for name in ("page.json", "page.png"):
                store.download_artifacts(f"{PAGE_FOLDER}/{name}", str(to))
        return to / PAGE_FOLDER


def _by_run(rows: list[tuple[str, int, int, float]]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for run_id, step, _, value in sorted(rows, key=lambda row: row[:3]):
        found.setdefault(run_id, []).append((int(step), float(value)))
    return found
