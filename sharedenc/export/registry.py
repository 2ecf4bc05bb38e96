"""Exports as versions in MLflow's model registry: the only way from a sweep to a board.

A version counts from the moment its tag ``export.state`` is ``ready``, which is set last; what an
interrupted export left is completed by the next one. Everything goes through ``MlflowClient``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from jetson_agent.protocol import MANIFEST_FILE, MODEL_FILE, READY, STATE_TAG, model_name
from sharedenc.errors import ExportError, SharedencError, TrackingError
from sharedenc.export.folder import Exported, default_graphs, export_folder, model_data
from sharedenc.export.metadata import Postprocess
from sharedenc.models.network import Network
from sharedenc.models.weights import file_sha256
from sharedenc.spec import Cell, Graph
from sharedenc.tracking import MlflowTracker, RunRecord, no_study, refusals
from sharedenc.training.checkpoint import load_network

CHECKPOINT = "checkpoint/best.safetensors"
CHECKPOINT_TAG = "sharedenc.checkpoint_sha256"
PARITY_TAG = "sharedenc.parity"
REPLACED = "replaced"
# What a study exports of itself, per backbone: cell without its backbone -> graphs.
OF_A_STUDY: dict[str, tuple[Graph, ...]] = {
    "baseline/det": ("det",),
    "baseline/seg": ("seg",),
    "dual": ("dual", "encoder"),
}

Outcome = Literal["registered", "present", "missing", "failed"]
OnRow = Callable[["Registered"], None]


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What became of one graph.

    ``registered``: a version was made or completed. ``present``: it was there and ready.
    ``missing``: no finished run gives it. ``failed``: the export is wrong; ``reason`` says why of
    both. ``version`` is set in the first two.
    """

    cell: str
    graph: str
    outcome: Outcome
    run_id: str = ""
    model: str = ""
    version: str = ""
    sha256: str = ""
    architecture: str = ""
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.outcome in ("registered", "present")


def register_run(
    uri: str,
    run_id: str,
    graphs: Sequence[Graph] | None = None,
    *,
    images: Tensor | None = None,
) -> list[Registered]:
    """Export graphs of one finished run and register them; what is there already stays.

    Args:
        graphs: by default those of `default_graphs`.
        images: normalised photos to check the files with, ``[N, 3, H, W]``.

    Raises:
        TrackingError: no server, no such run, or the run has no checkpoint.
        CheckpointError, ExportError: the run is not done, or its network cannot be exported.
    """
    registry = Registry(uri)
    with tempfile.TemporaryDirectory(prefix="sharedenc-export-") as folder:
        run = registry.open_run(run_id, Path(folder))
        return [
            registry.register(run, graph, Path(folder), images)
            for graph in graphs or default_graphs(run.network.tasks)
        ]


def export_study(
    uri: str,
    study: str,
    *,
    images: Tensor | None = None,
    on_row: OnRow | None = None,
) -> list[Registered]:
    """Register what a study exports of itself (`OF_A_STUDY`) for each of its backbones.

    Of several finished runs of one cell (seeds, recipes) the one with the best score is taken.
    A graph without a finished run, and one whose export fails, is a row with its reason.

    Returns:
        One row per backbone and graph: four per backbone.

    Raises:
        TrackingError: no server, or no such study.
    """
    registry = Registry(uri)
    runs = registry.trials(study)
    rows: list[Registered] = []
    for cell, graphs in study_exports(runs):
        for row in _export_cell(registry, runs, cell, graphs, images):
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return rows


def study_exports(runs: Sequence[RunRecord]) -> list[tuple[str, tuple[Graph, ...]]]:
    """Cells whose graphs a study exports of itself, for every backbone among its runs."""
    backbones = dict.fromkeys(Cell.parse(run.tags["sharedenc.cell"]).backbone for run in runs)
    return [
        (f"{backbone}/{rest}", graphs)
        for backbone in backbones
        for rest, graphs in OF_A_STUDY.items()
    ]


def _export_cell(
    registry: Registry,
    runs: Sequence[RunRecord],
    cell: str,
    graphs: Sequence[Graph],
    images: Tensor | None,
) -> Iterator[Registered]:
    best, reason = best_run(runs, cell)
    if best is None:
        yield from (
            Registered(cell=cell, graph=graph, outcome="missing", reason=reason) for graph in graphs
        )
        return
    with tempfile.TemporaryDirectory(prefix="sharedenc-export-") as folder:
        run: OpenRun | None = None
        for graph in graphs:
            try:
                run = run or registry.open_run(best.run_id, Path(folder))
                yield registry.register(run, graph, Path(folder), images)
            except SharedencError as error:
                yield Registered(
                    cell=cell,
                    graph=graph,
                    outcome="failed",
                    run_id=best.run_id,
                    reason=str(error),
                )


def best_run(runs: Sequence[RunRecord], cell: str) -> tuple[RunRecord | None, str]:
    """The finished run of ``cell`` with the best score (the oldest of equals), or why not."""
    same = [run for run in runs if run.tags.get("sharedenc.cell") == cell]
    done = [run for run in same if run.tags.get("sharedenc.state") == "done"]
    if done:
        return max(done, key=lambda run: (run.metrics.get("score", -1.0), -run.start_ms)), ""
    if not same:
        return None, f"the study has no run of {cell}"
    tags = same[-1].tags
    why = tags.get("sharedenc.reason")
    return None, f"{cell} is {tags.get('sharedenc.state', 'unfinished')}" + (
        f": {why}" if why else ""
    )


@dataclass(frozen=True)
class OpenRun:
    """A finished run's network, its meta with the run's own tags, and its checkpoint's digest."""

    run_id: str
    network: Network
    meta: dict[str, Any]
    checkpoint_sha256: str


class Registry:
    """One tracking server seen as a registry of exports.

    Raises:
        TrackingError: no server answers at ``uri``.
    """

    def __init__(self, uri: str) -> None:
        self._tracker = MlflowTracker(uri)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def trials(self, study: str) -> list[RunRecord]:
        """All runs of a study that train a cell for good; searches register nothing."""
        runs = self._tracker.runs(study)
        if not runs:
            raise TrackingError(no_study(study, self._tracker.studies()))
        return [
            run
            for run in runs
            if run.tags.get("sharedenc.kind") == "trial"
            and run.tags.get("sharedenc.stage") != "lr-search"
            and "sharedenc.cell" in run.tags
        ]

    def checkpoint(self, run_id: str, folder: Path) -> Path:
        """Download a run's best checkpoint below ``folder``.

        Raises:
            TrackingError: there is no such run, or it has no checkpoint.
        """
        try:
            return self._tracker.download(run_id, CHECKPOINT, folder)
        except TrackingError as error:
            raise TrackingError(
                f"run {run_id} has no checkpoint that can be fetched ({CHECKPOINT}): {error}"
            ) from error

    def run_of_version(self, name: str, version: str) -> str:
        """The run that a registered version was exported from."""
        with refusals():
            found = self._client.get_model_version(name, version)
        return str(found.run_id)

    def open_run(self, run_id: str, folder: Path, *, finished: bool = True) -> OpenRun:
        """Download a run's best network, by way of ``folder``, and load it.

        Args:
            finished: refuse a run that is not done.

        Raises:
            ExportError: the run is not done.
            TrackingError: there is no such run, or it has no checkpoint.
        """
        with refusals():
            run = self._client.get_run(run_id)
        tags, params = run.data.tags, run.data.params
        state = tags.get("sharedenc.state")
        if finished and state != "done":
            why = tags.get("sharedenc.reason")
            raise ExportError(
                f"run {run_id} is {state or 'no trial of sharedenc'}{f' ({why})' if why else ''}; "
                "only a run that is done can be exported."
            )
        path = self.checkpoint(run_id, folder)
        network, meta = load_network(path)
        thresholds = {
            field.name: json.loads(params[f"recipe.{field.name}"])
            for field in fields(Postprocess)
            if f"recipe.{field.name}" in params
        }
        told = {"run_id": run_id, "study": tags.get("sharedenc.study", ""), "recipe": thresholds}
        return OpenRun(run_id, network, {**meta, **told}, file_sha256(path))

    def register(
        self, run: OpenRun, graph: Graph, folder: Path, images: Tensor | None
    ) -> Registered:
        """Export one graph of ``run`` and make, complete or find its version."""
        cell, data = str(run.meta["cell"]), model_data(run.meta)
        model = model_name(data, run.network.backbone, graph)
        versions = self._versions(model, run.run_id)
        for version in versions:
            if self._is_whole(version, run, graph):
                return _row(cell, graph, "present", model, version)
        exported = export_folder(run.network, graph, folder / graph, meta=run.meta, images=images)
        version = self._publish(model, run, exported, versions)
        return _row(cell, graph, "registered", model, version)

    def _publish(
        self, model: str, run: OpenRun, exported: Exported, versions: Sequence[Any]
    ) -> Any:
        """Upload the folder, then tag a version of it, ``export.state`` last."""
        place = f"export/{exported.manifest.graph}"
        tags = {
            **exported.manifest.to_tags(),
            CHECKPOINT_TAG: run.checkpoint_sha256,
            PARITY_TAG: _short_parity(exported.info.parity),
        }
        with refusals():
            # All versions of one run and graph share one place, so an older one loses its files
            # now: say so before they change, or an agent would find files of another digest.
            for old in versions:
                if old.tags.get(STATE_TAG) == READY:
                    self._tag(model, old.version, {STATE_TAG: REPLACED})
            for name in (MODEL_FILE, MANIFEST_FILE):
                self._client.log_artifact(run.run_id, str(exported.folder / name), place)
            unfinished = [v for v in versions if STATE_TAG not in v.tags]
            if unfinished:
                number = unfinished[0].version
                self._tag(model, number, tags)
            else:
                self._create_model(model)
                number = self._client.create_model_version(
                    model,
                    source=f"runs:/{run.run_id}/{place}",
                    run_id=run.run_id,
                    tags=tags,
                    await_creation_for=0,
                ).version
            self._tag(model, number, {STATE_TAG: READY})
            return self._client.get_model_version(model, number)

    def _create_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _tag(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_model_version_tag(model, version, name, value)

    def _versions(self, model: str, run_id: str) -> list[Any]:
        """All versions of ``model`` that came from one run, oldest first."""
        found: list[Any] = []
        token: str | None = None
        with refusals():
            while True:
                page = self._client.search_model_versions(f"name='{model}'", page_token=token)
                found += [version for version in page if version.run_id == run_id]
                token = page.token
                if not token:
                    return sorted(found, key=lambda version: int(version.version))

    def _is_whole(self, version: Any, run: OpenRun, graph: Graph) -> bool:
        """Whether a version is ready, of this very checkpoint, and still has its files."""
        tags = version.tags
        if tags.get(STATE_TAG) != READY or tags.get(CHECKPOINT_TAG) != run.checkpoint_sha256:
            return False
        with refusals():
            files = self._client.list_artifacts(run.run_id, f"export/{graph}")
        return {MODEL_FILE, MANIFEST_FILE} <= {Path(file.path).name for file in files}


def _short_parity(parity: Mapping[str, Mapping[str, float]]) -> str:
    """How well each output agrees with torch, three digits: evidence that rides with a version."""
    return json.dumps(
        {
            output: {name: float(f"{value:.3g}") for name, value in numbers.items()}
            for output, numbers in parity.items()
        }
    )


def _row(cell: str, graph: str, outcome: Outcome, model: str, version: Any) -> Registered:
    return Registered(
        cell=cell,
        graph=graph,
        outcome=outcome,
        run_id=version.run_id,
        model=model,
        version=str(version.version),
        sha256=json.loads(version.tags["sharedenc.sha256"])[MODEL_FILE],
        architecture=version.tags["sharedenc.architecture"],
    )
