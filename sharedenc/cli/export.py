"""`sharedenc export`: finished runs to ONNX, into the registry or onto the disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sharedenc.cli.options import (
    data_options,
    data_rules,
    load_plugins,
    plugin_option,
    runs_option,
    runs_root,
)
from sharedenc.errors import CheckpointError, ExportError, SpecError, check_choice
from sharedenc.spec import GRAPHS, Cell, Graph

if TYPE_CHECKING:
    from torch import Tensor


@click.command()
@click.argument("targets", nargs=-1, metavar="RUN_OR_CELL...")
@click.option("--study", help="Study that cells are looked up in; alone: export all it gives.")
@click.option("--graph", "graphs", multiple=True, metavar=f"[{'|'.join(GRAPHS)}]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write OUT/<cell>/<graph>/ instead of registering.",
)
@data_options
@plugin_option
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(
    targets: tuple[str, ...],
    study: str | None,
    graphs: tuple[str, ...],
    out: Path | None,
    data: Path | None,
    cache_dir: Path | None,
    plugins: tuple[Path, ...],
    runs_dir: Path | None,
    as_json: bool,
    **rules: Any,
) -> None:
    """Export finished runs to ONNX and register them.

    RUN_OR_CELL is a run's id, a cell such as resnet18/dual (with --study), or the path of a
    best.safetensors (with --out). With --data, each file is compared with torch on test photos of
    that data set; otherwise on photo-like noise.

    \b
    Examples:
      sharedenc export --study full-grid-coco
      sharedenc export resnet18/share-frozen/seg --study full-grid-coco --data /data/coco
      sharedenc export best.safetensors --out exported
    """
    if not targets and study is None:
        raise click.UsageError("say which runs or cells to export, or a whole study by --study.")
    if graphs and not targets:
        raise click.UsageError("a whole study has its own graphs; name cells to use --graph.")
    chosen = _graphs(graphs)
    load_plugins(plugins)
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
        images = _photos(data, cache_dir, rules)
        for row in _export(uri, targets, study, chosen, out, images):
            rows.append(row)
            if not as_json:
                click.echo(_line(row))
    if as_json:
        click.echo(json.dumps({"exports": rows}, indent=2))
    failed = [row for row in rows if row["outcome"] == "failed"]
    if failed:
        raise ExportError(f"{len(failed)} of {len(rows)} exports failed: {failed[0]['reason']}")


def _graphs(names: Iterable[str]) -> tuple[Graph, ...] | None:
    for name in names:
        check_choice("graph", name, GRAPHS)
    return tuple(graph for graph in GRAPHS if graph in names) or None


def _photos(data: Path | None, cache_dir: Path | None, rules: Mapping[str, Any]) -> Tensor | None:
    if data is None:
        return None
    from sharedenc.data.packed import prepare
    from sharedenc.export.onnx import PARITY_IMAGES
    from sharedenc.export.parity import photos
    from sharedenc.spec import Recipe

    pack = prepare(data, cache_dir, data_rules(rules))
    return photos(pack.root, PARITY_IMAGES, Recipe().image_px)


def _export(
    uri: str,
    targets: tuple[str, ...],
    study: str | None,
    graphs: tuple[Graph, ...] | None,
    out: Path | None,
    images: Tensor | None,
) -> Iterator[dict[str, Any]]:
    if targets:
        for target in targets:
            try:
                yield from _export_one(uri, target, study, graphs, out, images)
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
                yield from _write(best.run_id, uri, own, out, images)
    elif study is not None:
        from sharedenc.export.registry import export_study

        yield from map(asdict, export_study(uri, study, images=images))


def _export_one(
    uri: str,
    target: str,
    study: str | None,
    graphs: tuple[Graph, ...] | None,
    out: Path | None,
    images: Tensor | None,
) -> Iterator[dict[str, Any]]:
    source = target if Path(target).is_file() else _run_id(uri, target, study)
    if out is not None:
        yield from _write(source, uri, graphs, out, images)
    else:
        from sharedenc.export.registry import register_run

        yield from map(asdict, register_run(uri, source, graphs, images=images))


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
    images: Tensor | None,
) -> Iterator[dict[str, Any]]:
    from sharedenc.export.folder import default_graphs, export_folder
    from sharedenc.export.load import load_with_meta

    loaded = load_with_meta(source, uri or None)
    cell = str(loaded.meta.get("cell") or Path(source).stem)
    for graph in graphs or default_graphs(loaded.network.tasks):
        done = export_folder(
            loaded.network,
            graph,
            out / cell.replace("/", "-") / graph,
            meta=loaded.meta,
            images=images,
        )
        yield {
            "cell": cell,
            "graph": graph,
            "outcome": "written",
            "path": str(done.info.path),
            "sha256": done.info.sha256,
            "architecture": done.info.architecture,
            "parity": done.info.parity,
            "reason": "",
        }


def _line(row: dict[str, Any]) -> str:
    registered = f"{row['model']} version {row['version']}" if row.get("model") else ""
    where = row.get("path") or registered
    return "  ".join(
        part for part in (row["outcome"], row["cell"], row["graph"], where, row["reason"]) if part
    )
