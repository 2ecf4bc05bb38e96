"""`jetson-agent once`: one pass over the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from jetson_agent.cli.options import timing_options
from jetson_agent.cli.serving import open_agent, server_options, state_of


@click.command(
    epilog="Example: jetson-agent once --tracking-uri http://tracker:5000 --load single,stream"
)
@server_options(("single",))
@timing_options
def once(state_dir: Path | None, as_json: bool, **choices: Any) -> None:
    """Time every registered architecture that is not yet timed on this device."""
    from jetson_agent.locks import only_one
    from jetson_agent.stopping import StopFlag, signals_set

    state = state_of(state_dir)
    stopping = StopFlag()
    with only_one(state), signals_set(stopping) as received:
        agent, _ = open_agent(stopping, state=state, **choices)
        summary = agent.once()
    if as_json:
        click.echo(json.dumps(summary.to_dict()))
    else:
        click.echo(
            f"{len(summary.timed)} timed, {summary.already_timed} already timed, "
            f"{len(summary.skipped)} skipped, {len(summary.refused)} refused, "
            f"{summary.waiting} waiting to be sent"
        )
    raise SystemExit(128 + received[0] if received else summary.exit_code)
