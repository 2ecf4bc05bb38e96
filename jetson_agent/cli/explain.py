"""`jetson-agent explain`: a result's certificate in words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from jetson_agent.cli.serving import state_of


@click.command(epilog="Example: jetson-agent explain voc20-resnet18-dual")
@click.argument("what", metavar="KEY|FILE|MODEL")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="State folder of the daemon that timed it.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def explain(what: str, state_dir: Path | None, as_json: bool) -> None:
    """Say what was timed, how, whether to believe it, and how to repeat it.

    KEY is the beginning of a timing's key; FILE results of `measure --out`, a certificate.json or
    an ONNX file that was timed; MODEL a model's name or pattern. Talks to nobody: it knows what
    this agent has timed, and files that are named.
    """
    from jetson_agent.explain import find_results, in_words

    results = find_results(what, state_of(state_dir))
    if as_json:
        rows = [{**asdict(result), "key": result.key} for result in results]
        click.echo(json.dumps({"results": rows}))
    else:
        click.echo("\n\n".join(in_words(result) for result in results))
