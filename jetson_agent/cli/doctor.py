"""`jetson-agent doctor`: what this machine has and lacks, and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from jetson_agent.cli.options import default_state_dir

SIGNS = {"ok": "ok     ", "warn": "warn   ", "missing": "MISSING"}


@click.command(epilog="Example: jetson-agent doctor --tracking-uri http://tracker:5000")
@click.option("--device", help="Name of this device  [default: made from the board]")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="State folder of the daemon that is asked about.",
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="Address of the MLflow server.",
)
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of mode 600 with username= and password=, or token=.",
)
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Certificate of the CA that vouches for the server.",
)
@click.option("--offline", is_flag=True, help="Ask no server.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def doctor(
    device: str | None,
    state_dir: Path | None,
    tracking_uri: str | None,
    credentials: Path | None,
    ca_file: Path | None,
    offline: bool,
    as_json: bool,
) -> None:
    """Say what this machine has and lacks, and how to mend it.

    Ends with 0 if it can time networks, and with 1 if something is MISSING.
    """
    from jetson_agent.doctor import examine

    found = examine(
        device,
        state_dir or default_state_dir(),
        tracking_uri,
        credentials=credentials,
        ca_file=ca_file,
        offline=offline,
    )
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        width = max(len(row.check) for row in found.rows)
        for row in found.rows:
            click.echo(f"{SIGNS[row.state]}  {row.check:<{width}}  {row.detail}")
            if row.mend:
                click.echo(f"{'':<{width + 11}}-> {row.mend}")
        click.echo("ready" if found.ready else "not ready")
    raise SystemExit(0 if found.ready else 1)
