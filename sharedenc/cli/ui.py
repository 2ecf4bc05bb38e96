"""`sharedenc ui`: a study in MLflow's own UI, from the store it is kept in."""

from __future__ import annotations

import time
from pathlib import Path

import click

from sharedenc.cli.options import runs_option, runs_root
from sharedenc.errors import TrackingError


@click.command(epilog="Example: sharedenc ui full-grid-coco")
@click.argument("study", required=False)
@click.option("--port", type=click.IntRange(1, 65535), help="Port of a private server.")
@runs_option
def ui(study: str | None, port: int | None, runs_dir: Path | None) -> None:
    """Serve the tracking store until Ctrl-C and print where to look.

    A server that runs already (a sweep's, or the one that MLFLOW_TRACKING_URI names) is used as
    it is.
    """
    from sharedenc.mlflow_server import serve

    with serve(runs_root(runs_dir), port) as server:
        for line in pages(server.uri, study):
            click.echo(line)
        if server.pid is None:
            return
        click.echo("Ctrl-C ends it.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            click.echo("")


def pages(uri: str, study: str | None) -> list[str]:
    """Addresses of a study's runs and of their comparison; of the start page without a study.

    Raises:
        TrackingError: there is no such study.
    """
    from sharedenc.tracking import MlflowTracker, hide_credentials, no_study

    shown = hide_credentials(uri).rstrip("/")
    if study is None:
        return [f"MLflow UI: {shown}/"]
    from sweeps.ledger import find_study

    found = find_study(uri, study)
    if found is None:
        raise TrackingError(no_study(study, MlflowTracker(uri).studies(), shown))
    return [
        f"runs:    {shown}{found.runs_path}",
        f"compare: {shown}{found.compare_path}",
    ]
