"""Read a study from MLflow into plain rows. The one file of the report that imports mlflow."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from jetson_agent.protocol import READY, STATE_TAG
from sharedenc.errors import SpecError, TrackingError
from sharedenc.tracking import cause_of, hide_credentials, is_study, no_study

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEARCH_STAGE = "lr-search"
_PAGE = 500

T = TypeVar("T", int, float)


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One tracked run, without the tracking library's classes; times are ms since 1970."""

    run_id: str
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    start_ms: int = 0
    end_ms: int = 0


@dataclass(frozen=True, kw_only=True)
class VersionData:
    """One registered model version and its tags."""

    model: str
    version: int
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial of a study: which cell, how it ended and what it scored."""

    run_id: str
    cell: str
    backbone: str
    strategy: str
    freeze: str
    task: str
    stage: str
    key: str
    state: str
    reason: str
    failure_kind: str
    seed: int | None
    lr: float | None
    recipe: Mapping[str, str]
    data: str
    data_digest: str
    classes: tuple[str, ...]
    metrics: Mapping[str, float]
    changed_ms: int

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Backbone, strategy, freeze and task ("" for both): the cell as a tuple."""
        return (self.backbone, self.strategy, self.freeze, self.task)


@dataclass(frozen=True, kw_only=True)
class TimingRow:
    """One bench run: an architecture on a device; milliseconds and queries per second."""

    architecture: str
    backbone: str
    graph: str
    device: str
    mode: str
    backend: str
    load: str
    precision: str
    verdict: str
    reason: str
    metrics: Mapping[str, float]
    changed_ms: int

    @property
    def setup(self) -> str:
        """What was timed how, except for the network and its precision."""
        mode = f", {self.mode}" if self.mode else ""
        return f"{self.device}{mode}, {self.backend}, {self.load}"


@dataclass(frozen=True, kw_only=True)
class StudyRows:
    """All that a report needs of one study.

    ``final`` has the trials that fill the tables, ``search`` those of learning-rate searches and
    ``left_out`` trials that are no part of the tables, each with the reason. ``registered`` has
    backbone and graph of every exported network.
    """

    study: str
    parent_run_id: str
    data: str
    data_digest: str
    classes: tuple[str, ...]
    final: tuple[TrialRow, ...]
    search: tuple[TrialRow, ...]
    left_out: tuple[tuple[TrialRow, str], ...]
    timings: tuple[TimingRow, ...]
    registered: frozenset[tuple[str, str]]

    @property
    def num_classes(self) -> int:
        """Classes of the heads, background counted."""
        return len(self.classes) + 1


def collect(uri: str, study: str) -> StudyRows:
    """Read the study's rows, its registered versions and the timings of their architectures.

    Raises:
        SpecError: the server has no such study.
        TrackingError: the server cannot be reached or refuses.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            raise SpecError(_unknown_study(client, study, uri))
        runs = _runs(client, [experiment.experiment_id])
        versions = _versions(client, study)
        bench = _bench_runs(client)
    except MlflowException as error:
        raise TrackingError(
            f"the tracking server at {hide_credentials(uri)} refused or did not answer: "
            f"{cause_of(error)}"
        ) from error
    return study_rows(study, runs, versions, bench)


def study_rows(
    study: str, runs: Sequence[RunData], versions: Sequence[VersionData], bench: Sequence[RunData]
) -> StudyRows:
    """Sort the runs of a study; pure, so that tests need no server."""
    trials = [_trial(run) for run in runs if run.tags.get("sharedenc.kind") == "trial"]
    parent = next((run for run in runs if run.tags.get("sharedenc.kind") == "study"), None)
    if not trials:
        raise SpecError(f"study {study!r} has no cells yet; run it first: sharedenc sweep")
    search = [row for row in trials if row.stage == SEARCH_STAGE]
    final = [row for row in trials if row.stage != SEARCH_STAGE]
    kept, left_out = _one_variant_per_cell(final)
    newest = max(kept or search, key=lambda row: (row.state == "done", row.changed_ms))
    return StudyRows(
        study=study,
        parent_run_id=parent.run_id if parent else "",
        data=newest.data,
        data_digest=newest.data_digest,
        classes=newest.classes,
        final=tuple(sorted(kept, key=lambda row: (row.cell, row.seed or 0))),
        search=tuple(sorted(search, key=lambda row: (row.cell, row.lr or 0.0))),
        left_out=tuple(left_out),
        timings=tuple(_join(versions, bench)),
        registered=frozenset(
            (v.tags["sharedenc.backbone"], v.tags["sharedenc.graph"]) for v in versions
        ),
    )


def _trial(run: RunData) -> TrialRow:
    def tag(name: str) -> str:
        return run.tags.get(f"sharedenc.{name}", "")

    return TrialRow(
        run_id=run.run_id,
        cell=tag("cell"),
        backbone=tag("backbone"),
        strategy=tag("strategy"),
        freeze=tag("freeze") or "none",
        task=_task(tag("cell")),
        stage=tag("stage"),
        key=tag("key"),
        state=tag("state"),
        reason=tag("reason"),
        failure_kind=tag("failure_kind"),
        seed=_number(run.params.get("seed"), int),
        lr=_number(run.params.get("lr"), float),
        recipe={k: v for k, v in run.params.items() if k.startswith("recipe.")},
        data=tag("data"),
        data_digest=tag("data_digest"),
        classes=tuple(json.loads(tag("classes") or "[]")),
        metrics=dict(run.metrics),
        changed_ms=run.end_ms or run.start_ms,
    )


def _task(cell: str) -> str:
    last = cell.rsplit("/", 1)[-1]
    return last if last in ("det", "seg") else ""


def _number(text: str | None, kind: Callable[[str], T]) -> T | None:
    try:
        return kind(text) if text is not None else None
    except ValueError:
        return None


def _one_variant_per_cell(
    rows: Sequence[TrialRow],
) -> tuple[list[TrialRow], list[tuple[TrialRow, str]]]:
    """Keep, per cell, trials of one data digest and one recipe, and one trial per seed.

    The data digest is that of the newest finished trial. The recipe is the one that most cells of
    the study have, the newest where that is even: a mean over different recipes means nothing.
    """
    digest = (
        max(rows, key=lambda row: (row.state == "done", row.changed_ms)).data_digest if rows else ""
    )
    same = [row for row in rows if row.data_digest == digest or row.state != "done"]
    left_out = [(row, "trained on other data") for row in rows if row not in same]
    cells_with = Counter(recipe for recipe, _ in {(_recipe(row), row.cell) for row in same})
    kept: list[TrialRow] = []
    for cell in {row.cell: None for row in same}:
        mine = [row for row in same if row.cell == cell]
        done = [row for row in mine if row.state == "done"]
        chosen = _recipe(
            max(done or mine, key=lambda row: (cells_with[_recipe(row)], row.changed_ms))
        )
        for row in mine:
            if _recipe(row) != chosen:
                left_out.append((row, "another recipe than the tables'"))
        best: dict[int | None, TrialRow] = {}
        for row in sorted(
            (row for row in mine if _recipe(row) == chosen),
            key=lambda row: (row.state == "done", row.changed_ms),
        ):
            if row.seed in best:
                left_out.append(
                    (best[row.seed], "a newer or finished trial has this cell and seed")
                )
            best[row.seed] = row
        kept.extend(best.values())
    return kept, left_out


def _recipe(row: TrialRow) -> str:
    return json.dumps(dict(row.recipe), sort_keys=True)


def _join(versions: Iterable[VersionData], bench: Iterable[RunData]) -> list[TimingRow]:
    """Give every timing of a registered architecture the backbones and graphs that have it.

    Of several timings of one setup the newest valid one stays.
    """
    newest: dict[tuple[str, str], VersionData] = {}
    for version in versions:
        place = (version.tags["sharedenc.backbone"], version.tags["sharedenc.graph"])
        known = newest.get(place)
        if known is None or version.version > known.version:
            newest[place] = version
    rows: dict[tuple[str, ...], TimingRow] = {}
    timings = [_timing(run) for run in bench]
    for (backbone, graph), version in newest.items():
        architecture = version.tags.get("sharedenc.architecture", "")
        for row in timings:
            if row.architecture != architecture:
                continue
            mine = TimingRow(**{**row.__dict__, "backbone": backbone, "graph": graph})
            timed = (backbone, graph, mine.setup, mine.precision)
            known_row = rows.get(timed)
            if known_row is None or _trust(mine) > _trust(known_row):
                rows[timed] = mine
    return [rows[timed] for timed in sorted(rows)]


def _trust(row: TimingRow) -> tuple[bool, int]:
    return (row.verdict == "valid", row.changed_ms)


def _timing(run: RunData) -> TimingRow:
    def tag(name: str) -> str:
        return run.tags.get(f"sharedenc.{name}", "")

    return TimingRow(
        architecture=tag("architecture"),
        backbone=tag("backbone"),
        graph=tag("graph"),
        device=tag("device"),
        mode=tag("mode"),
        backend=tag("backend"),
        load=tag("load"),
        precision=tag("precision"),
        verdict=tag("verdict"),
        reason=tag("reasons") or tag("reason"),
        metrics=dict(run.metrics),
        changed_ms=run.end_ms or run.start_ms,
    )


def _runs(client: MlflowClient, experiment_ids: list[str]) -> list[RunData]:
    found: list[RunData] = []
    token: str | None = None
    while True:
        page = client.search_runs(experiment_ids, max_results=_PAGE, page_token=token)
        found.extend(_run(run) for run in page)
        token = page.token
        if not token:
            return found


def _run(run: Any) -> RunData:
    return RunData(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics={k: v for k, v in run.data.metrics.items() if math.isfinite(v)},
        start_ms=run.info.start_time or 0,
        end_ms=run.info.end_time or 0,
    )


def _versions(client: MlflowClient, study: str) -> list[VersionData]:
    found: list[VersionData] = []
    token: str | None = None
    # MLflow's filters know no escapes, so the quote is one that the name does not have.
    quote = next((mark for mark in "'\"" if mark not in study), "")
    where = f"tags.`sharedenc.study` = {quote}{study}{quote}" if quote else ""
    while True:
        page = client.search_model_versions(where, max_results=_PAGE, page_token=token)
        found.extend(
            VersionData(model=v.name, version=int(v.version), tags=dict(v.tags)) for v in page
        )
        token = page.token
        if not token:
            return [v for v in found if _is_export_of(study, v.tags)]


def _is_export_of(study: str, tags: Mapping[str, str]) -> bool:
    named = {"sharedenc.backbone", "sharedenc.graph"} <= set(tags)
    return named and tags.get("sharedenc.study") == study and tags.get(STATE_TAG) == READY


def _bench_runs(client: MlflowClient) -> list[RunData]:
    ids: list[str] = []
    token: str | None = None
    while True:
        page = client.search_experiments(
            filter_string="name LIKE 'bench/%'", max_results=_PAGE, page_token=token
        )
        ids.extend(experiment.experiment_id for experiment in page)
        token = page.token
        if not token:
            break
    runs = _runs(client, ids) if ids else []
    return [run for run in runs if run.tags.get("sharedenc.kind") == "bench"]


def _unknown_study(client: MlflowClient, study: str, uri: str) -> str:
    names = [
        experiment.name
        for experiment in client.search_experiments(max_results=_PAGE)
        if is_study(experiment.name)
    ]
    return no_study(study, names, uri)
