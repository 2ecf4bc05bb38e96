"""The command `jetson-agent`: one file per command, imported when it is called."""

from __future__ import annotations

import importlib

import click

from jetson_agent.errors import AgentError

# Command -> module and function. A command that is not here does not exist.
COMMANDS = {
    "run": "jetson_agent.cli.run:run",
    "once": "jetson_agent.cli.once:once",
    "measure": "jetson_agent.cli.measure:measure",
    "compare": "jetson_agent.cli.compare:compare",
    "evaluate": "jetson_agent.cli.evaluate:evaluate",
    "explain": "jetson_agent.cli.explain:explain",
    "doctor": "jetson_agent.cli.doctor:doctor",
    "parse-log": "jetson_agent.cli.parse_log:parse_log",
}


class Commands(click.Group):
    """Commands by name, each imported only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: jetson-agent doctor, then jetson-agent measure model.onnx",
)
@click.version_option(package_name="sharedenc", prog_name="jetson-agent")
def cli() -> None:
    """Time exported networks on this device and report what they take."""


def run() -> None:
    """Entry point: errors a person can act on become one line and an exit code."""
    try:
        cli(prog_name="jetson-agent")
    except AgentError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        # A full disk or a folder that is not ours; results that were kept are still there.
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from None
