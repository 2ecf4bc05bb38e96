"""`sharedenc report`: a study's tables and page, from what its MLflow server holds."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sharedenc.cli.options import runs_option, runs_root

EXAMPLES = """\b
Examples:
  sharedenc report full-grid-coco --out report
  sharedenc report full-grid-coco --out report --json
  MLFLOW_TRACKING_URI=http://tracker:5000 sharedenc report full-grid-coco --out report
"""


@click.command(epilog=EXAMPLES)
@click.argument("study")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for index.html, report.md, tables/ and figures/.",
)
@runs_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object with what was written."
)
def report(study: str, out: Path, runs_dir: Path | None, as_json: bool) -> None:
    """Write the tables of STUDY beside the published ones, and a page that holds them.

    The study is read from the server in MLFLOW_TRACKING_URI, else from the private one of the
    runs folder. It may still be running: what is missing says why.
    """
    from sharedenc.mlflow_server import serve
    from sharedenc.report.write import write_report

    with serve(runs_root(runs_dir)) as server:
        paths = write_report(server.uri, study, out)
    if as_json:
        click.echo(json.dumps(paths.to_dict()))
        return
    cells = ", ".join(f"{count} {state}" for state, count in paths.summary.cells.items())
    click.echo(f"{study}: {cells}")
    click.echo(f"{len(paths.tables)} tables in {out / 'tables'}; the page is {paths.index}")
