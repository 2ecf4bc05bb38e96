"""Put a report on its study's parent run in MLflow: files, cell metrics and a description."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.errors import TrackingError
from sharedenc.report.contents import Contents
from sharedenc.report.description import PLACE, cell_metrics, describe, report_link
from sharedenc.tracking import MAX_METRICS, THREADS, MlflowTracker, refusals

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FILES = (
    "report.md",
    "findings.csv",
    "deployments.csv",
    "tables/table_*",
    "figures/figure_*",
    "index.html",
)
"""What a report's folder holds of ours; the page is the last."""
NOTE = "mlflow.note.content"


def publish(uri: str, contents: Contents, folder: Path) -> None:
    """Upload the report in ``folder`` below ``report/`` of the parent run, and say there what is.

    Files are replaced; what else lies in ``folder`` stays where it is. Each cell's mean scores
    become metrics of the parent run (``cell/<cell>/mIoU``, ...), written again only when they
    change: the step counts the writes. The description gets a part of ours, and keeps what
    others wrote. A report of the published numbers belongs to no run.

    Raises:
        TrackingError: the server is away, refuses, or has no parent run any more.
    """
    if contents.published:
        return
    from mlflow import MlflowClient

    tracker = MlflowTracker(uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    rows = contents.facts.rows
    with _told_plainly(rows.study):
        with refusals():
            run = _parent(client, rows.study, rows.parent_run_id)
        _upload(tracker, run.info.run_id, folder)
        with refusals():
            _log(client, run, cell_metrics(rows))
            known = run.data.tags.get(NOTE, "")
            link = report_link(run.info.experiment_id, run.info.run_id)
            text = describe(contents, link, run.data.tags, known)
            if text is not None and text != known:
                client.set_tag(run.info.run_id, NOTE, text)


@contextmanager
def _told_plainly(study: str) -> Iterator[None]:
    """Say of a refused right what it is."""
    try:
        yield
    except TrackingError as error:
        if _is_forbidden(error):
            raise TrackingError(
                f"the server does not let you write to study {study!r}: ask for the right to edit "
                "its experiment, or leave out the upload"
            ) from error
        raise


def _is_forbidden(error: BaseException) -> bool:
    part: BaseException | None = error
    while part is not None:
        status = getattr(getattr(part, "response", None), "status_code", None)
        if status == 403 or getattr(part, "error_code", "") == "PERMISSION_DENIED":
            return True
        part = part.__cause__ or part.__context__
    return False


def _parent(client: MlflowClient, study: str, run_id: str) -> Run:
    """The study's parent run.

    Raises:
        TrackingError: it was deleted.
    """
    from mlflow.entities import LifecycleStage, ViewType
    from mlflow.exceptions import MlflowException

    deleted = run_id
    if run_id:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                return run
    else:
        experiment = client.get_experiment_by_name(study)
        if experiment is not None:
            for found in client.search_runs(
                [experiment.experiment_id],
                "tags.`sharedenc.kind` = 'study'",
                run_view_type=ViewType.DELETED_ONLY,
                max_results=1,
            ):
                deleted = found.info.run_id
    how = f"restore it (mlflow runs restore --run-id {deleted}), or " if deleted else ""
    raise TrackingError(
        f"the parent run of study {study!r} was deleted in MLflow, so that the report has no place "
        f"there; {how}run the sweep again, which makes a new one"
    )


def _upload(tracker: MlflowTracker, run_id: str, folder: Path) -> None:
    """Upload our files, the page last; remove those that an earlier report had beyond them."""
    files = [path for pattern in FILES for path in sorted(folder.glob(pattern)) if path.is_file()]

    def send(path: Path) -> None:
        place = Path(PLACE) / path.parent.relative_to(folder)
        handle = tracker.handle(run_id)
        handle.artifact(path, place.as_posix())
        if handle.unsent:
            raise TrackingError(f"the server went away while {path.name} was uploaded")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(send, files[:-1]))
    for path in files[-1:]:
        send(path)
    _remove_old(tracker, run_id, {f"{PLACE}/{p.relative_to(folder).as_posix()}" for p in files})


def _remove_old(tracker: MlflowTracker, run_id: str, new: set[str]) -> None:
    """Remove tables and figures of an earlier report that this one does not have."""
    folders = {Path(name).parent.as_posix() for name in new} - {PLACE}
    if not folders:
        return
    there = tracker.files(run_id, folders)
    stems = tuple(f"{PLACE}/{pattern[:-1]}" for pattern in FILES if pattern.endswith("*"))
    old = [name for name in there if name.startswith(stems) and name not in new]
    if old:
        tracker.delete_files(run_id, old)


def _log(client: MlflowClient, run: Run, values: Mapping[str, float]) -> None:
    """Write the metrics that changed; a cell's that is no more becomes NaN."""
    from mlflow.entities import Metric

    known: dict[str, Any] = {m.key: m for m in run.data._metric_objs if m.key.startswith("cell/")}
    wanted = {name: math.nan for name in known} | dict(values)
    now_ms = int(time.time() * 1000)
    new = [
        Metric(name, value, now_ms, known[name].step + 1 if name in known else 1)
        for name, value in wanted.items()
        if name not in known or not _same(known[name].value, value)
    ]
    for start in range(0, len(new), MAX_METRICS):
        client.log_batch(run.info.run_id, metrics=new[start : start + MAX_METRICS])


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
