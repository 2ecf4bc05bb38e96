"""`jetson-agent run`: the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jetson_agent.cli.options import say, timing_options
from jetson_agent.cli.serving import open_agent, server_options, state_of


@click.command(
    epilog="Example: jetson-agent run --tracking-uri https://mlflow.example.org --backend tensorrt"
)
@server_options(("single", "stream"))
@click.option(
    "--poll-s",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="Seconds between two looks at the registry, give or take a fifth.",
)
@timing_options
def run(state_dir: Path | None, poll_s: float, as_json: bool, **choices: Any) -> None:
    """Time every new architecture as soon as it is registered, until it is told to stop."""
    import json

    from jetson_agent.daemon import Daemon
    from jetson_agent.link import Pace
    from jetson_agent.locks import only_one
    from jetson_agent.stopping import StopFlag, signals_set

    state = state_of(state_dir)
    stopping = StopFlag()
    with only_one(state), signals_set(stopping):
        agent, server = open_agent(stopping, state=state, **choices)
        daemon = Daemon(agent=agent, state=state, server=server, pace=Pace(poll_s=poll_s))
        daemon.run()
    say("stopped; what is not sent yet is kept")
    if as_json:
        click.echo(json.dumps(daemon.status()))
