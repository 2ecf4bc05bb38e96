"""Whole deployments, by name: which cells serve both tasks, and how they reach the registry.

One frozen encoder with two heads, trained in two trials, becomes one ``dual`` graph; what needs two
encoder passes is exported as two graphs, each of its own cell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sharedenc import spec
from sharedenc.errors import ExportError, SpecError, check_choice, nearest
from sharedenc.export.assemble import Assembled, assemble, encoder_digests
from sharedenc.export.calibration import Calibration
from sharedenc.export.choose import Parts, best_of_each, best_run, pairs, swaps
from sharedenc.export.registered import OpenRun, Registered
from sharedenc.export.registry import Registry
from sharedenc.models.weights import file_sha256
from sharedenc.spec import BACKBONES, TASKS, Cell, Graph, Task
from sharedenc.training.checkpoint import BEST, save_network

FORM = "<backbone>/<strategy>[-<freeze>], for a swap with the task that was trained on top"


@dataclass(frozen=True)
class Deployment:
    """What serves both tasks: ``resnet18/baseline``, ``resnet18/swap-frozen/seg``, ...

    ``head`` is the cell that the name stands for; of a swap it is the one of the two that starts
    from the other.
    """

    name: str
    head: Cell

    @classmethod
    def parse(cls, text: str) -> Deployment:
        """Read a deployment's name.

        Raises:
            SpecError: unknown backbone, or no deployment of that name; the nearest is told.
        """
        name = text.strip()
        backbone = name.split("/")[0]
        check_choice("backbone", backbone, BACKBONES)
        known = {deployment.name: deployment for deployment in deployments_of(backbone)}
        if name in known:
            return known[name]
        whole = name.rpartition("/")[0]
        hint = (
            f" {name} is a cell, and serves one task; the deployment is {whole!r}."
            if whole in known
            else nearest(name, known)
        )
        raise SpecError(
            f"{text!r} is no deployment ({FORM}); {backbone} has {', '.join(known)}.{hint}"
        )

    @property
    def cells(self) -> dict[Graph, Cell]:
        """The cells that are trained for it, by the graph that each exports of itself."""
        head = self.head
        if head.task is None:
            return {"dual": head}
        if head.source is not None:
            both = {head.graph: head, head.source.graph: head.source}
            return {task: both[task] for task in TASKS}
        return {
            task: Cell(
                strategy=head.strategy, backbone=head.backbone, freeze=head.freeze, task=task
            )
            for task in TASKS
        }

    @property
    def assembled(self) -> bool:
        """Whether two trials have one encoder, so that one graph can serve both tasks."""
        return self.head.freeze == "frozen" and self.head.task is not None

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs that run for one picture, each with an encoder pass."""
        return ("dual",) if self.assembled else tuple(self.cells)


def deployments_of(backbone: str) -> list[Deployment]:
    """Every deployment that a backbone's cells can serve, those of plugins' freeze modes too."""
    found: list[Deployment] = []
    for strategy in spec.STRATEGIES:
        for freeze in spec.FREEZES:
            for task in (None,) if strategy == "dual" else TASKS:
                try:
                    cell = Cell(strategy=strategy, backbone=backbone, freeze=freeze, task=task)
                except SpecError:
                    continue  # no such combination
                # Both tasks of a swap are a deployment of its own, those of others are one.
                whole = strategy in ("swap", "dual")
                name = cell.name if whole else cell.name.rpartition("/")[0]
                if name not in [deployment.name for deployment in found]:
                    found.append(Deployment(name, cell))
    return found


@dataclass(frozen=True)
class Opened:
    """The runs that a deployment is exported from, by graph, or its assembled network."""

    runs: Mapping[Graph, str]
    assembled: Assembled | None = None


def open_deployment(registry: Registry, study: str, deployment: Deployment, folder: Path) -> Opened:
    """Choose a deployment's runs of a study; of a frozen one, fetch and assemble its networks.

    Of several seeds the best scores count: for a swap those of the swap, with the run that it
    started from; for two shared cells their mean, among those with one encoder.

    Args:
        folder: for downloads, which are needed no longer afterwards.

    Raises:
        ExportError: a cell is not done, or no two of the trials have one encoder.
        TrackingError: no such study, or a checkpoint that cannot be fetched.
    """
    trials = registry.trials(study)
    cells = deployment.cells
    try:
        if "dual" in cells:
            best, reason = best_run(trials, cells["dual"].name)
            if best is None:
                raise ExportError(reason)
            return Opened({"dual": best.run_id})
        by_task: dict[Task, Cell] = {task: cells[task] for task in TASKS}
        head = deployment.head
        if head.source is not None:
            assert head.task is not None
            found = swaps(trials, by_task, head.task, registry.finished_run)
        elif head.strategy == "share":
            found = pairs(trials, by_task)
        else:
            found = best_of_each(trials, by_task)
    except ExportError as error:
        reason = str(error).rstrip(".")
        raise ExportError(f"study {study} does not give {deployment.name}: {reason}.") from error
    if not deployment.assembled:
        return Opened({task: found[0][task].run_id for task in TASKS})
    parts = _with_one_encoder(registry, found, folder)
    ids: dict[Graph, str] = {task: part.run_id for task, part in parts.items()}
    return Opened(ids, assemble(deployment.name, parts))


def register_deployment(
    uri: str,
    study: str,
    name: str,
    *,
    images: Tensor | None = None,
    int8: Calibration | None = None,
) -> list[Registered]:
    """Export what a deployment runs, and register it; what is there already stays.

    An assembled network hangs on a run of kind ``export`` of the study, with a checkpoint of its
    own; its versions have the deployment's name as their cell.

    Args:
        images, int8: see `sharedenc.export.registry.register_run`.

    Returns:
        One row per graph of the deployment.

    Raises:
        SpecError: there is no such deployment.
        ExportError, TrackingError, CheckpointError: see `open_deployment` and `register_run`.
    """
    deployment = Deployment.parse(name)
    registry = Registry(uri)
    with tempfile.TemporaryDirectory(prefix="sharedenc-deployment-") as place:
        folder = Path(place)
        opened = open_deployment(registry, study, deployment, folder)
        return register_opened(registry, study, opened, folder, images=images, int8=int8)


def register_opened(
    registry: Registry,
    study: str,
    opened: Opened,
    folder: Path,
    *,
    images: Tensor | None = None,
    int8: Calibration | None = None,
) -> list[Registered]:
    """`register_deployment`, once the runs are chosen."""
    if opened.assembled is not None:
        run = keep(registry, study, opened.assembled, folder)
        return [registry.register(run, "dual", folder, images, int8)]
    return [
        registry.register(
            registry.open_run(run_id, folder / run_id), graph, folder / run_id, images, int8
        )
        for graph, run_id in opened.runs.items()
    ]


def keep(registry: Registry, study: str, assembled: Assembled, folder: Path) -> OpenRun:
    """Give an assembled network a run that holds it, once for the same checkpoints."""
    path = folder / "assembled" / BEST
    path.parent.mkdir(parents=True)
    save_network(assembled.network, path, assembled.meta)
    run_id = registry.export_run(
        study,
        assembled.name,
        assembled.identity,
        tags=assembled.tags,
        params={f"recipe.{name}": value for name, value in assembled.recipe.items()},
    )
    registry.keep_checkpoint(run_id, path)
    told = {"run_id": run_id, "study": study, "recipe": assembled.recipe}
    return OpenRun(
        run_id,
        assembled.network,
        {**assembled.meta, **told},
        file_sha256(path),
        tags=assembled.tags,
    )


def _with_one_encoder(
    registry: Registry, found: Sequence[Parts], folder: Path
) -> dict[Task, OpenRun]:
    """The first pair whose encoders are equal, else the best one, whose difference will be told.

    No more checkpoints are fetched than that takes.
    """
    opened: dict[str, OpenRun] = {}
    digests: dict[str, dict[str, str]] = {}
    for parts in found:
        for run in parts.values():
            if run.run_id not in opened:
                opened[run.run_id] = registry.open_run(run.run_id, folder / run.run_id)
                digests[run.run_id] = encoder_digests(opened[run.run_id].network)
        if digests[parts["det"].run_id] == digests[parts["seg"].run_id]:
            return {task: opened[run.run_id] for task, run in parts.items()}
    return {task: opened[run.run_id] for task, run in found[0].items()}
