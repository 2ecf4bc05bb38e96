"""`sharedenc export`: finished runs to ONNX, into the registry or onto the disk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sharedenc.cli.options import (
    data_options,
    data_rules,
    int8_options,
    load_plugins,
    plugin_option,
    runs_option,
    runs_root,
)
from sharedenc.errors import CheckpointError, ExportError, SpecError, check_choice
from sharedenc.spec import GRAPHS, Cell, Graph

if TYPE_CHECKING:
    from torch import Tensor

    from sharedenc.data.packed import PackedDataset
    from sharedenc.export.calibration import Calibration
    from sharedenc.export.deployment import Deployment
    from sharedenc.models.network import Network


@click.command()
@click.argument("targets", nargs=-1, metavar="RUN_OR_CELL...")
@click.option("--study", help="Study that cells are looked up in; alone: export all it gives.")
@click.option(
    "--deployment",
    "deployments",
    multiple=True,
    metavar="NAME",
    help="What serves both tasks, such as resnet18/share-frozen; may be given several times. One "
    "frozen encoder and its two heads become one dual graph.",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    metavar=f"[{'|'.join(GRAPHS)}]",
    help="What to export, may be given several times [default: what the network does, and of a "
    "dual one its encoder too].",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write OUT/<cell>/<graph>/ instead of registering.",
)
@int8_options
@data_options
@plugin_option
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(
    targets: tuple[str, ...],
    study: str | None,
    deployments: tuple[str, ...],
    graphs: tuple[str, ...],
    out: Path | None,
    int8: bool | None,
    int8_images: int | None,
    accuracy_images: int | None,
    data: Path | None,
    cache_dir: Path | None,
    plugins: tuple[Path, ...],
    runs_dir: Path | None,
    as_json: bool,
    **rules: Any,
) -> None:
    """Export finished runs to ONNX and register them.

    RUN_OR_CELL is a run's id, a cell such as resnet18/dual (with --study), or the path of a
    best.safetensors (with --out). The data is --data, else what the run was trained on, if this
    machine has it packed. With data, each file is compared with torch on its test photos, INT8
    files are made from its training photos, and all files are scored on its test split; without,
    the float file is compared on photo-like noise. What is registered already stays.

    \b
    Examples:
      sharedenc export --study full-grid-coco
      sharedenc export resnet18/share-frozen/seg --study full-grid-coco --data /data/coco
      sharedenc export best.safetensors --out exported
      sharedenc export best.safetensors --out exported --int8 --data /data/coco
      sharedenc export --study full-grid-coco --accuracy-images 500
      sharedenc export --deployment resnet18/share-frozen --study full-grid-coco
    """
    if deployments and (targets or graphs):
        raise click.UsageError(
            "a deployment has its own runs and graphs: leave out RUN_OR_CELL and --graph."
        )
    if not targets and not deployments and study is None:
        raise click.UsageError("say which runs or cells to export, or a whole study by --study.")
    if graphs and not targets:
        raise click.UsageError("a whole study has its own graphs; name cells to use --graph.")
    chosen = _graphs(graphs)
    load_plugins(plugins)
    whole = _deployments(deployments, study)
    files = [Path(target) for target in targets if Path(target).is_file()]
    if files and out is None:
        raise SpecError(
            f"{files[0]} is a file, not a run: it can be written by --out DIR but not registered."
        )
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        uri = ""
        if len(files) < len(targets) or not targets:
            from sharedenc.mlflow_server import serve

            uri = stack.enter_context(serve(runs_root(runs_dir))).uri
        photos = _Photos(
            int8, int8_images, accuracy_images, cache_dir, _pack(data, cache_dir, rules)
        )
        if whole:
            found = _export_deployments(uri, whole, str(study), out, photos)
        else:
            found = _export(uri, targets, study, chosen, out, photos)
        for row in found:
            rows.append(row)
            if not as_json:
                click.echo(_line(row))
    if as_json:
        click.echo(json.dumps({"exports": rows}, indent=2))
    failed = [row for row in rows if row["outcome"] == "failed"]
    if failed:
        raise ExportError(f"{len(failed)} of {len(rows)} exports failed: {failed[0]['reason']}")
    without = [row for row in rows if row.get("int8_reason")]
    if int8 and without:
        raise ExportError(
            f"{len(without)} of {len(rows)} exports have no INT8 files: {without[0]['int8_reason']}"
        )


@dataclass
class _Photos:
    """The data of each export: what was given, or what its run was trained on."""

    asked: bool | None
    int8_images: int | None
    accuracy_images: int | None
    cache: Path | None
    given: PackedDataset | None
    _known: dict[str, tuple[Tensor | None, Calibration | None]] = field(default_factory=dict)

    def of(self, meta: Mapping[str, Any], what: str) -> tuple[Tensor | None, Calibration | None]:
        """Photos to compare with torch on, and what INT8 files are made of; None without data.

        Args:
            meta: has the ``data_digest`` that was trained on.
            what: the run or study, for people.

        Raises:
            SpecError: INT8 files were asked for, and there is no data.
        """
        digest = "" if self.given is not None else str(meta.get("data_digest") or "")
        if digest not in self._known:
            self._known[digest] = self._find(digest, what)
        return self._known[digest]

    def _find(self, digest: str, what: str) -> tuple[Tensor | None, Calibration | None]:
        from sharedenc.export.calibration import DEFAULT_IMAGES, Calibration, pack_at_hand
        from sharedenc.export.onnx import PARITY_IMAGES
        from sharedenc.export.parity import photos
        from sharedenc.spec import Recipe

        pack = self.given or pack_at_hand({"data_digest": digest}, self.cache)
        if pack is None:
            why = f"the data of {what} is not packed on this machine; give --data DIR"
            if self.asked:
                raise SpecError(f"--int8 needs photos to calibrate with and to score on: {why}.")
            if self.asked is None:
                click.echo(f"no INT8 files and no scores: {why}", err=True)
            return None, None
        images = photos(pack.root, PARITY_IMAGES, Recipe().image_px)
        if self.asked is False:
            return images, None
        click.echo(f"INT8 files are made from, and all files scored on, {pack.root}", err=True)
        int8 = Calibration(
            pack=pack,
            images=self.int8_images or DEFAULT_IMAGES,
            accuracy_images=self.accuracy_images,
        )
        return images, int8


def _pack(
    data: Path | None, cache_dir: Path | None, rules: Mapping[str, Any]
) -> PackedDataset | None:
    if data is None:
        return None
    from sharedenc.data.packed import prepare

    return prepare(data, cache_dir, data_rules(rules))


def _graphs(names: Iterable[str]) -> tuple[Graph, ...] | None:
    for name in names:
        check_choice("graph", name, GRAPHS)
    return tuple(graph for graph in GRAPHS if graph in names) or None


def _deployments(names: tuple[str, ...], study: str | None) -> list[Deployment]:
    """The deployments of these names, each once; a wrong one is told before anything is done."""
    if not names:
        return []
    from sharedenc.export.deployment import Deployment

    found = [Deployment.parse(name) for name in dict.fromkeys(names)]
    if study is None:
        raise SpecError(f"deployment {found[0].name} is of which study? Add --study NAME.")
    return found


def _export_deployments(
    uri: str, deployments: list[Deployment], study: str, out: Path | None, photos: _Photos
) -> Iterator[dict[str, Any]]:
    """One row per graph that each deployment runs."""
    for deployment in deployments:
        name = deployment.name
        try:
            for row in _export_deployment(uri, deployment, study, out, photos):
                yield {**row, "deployment": name}
        except (ExportError, CheckpointError) as error:
            if len(deployments) == 1:
                raise
            # The others are still wanted.
            failed = {"cell": name, "graph": "", "outcome": "failed", "reason": str(error)}
            yield {**failed, "deployment": name}


def _export_deployment(
    uri: str, deployment: Deployment, study: str, out: Path | None, photos: _Photos
) -> Iterator[dict[str, Any]]:
    from sharedenc.export.deployment import open_deployment, register_opened
    from sharedenc.export.registry import Registry

    registry = Registry(uri)
    with tempfile.TemporaryDirectory(prefix="sharedenc-deployment-") as place:
        folder = Path(place)
        opened = open_deployment(registry, study, deployment, folder)
        if out is None:
            data = registry.data_of(next(iter(opened.runs.values())))
            images, int8 = photos.of(data, deployment.name)
            rows = register_opened(registry, study, opened, folder, images=images, int8=int8)
            yield from map(asdict, rows)
        elif opened.assembled is not None:
            made = opened.assembled
            meta = {**made.meta, "study": study, "recipe": made.recipe}
            yield from _write_network(made.network, meta, made.name, ("dual",), out, photos)
        else:
            for graph, run_id in opened.runs.items():
                yield from _write(run_id, uri, (graph,), out, photos)


def _export(
    uri: str,
    targets: tuple[str, ...],
    study: str | None,
    graphs: tuple[Graph, ...] | None,
    out: Path | None,
    photos: _Photos,
) -> Iterator[dict[str, Any]]:
    if targets:
        for target in targets:
            try:
                yield from _export_one(uri, target, study, graphs, out, photos)
            except (ExportError, CheckpointError) as error:
                if len(targets) == 1:
                    raise
                # The others are still wanted, and what is registered already is still told.
                yield {"cell": target, "graph": "", "outcome": "failed", "reason": str(error)}
    elif study is not None and out is not None:
        from sharedenc.export.registry import Registry, best_run, study_exports

        runs = Registry(uri).trials(study)
        for cell, own in study_exports(runs):
            best, reason = best_run(runs, cell)
            if best is None:
                yield {"cell": cell, "graph": "", "outcome": "missing", "reason": reason}
            else:
                yield from _write(best.run_id, uri, own, out, photos)
    elif study is not None:
        from sharedenc.export.registry import Registry, export_study

        done = [
            run for run in Registry(uri).trials(study) if run.tags.get("sharedenc.state") == "done"
        ]
        digest = done[-1].tags.get("sharedenc.data_digest") if done else None
        images, int8 = photos.of({"data_digest": digest}, f"study {study}")
        yield from map(asdict, export_study(uri, study, images=images, int8=int8))


def _export_one(
    uri: str,
    target: str,
    study: str | None,
    graphs: tuple[Graph, ...] | None,
    out: Path | None,
    photos: _Photos,
) -> Iterator[dict[str, Any]]:
    source = target if Path(target).is_file() else _run_id(uri, target, study)
    if out is not None:
        yield from _write(source, uri, graphs, out, photos)
    else:
        from sharedenc.export.registry import Registry, register_run

        images, int8 = photos.of(Registry(uri).data_of(source), target)
        yield from map(asdict, register_run(uri, source, graphs, images=images, int8=int8))


def _run_id(uri: str, target: str, study: str | None) -> str:
    from sharedenc.export.load import RUN_ID
    from sharedenc.export.registry import Registry, best_run

    if RUN_ID.fullmatch(target):
        return target
    cell = Cell.parse(target)
    if study is None:
        raise SpecError(f"cell {cell} is in which study? Add --study NAME, or give the run's id.")
    best, reason = best_run(Registry(uri).trials(study), cell.name)
    if best is None:
        raise ExportError(f"study {study} has nothing to export here: {reason}.")
    return best.run_id


def _write(
    source: str,
    uri: str,
    graphs: tuple[Graph, ...] | None,
    out: Path,
    photos: _Photos,
) -> Iterator[dict[str, Any]]:
    from sharedenc.export.load import load_with_meta

    loaded = load_with_meta(source, uri or None)
    yield from _write_network(loaded.network, loaded.meta, source, graphs, out, photos)


def _write_network(
    network: Network,
    meta: Mapping[str, Any],
    source: str,
    graphs: tuple[Graph, ...] | None,
    out: Path,
    photos: _Photos,
) -> Iterator[dict[str, Any]]:
    from sharedenc.export.accuracy import score_export
    from sharedenc.export.folder import default_graphs, export_folder

    cell = str(meta.get("cell") or Path(source).stem)
    images, int8 = photos.of(meta, source)
    for graph in graphs or default_graphs(network.tasks):
        done = export_folder(
            network,
            graph,
            out / cell.replace("/", "-") / graph,
            meta=meta,
            images=images,
            int8=int8,
        )
        accuracy = score_export(done, meta, int8)
        yield {
            "cell": cell,
            "graph": graph,
            "outcome": "written",
            "path": str(done.info.path),
            "sha256": done.info.sha256,
            "architecture": done.info.architecture,
            "files": done.manifest.files,
            "architectures": done.manifest.architectures,
            "precisions": done.manifest.precisions,
            "accuracy": {} if accuracy is None else accuracy.to_dict(),
            "parity": done.info.parity,
            "reason": "",
            "int8_reason": done.int8_reason,
        }


def _line(row: dict[str, Any]) -> str:
    registered = f"{row['model']} version {row['version']}" if row.get("model") else ""
    where = row.get("path") or registered
    without = f"no INT8 files: {row['int8_reason']}" if row.get("int8_reason") else ""
    parts = (row["outcome"], row["cell"], row["graph"], where, row["reason"], without)
    return "  ".join(part for part in (*parts, _scores(row.get("accuracy") or {})) if part)


def _scores(accuracy: Mapping[str, Any]) -> str:
    """Scores of each file side by side: ``mIoU 0.512 (int8-trt 0.508, int8-cpu 0.511)``."""
    exact = accuracy.get("float", {})
    told = []
    for name in ("mAP", "mIoU"):
        if name in exact:
            others = [
                f"{kind} {accuracy[kind][name]:.3f}"
                for kind in ("int8-trt", "int8-cpu")
                if name in accuracy.get(kind, {})
            ]
            told.append(f"{name} {exact[name]:.3f}" + (f" ({', '.join(others)})" if others else ""))
    return ", ".join(told)
