"""Read a study from MLflow into plain rows."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from jetson_agent.protocol import (
    COMPARISON,
    INT8_FILES,
    MODEL_FILE,
    READY,
    STALE_TAG,
    STATE_TAG,
    comparison_architecture,
)
from sharedenc.errors import SpecError, TrackingError
from sharedenc.redact import hide_credentials
from sharedenc.tracking import cause_of, is_study, no_study

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEARCH_STAGE = "lr-search"
# On a trial that was forced to run again: the newer one counts.
SUPERSEDED = "sharedenc.superseded"
_PAGE = 500

T = TypeVar("T", int, float)


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One tracked run, without the tracking library's classes; times are ms since 1970.

    ``artifact_uri`` is where the server keeps its files.
    """

    run_id: str
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    start_ms: int = 0
    end_ms: int = 0
    status: str = ""
    artifact_uri: str = ""


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

    @property
    def ended(self) -> str:
        """The state with its reason, where it has one: ``failed: loss is NaN``."""
        return f"{self.state}: {self.reason}" if self.reason else self.state


@dataclass(frozen=True, kw_only=True)
class TimingRow:
    """One bench run: an architecture on a device; milliseconds and queries per second.

    ``graph`` is `jetson_agent.protocol.COMPARISON` where one shared network was timed against two
    separate ones. ``stale`` is the newer software of the board, if there is any.
    """

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
    runtime: str = ""
    stale: str = ""

    @property
    def has_figure(self) -> bool:
        """Whether it may be quoted, with its doubts: its outputs are right, and it was timed."""
        return self.verdict in ("valid", "suspect")

    @property
    def family(self) -> str:
        """Whose figures can be compared: the backend, and the major version of its tool.

        TensorRT's major versions time differently by default, and ONNX Runtime is another program.
        """
        major = self.runtime.partition(".")[0]
        if self.backend == "tensorrt" and major.isdigit():
            return f"tensorrt {major}"
        return self.backend

    @property
    def board(self) -> str:
        """Device, power mode and family: all of `setup` but the load."""
        mode = f", {self.mode}" if self.mode else ""
        return f"{self.device}{mode}, {self.family}"

    @property
    def setup(self) -> str:
        """What was timed how, except for the network and its precision."""
        return f"{self.board}, {self.load}"


@dataclass(frozen=True, kw_only=True)
class ExportRow:
    """One registered graph: scores (0..1) of its files by kind (``float``, ``int8-trt``, ...).

    ``cell`` is what it was exported from: a cell, or a deployment that was assembled from several.
    ``images`` is the number of photos of ``split`` that they were scored on; ``int8_reason`` says
    why there are no INT8 files.
    """

    backbone: str
    graph: str
    cell: str
    model: str
    version: int
    images: int
    scores: Mapping[str, Mapping[str, float]]
    int8_reason: str
    split: str = "test"


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
    exports: tuple[ExportRow, ...] = ()

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
        if experiment.lifecycle_stage != "active":
            raise SpecError(
                f"study {study!r} was deleted in MLflow; to have it back: "
                f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            )
        runs = read_runs(client, [experiment.experiment_id])
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
    trials = [
        _trial(run)
        for run in runs
        if run.tags.get("sharedenc.kind") == "trial" and not run.tags.get(SUPERSEDED)
    ]
    parent = next((run for run in runs if run.tags.get("sharedenc.kind") == "study"), None)
    if not trials:
        raise SpecError(
            f"study {study!r} has no cells: none was swept yet (sharedenc sweep), or their runs "
            "were deleted in MLflow, where they can be restored"
        )
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
        exports=tuple(_export(version) for version in _newest_by_cell(versions)),
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
    Of several learning rates the one with the most finished seeds stays, the newest where that is
    even. Trials that wait for their rate have neither yet, and stay.
    """
    digest = (
        max(rows, key=lambda row: (row.state == "done", row.changed_ms)).data_digest if rows else ""
    )
    same = [row for row in rows if row.data_digest == digest or row.state != "done"]
    left_out = [
        (row, "trained on other data")
        for row in rows
        if row.data_digest != digest and row.state == "done"
    ]
    recipes = {row.run_id: _recipe(row) for row in same}
    cells_with = Counter(recipe for recipe, _ in {(recipes[r.run_id], r.cell) for r in same})
    by_cell: dict[str, list[TrialRow]] = {}
    for row in same:
        by_cell.setdefault(row.cell, []).append(row)
    kept: list[TrialRow] = []
    for mine in by_cell.values():
        done = [row for row in mine if row.state == "done"]
        newest = max(
            done or mine, key=lambda row: (cells_with[recipes[row.run_id]], row.changed_ms)
        )
        chosen = recipes[newest.run_id]
        left_out += [
            (row, "another recipe than the tables'")
            for row in mine
            if row.recipe and recipes[row.run_id] != chosen
        ]
        mine = [row for row in mine if not row.recipe or recipes[row.run_id] == chosen]
        rate = _rate([row for row in mine if row.state == "done"])
        left_out += [
            (row, "another learning rate than the tables'") for row in mine if _differs(row, rate)
        ]
        mine = [row for row in mine if not _differs(row, rate)]
        best: dict[int | str, TrialRow] = {}
        for row in sorted(mine, key=lambda row: (row.state == "done", row.changed_ms)):
            seed = row.run_id if row.seed is None else row.seed
            if seed in best:
                left_out.append((best[seed], "a newer or finished trial has this cell and seed"))
            best[seed] = row
        kept.extend(best.values())
    return kept, left_out


def _rate(done: Sequence[TrialRow]) -> float | None:
    """The learning rate of most of a cell's finished trials; None when none is known."""
    seeds = Counter(row.lr for row in done if row.lr is not None)
    newest = {row.lr: row.changed_ms for row in sorted(done, key=lambda row: row.changed_ms)}
    return max(seeds, key=lambda lr: (seeds[lr], newest[lr])) if seeds else None


def _differs(row: TrialRow, rate: float | None) -> bool:
    return rate is not None and row.lr is not None and row.lr != rate


def _recipe(row: TrialRow) -> str:
    return json.dumps(dict(row.recipe), sort_keys=True)


def _newest(versions: Iterable[VersionData]) -> dict[tuple[str, str], VersionData]:
    """The newest version by backbone and graph; a trained one before one for its speed alone."""
    newest: dict[tuple[str, str], VersionData] = {}
    for version in versions:
        place = (version.tags["sharedenc.backbone"], version.tags["sharedenc.graph"])
        known = newest.get(place)
        if known is None or _age(version) > _age(known):
            newest[place] = version
    return newest


def _newest_by_cell(versions: Sequence[VersionData]) -> list[VersionData]:
    """The newest version of each graph of each cell or deployment.

    One that was exported for its speed alone counts where its backbone's graph has no other.
    """
    by_graph = _newest(versions)
    newest: dict[tuple[str, str, str], VersionData] = {}
    for version in sorted(versions, key=_age):
        tags = version.tags
        place = (tags["sharedenc.backbone"], tags["sharedenc.graph"])
        if _age(version)[0] or by_graph[place] is version:
            newest[(*place, tags.get("sharedenc.cell", ""))] = version
    return [newest[place] for place in sorted(newest)]


def _age(version: VersionData) -> tuple[bool, int]:
    return version.tags.get("sharedenc.untrained") != "true", version.version


def _export(version: VersionData) -> ExportRow:
    tags = version.tags
    told = json.loads(tags.get("sharedenc.accuracy") or "{}")
    return ExportRow(
        backbone=tags["sharedenc.backbone"],
        graph=tags["sharedenc.graph"],
        cell=_exported_from(tags),
        model=version.model,
        version=version.version,
        images=int(told.get("images", 0)),
        scores={k: v for k, v in told.items() if k == "float" or k.startswith("int8-")},
        int8_reason=tags.get("sharedenc.int8_reason", ""),
        split=str(told.get("split", "test")),
    )


def _exported_from(tags: Mapping[str, str]) -> str:
    cell = tags.get("sharedenc.cell", "")
    backbone = tags["sharedenc.backbone"]
    # What was exported for its speed alone is of no cell: its tag is a plain word.
    return f"{backbone}/{cell}" if cell and "/" not in cell else cell


def _architectures(version: VersionData) -> dict[str, str]:
    """The digest of each of a version's ONNX files, by name."""
    found = json.loads(version.tags.get("sharedenc.architectures") or "{}")
    return {MODEL_FILE: version.tags.get("sharedenc.architecture", ""), **found}


def _join(versions: Sequence[VersionData], bench: Iterable[RunData]) -> list[TimingRow]:
    """Give every timing of a registered architecture the backbones and graphs that have it.

    Of several timings of one setup the newest valid one stays; one of software that the board no
    longer has counts only where there is no other.
    """
    newest = _newest(versions)
    files = _files(versions, newest)
    digests = {place: set(found.values()) for place, found in files.items()}
    for backbone in dict.fromkeys(backbone for backbone, _ in newest):
        parts = [files.get((backbone, graph)) for graph in ("seg", "det", "dual")]
        if None in parts:
            continue
        digests[backbone, COMPARISON] = {
            comparison_architecture([part[name] for part in parts if part is not None])
            for name in (MODEL_FILE, *INT8_FILES.values())
            if all(part is not None and name in part for part in parts)
        }
    rows: dict[tuple[str, ...], TimingRow] = {}
    timings = [_timing(run) for run in bench]
    for (backbone, graph), known in digests.items():
        for row in timings:
            if row.architecture not in known:
                continue
            mine = TimingRow(**{**row.__dict__, "backbone": backbone, "graph": graph})
            timed = (backbone, graph, mine.setup, mine.precision)
            known_row = rows.get(timed)
            if known_row is None or _trust(mine) > _trust(known_row):
                rows[timed] = mine
    return [rows[timed] for timed in sorted(rows)]


def _files(
    versions: Iterable[VersionData], newest: Mapping[tuple[str, str], VersionData]
) -> dict[tuple[str, str], dict[str, str]]:
    """The architecture of each ONNX file of a backbone's graph, by name.

    A version without INT8 files hides none: those of an older one with the same float file count.
    """
    files: dict[tuple[str, str], dict[str, str]] = {place: {} for place in newest}
    for version in sorted(versions, key=_age):
        place = (version.tags["sharedenc.backbone"], version.tags["sharedenc.graph"])
        own, last = _architectures(version), _architectures(newest[place])
        if own[MODEL_FILE] == last[MODEL_FILE]:
            files[place] |= own
    return files


def _trust(row: TimingRow) -> tuple[bool, bool, int]:
    return (not row.stale, row.verdict == "valid", row.changed_ms)


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
        runtime=tag("runtime"),
        stale=run.tags.get(STALE_TAG, ""),
    )


def read_runs(client: MlflowClient, experiment_ids: list[str]) -> list[RunData]:
    """Every run of these experiments that is not deleted.

    Raises:
        MlflowException: the server refused or did not answer.
    """
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
        # A score that is not a number is a finding; of anything else it is noise.
        metrics={
            k: v for k, v in run.data.metrics.items() if math.isfinite(v) or k.startswith("test/")
        },
        start_ms=run.info.start_time or 0,
        end_ms=run.info.end_time or 0,
        status=run.info.status,
        artifact_uri=run.info.artifact_uri or "",
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
    runs = read_runs(client, ids) if ids else []
    # One that is being written has its verdict already, and no figures.
    return [
        run
        for run in runs
        if run.tags.get("sharedenc.kind") == "bench" and run.status in ("FINISHED", "FAILED")
    ]


def _unknown_study(client: MlflowClient, study: str, uri: str) -> str:
    names = [
        experiment.name
        for experiment in client.search_experiments(max_results=_PAGE)
        if is_study(experiment.name)
    ]
    return no_study(study, names, uri)
