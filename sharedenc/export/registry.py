"""Exports as versions in MLflow's model registry: the only way from a sweep to a board.

A version counts from the moment its tag ``export.state`` is ``ready``, which is set last; what an
interrupted export left is completed by the next one. Everything goes through ``MlflowClient``.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from jetson_agent.protocol import (
    MANIFEST_FILE,
    READY,
    STATE_TAG,
    TAG_LIMIT,
    ExportManifest,
    ProtocolError,
)
from sharedenc.errors import ExportError, SharedencError, TrackingError
from sharedenc.export.accuracy import Accuracy, score_export
from sharedenc.export.calibration import Calibration
from sharedenc.export.choose import PRUNED, best_run
from sharedenc.export.folder import Exported, default_graphs, export_folder
from sharedenc.export.metadata import Postprocess
from sharedenc.export.registered import (
    ACCURACY_TAG,
    CALIBRATION_TAG,
    CHECKPOINT_TAG,
    DEPLOYMENT_TAG,
    INT8_REASON_TAG,
    PARITY_TAG,
    PARTS_TAG,
    UNTRAINED,
    OpenRun,
    Registered,
    accuracy_tag,
    has_int8,
    model_of,
    row_of,
    short_parity,
)
from sharedenc.models.weights import file_sha256
from sharedenc.spec import Cell, Graph
from sharedenc.tracking import KIND, STUDY, MlflowTracker, RunRecord, no_study, refusals
from sharedenc.training.checkpoint import load_network

__all__ = ["OpenRun", "Registered", "Registry", "best_run", "export_study", "register_run"]

CHECKPOINT = "checkpoint/best.safetensors"
REPLACED = "replaced"
EXPORT_KIND = "export"
KEY, SUPERSEDED = "sharedenc.key", "sharedenc.superseded"
SHA256 = "sharedenc.sha256"
IDENTITY_TAG = "sharedenc.export_identity"
# Params that say how an encoder began.
START = ("weights", "seed", "recipe.bn_mode")
# What a study exports of itself, per backbone: cell without its backbone -> graphs.
OF_A_STUDY: dict[str, tuple[Graph, ...]] = {
    "baseline/det": ("det",),
    "baseline/seg": ("seg",),
    "dual": ("dual", "encoder"),
}

OnRow = Callable[[Registered], None]


def register_run(
    uri: str,
    run_id: str,
    graphs: Sequence[Graph] | None = None,
    *,
    images: Tensor | None = None,
    int8: Calibration | None = None,
) -> list[Registered]:
    """Export graphs of one finished run and register them; what is there already stays.

    Args:
        graphs: by default those of `default_graphs`.
        images: normalised photos to check the files with, ``[N, 3, H, W]``.
        int8: also make INT8 files and score all files; a version without them is replaced.

    Raises:
        TrackingError: no server, no such run, or the run has no checkpoint.
        CheckpointError, ExportError: the run is not done, or its network cannot be exported.
    """
    registry = Registry(uri)
    with tempfile.TemporaryDirectory(prefix="sharedenc-export-") as folder:
        run = registry.open_run(run_id, Path(folder))
        return [
            registry.register(run, graph, Path(folder), images, int8)
            for graph in graphs or default_graphs(run.network.tasks)
        ]


def export_study(
    uri: str,
    study: str,
    *,
    images: Tensor | None = None,
    int8: Calibration | None = None,
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
        for row in _export_cell(registry, runs, cell, graphs, images, int8):
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
    int8: Calibration | None,
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
                yield registry.register(run, graph, Path(folder), images, int8)
            except SharedencError as error:
                yield Registered(
                    cell=cell,
                    graph=graph,
                    outcome="failed",
                    run_id=best.run_id,
                    reason=str(error),
                )


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
        """All runs of a study that train a cell for good; searches register nothing.

        A run that another one has replaced is none of them.
        """
        runs = self._tracker.runs(study)
        if not runs:
            raise TrackingError(no_study(study, self._tracker.studies()))
        return [
            run
            for run in runs
            if run.tags.get(KIND) == "trial"
            and run.tags.get("sharedenc.stage") != "lr-search"
            and "sharedenc.cell" in run.tags
            and not run.tags.get(SUPERSEDED)
        ]

    def finished_run(self, key: str) -> RunRecord | None:
        """The newest finished run of a trial in any study that still has its network, or None."""
        found = self._tracker.find(KEY, [key], tags={"sharedenc.state": "done"})
        for run in found.get(key, ()):
            if run.tags.get(KIND) == "trial" and not {SUPERSEDED, PRUNED} & set(run.tags):
                return run
        return None

    def data_of(self, run_id: str) -> dict[str, str]:
        """``data_digest`` of a run, empty if it does not say on which data it was trained."""
        with refusals():
            tags = self._client.get_run(run_id).data.tags
        return {"data_digest": tags.get("sharedenc.data_digest", "")}

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
        """The run that a registered version was exported from.

        Raises:
            ExportError: the version is of an untrained network, which no run keeps.
        """
        with refusals():
            found = self._client.get_model_version(name, version)
        if found.tags.get("sharedenc.untrained") == "true":
            raise ExportError(
                f"{name} version {version} was exported before any training, for its speed alone: "
                f"there is no network to load. Take a version of {name.removesuffix(UNTRAINED)}."
            )
        return str(found.run_id)

    def export_run(
        self,
        study: str,
        name: str,
        identity: str,
        *,
        tags: Mapping[str, str] = MappingProxyType({}),
        params: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """A run of ``study`` that holds files of no trial, found by ``identity`` or made.

        Its kind is ``export``, so it is no cell of the study; ``tags`` and ``params`` are what else
        a new one says.
        """
        parent = self._tracker.study(study, {})
        for run in self._tracker.runs(study):
            if run.tags.get(KIND) == EXPORT_KIND and run.tags.get(IDENTITY_TAG) == identity:
                return run.run_id
        own = {
            KIND: EXPORT_KIND,
            STUDY: study,
            IDENTITY_TAG: identity,
            "mlflow.parentRunId": parent,
        }
        with refusals():
            experiment = self._client.get_run(parent).info.experiment_id
            made = self._client.create_run(experiment, tags={**tags, **own}, run_name=name)
            for setting, value in params.items():
                self._client.log_param(made.info.run_id, setting, value)
            self._client.set_terminated(made.info.run_id)
        return str(made.info.run_id)

    def keep_checkpoint(self, run_id: str, path: Path) -> None:
        """Upload a network as the checkpoint of an export's run, unless it is there whole."""
        digests = json.dumps({CHECKPOINT: file_sha256(path)})
        with refusals():
            known = self._client.get_run(run_id).data.tags.get(SHA256)
            if known == digests and CHECKPOINT in self._tracker.files(run_id, ["checkpoint"]):
                return
            self._client.log_artifact(run_id, str(path), "checkpoint")
            self._client.set_tag(run_id, SHA256, digests)

    def find(self, model: str, graph: Graph, checkpoint_sha256: str) -> Any | None:
        """A ready version of ``model`` with INT8 files, of whichever run and study, or None."""
        for version in self._versions(model):
            if self._is_whole(version, checkpoint_sha256, graph) and has_int8(version):
                return version
        return None

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
        # What an export's run keeps was made of runs that were done.
        if finished and state != "done" and tags.get(KIND) != EXPORT_KIND:
            why = tags.get("sharedenc.reason")
            raise ExportError(
                f"run {run_id} is {state or 'no trial of sharedenc'}{f' ({why})' if why else ''}; "
                "only a run that is done can be exported."
            )
        path = self.checkpoint(run_id, folder)
        network, meta = load_network(path)
        names = [*(field.name for field in fields(Postprocess)), "sample_path"]
        settings = {
            name: _param(params[f"recipe.{name}"]) for name in names if f"recipe.{name}" in params
        }
        told = {"run_id": run_id, "study": tags.get("sharedenc.study", ""), "recipe": settings}
        return OpenRun(
            run_id,
            network,
            {**meta, **told},
            file_sha256(path),
            tags={name: tags[name] for name in (DEPLOYMENT_TAG, PARTS_TAG) if name in tags},
            start={name.rpartition(".")[2]: params[name] for name in START if name in params},
        )

    def register(
        self,
        run: OpenRun,
        graph: Graph,
        folder: Path,
        images: Tensor | None,
        int8: Calibration | None = None,
    ) -> Registered:
        """Export one graph of ``run`` and make, complete or find its version."""
        cell, model = str(run.meta["cell"]), model_of(run, graph)
        versions = self._versions(model, run.run_id)
        whole = [
            version for version in versions if self._is_whole(version, run.checkpoint_sha256, graph)
        ]
        for version in whole:
            if int8 is None or has_int8(version):
                return row_of(cell, graph, "present", model, version)
        exported = export_folder(
            run.network,
            graph,
            folder / graph,
            meta=run.meta,
            images=images,
            int8=int8,
            tolerance=run.tolerance,
            untrained=run.untrained,
        )
        if whole and exported.int8_reason:
            # Nothing better than what is there: a new version would be timed for nothing.
            self._tag(model, whole[0].version, {INT8_REASON_TAG: exported.int8_reason[:TAG_LIMIT]})
            with refusals():
                version = self._client.get_model_version(model, whole[0].version)
            return row_of(cell, graph, "present", model, version)
        accuracy = None if run.untrained else score_export(exported, run.meta, int8)
        version = self._publish(model, run, exported, versions, accuracy, int8)
        return row_of(cell, graph, "registered", model, version)

    def _publish(
        self,
        model: str,
        run: OpenRun,
        exported: Exported,
        versions: Sequence[Any],
        accuracy: Accuracy | None,
        int8: Calibration | None,
    ) -> Any:
        """Upload the folder, then tag a version of it, ``export.state`` last."""
        manifest = exported.manifest
        place = f"export/{manifest.graph}"
        tags = {
            **manifest.to_tags(),
            **run.tags,
            CHECKPOINT_TAG: run.checkpoint_sha256,
            PARITY_TAG: short_parity(exported.info.parity),
            ACCURACY_TAG: accuracy_tag(accuracy, exported),
            CALIBRATION_TAG: "" if int8 is None else int8.summary(),
            INT8_REASON_TAG: exported.int8_reason[:TAG_LIMIT],
        }
        with refusals():
            # All versions of one run and graph share one place, so an older one loses its files
            # now: say so before they change, or an agent would find files of another digest.
            for old in versions:
                if old.tags.get(STATE_TAG) == READY:
                    self._tag(model, old.version, {STATE_TAG: REPLACED})
            for name in (*manifest.files, MANIFEST_FILE):
                self._client.log_artifact(run.run_id, str(exported.folder / name), place)
            if accuracy is not None:
                self._log_metrics(run.run_id, accuracy.metrics(manifest.graph))
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

    def _log_metrics(self, run_id: str, values: Mapping[str, float]) -> None:
        """Add to a run that has ended; a newer export's values stand beside the older ones."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        rows = [Metric(name, value, now_ms, 0) for name, value in values.items()]
        self._client.log_batch(run_id, metrics=rows)

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

    def _versions(self, model: str, run_id: str = "") -> list[Any]:
        """All versions of ``model``, or those that came from one run, oldest first."""
        found: list[Any] = []
        token: str | None = None
        with refusals():
            while True:
                page = self._client.search_model_versions(f"name='{model}'", page_token=token)
                found += [version for version in page if run_id in ("", version.run_id)]
                token = page.token
                if not token:
                    return sorted(found, key=lambda version: int(version.version))

    def _is_whole(self, version: Any, checkpoint_sha256: str, graph: Graph) -> bool:
        """Whether a version is ready, of this very checkpoint, and still has all its files."""
        tags = version.tags
        if tags.get(STATE_TAG) != READY or tags.get(CHECKPOINT_TAG) != checkpoint_sha256:
            return False
        try:
            manifest = ExportManifest.from_tags(tags)
        except ProtocolError:
            return False
        with refusals():
            files = self._client.list_artifacts(version.run_id, f"export/{graph}")
        return {*manifest.files, MANIFEST_FILE} <= {Path(file.path).name for file in files}


def _param(text: str) -> Any:
    """A run's parameter as the value that it was; a plain word stands for itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
