"""`sharedenc timings`: figures of boards, listed and brought in from files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sharedenc.cli.options import runs_option, runs_root

if TYPE_CHECKING:
    from sharedenc.export.bench import BenchRow


@click.group(no_args_is_help=True)
def timings() -> None:
    """List the timings of boards, or bring in those of a board without a network."""


@timings.command("import", epilog="Example: sharedenc timings import timings.jsonl")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_(files: tuple[Path, ...], runs_dir: Path | None, as_json: bool) -> None:
    """Store what `jetson-agent measure --out FILE` wrote, as if the board had sent it itself.

    A timing that is there already stays as it is, so a file may be imported again. Reports join
    timings by architecture: a file that was no export of sharedenc is stored, but joins nothing.
    """
    from sharedenc.export.bench import Bench, read_results
    from sharedenc.mlflow_server import serve

    # All files are read before anything is stored.
    results = [result for path in files for result in read_results(path)]
    with serve(runs_root(runs_dir)) as server:
        bench = Bench(server.uri)
        rows = [bench.store(result) for result in results]
    counted = Counter(row.outcome for row in rows)
    unjoined = sum(not row.result.architecture for row in rows)
    if as_json:
        told = [
            {
                "outcome": row.outcome,
                "run_id": row.run_id,
                **{
                    name: value
                    for name, value in asdict(row.result).items()
                    if name != "certificate"
                },
            }
            for row in rows
        ]
        click.echo(json.dumps({"timings": told}, indent=2))
        return
    for row in rows:
        result = row.result
        what = f"{result.model} {result.precision} {result.load} on {result.device}"
        click.echo(f"{row.outcome:8} {what}: {result.verdict}")
    click.echo(f"{counted['stored']} stored, {counted['present']} there before")
    if unjoined:
        click.echo(f"{unjoined} of files that are no exports of sharedenc: no report shows them")


@timings.command(
    "list",
    epilog="Example: sharedenc timings list --device nvidia-jetson-agx-orin-developer-kit-64gb",
)
@click.option("--device", help="Only this device.")
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(device: str | None, runs_dir: Path | None, as_json: bool) -> None:
    """Show every timing on the tracking server."""
    from sharedenc.export.bench import Bench
    from sharedenc.mlflow_server import serve

    with serve(runs_root(runs_dir)) as server:
        bench = Bench(server.uri)
        rows = [
            row for name in ([device] if device else bench.devices()) for row in bench.rows(name)
        ]
    if as_json:
        click.echo(json.dumps({"timings": [asdict(row) for row in rows]}, indent=2))
        return
    for row in rows:
        click.echo(_line(row))
    if not rows:
        click.echo("no timings yet: run `jetson-agent run` on a board, or `timings import`")


def _line(row: BenchRow) -> str:
    def figure(name: str) -> str:
        value: Any = row.metrics.get(f"latency_ms/{name}")
        return f"{name} {value:.3g} ms" if value is not None else f"no {name}"

    stale = ", stale" if row.stale else ""
    return (
        f"{row.device} {row.mode} {row.backend} {row.runtime}: {row.architecture[:12]} "
        f"{row.precision} {row.load}: {figure('p50')}, {figure('p99')}, {row.verdict}{stale}"
    )
