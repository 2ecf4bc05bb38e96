"""The click group `sharedenc`. Commands live in modules of their own and load when called."""

from __future__ import annotations

import errno
import importlib
import sys
from typing import Any

import click

from sharedenc.errors import SharedencError, nearest

# Command -> (module, attribute, one line of help). The help stands here so that
# `sharedenc --help` imports none of them.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "data": ("sharedenc.cli.data", "data", "Draw, fetch, prepare, count and look at data sets."),
    "weights": ("sharedenc.cli.weights", "weights", "Fetch pretrained encoder weights."),
    "models": ("sharedenc.cli.models", "models", "List networks: parameters, taps, GFLOPs."),
    "train": ("sharedenc.cli.train", "train", "Train one cell in this process."),
    "evaluate": ("sharedenc.cli.evaluate", "evaluate", "Score detections by COCO AP."),
    "sweep": ("sharedenc.cli.sweep", "sweep", "Train a whole study through Ray Tune."),
    "export": ("sharedenc.cli.export", "export", "Export a finished run to ONNX and register it."),
    "predict": ("sharedenc.cli.predict", "predict", "Draw a network's boxes and masks."),
    "report": ("sharedenc.cli.report", "report", "Write a study's tables and page."),
    "recommend": (
        "sharedenc.cli.recommend",
        "recommend",
        "Say what to deploy on a board, and why.",
    ),
    "selftest": (
        "sharedenc.cli.selftest",
        "selftest",
        "Prove on this machine's device that everything runs.",
    ),
    "prune": ("sharedenc.cli.prune", "prune", "Free what finished trials keep."),
    "timings": (
        "sharedenc.cli.timings",
        "timings",
        "List timings of boards, or bring them in.",
    ),
    "ui": ("sharedenc.cli.ui", "ui", "Open a study in MLflow's UI."),
}

EXAMPLES = """\b
Examples:
  sharedenc sweep full-grid --preset demo
  sharedenc sweep full-grid --data /data/coco --preset thesis
  sharedenc train resnet18/dual --data /data/coco --epochs 12
  sharedenc report full-grid-coco --out report
"""


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row[2]) for name, row in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            hint = nearest(name, COMMANDS)
            raise click.UsageError(
                f"there is no command {name!r}; it is one of {', '.join(COMMANDS)}.{hint}", ctx
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SharedencError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads on; click ends quietly
                raise
            # A full disk or a folder that is not ours is the machine's fault and no bug.
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES
)
@click.version_option(package_name="sharedenc")
def main() -> None:
    """Share one image encoder between object detection and segmentation, and prove it."""


def run() -> None:
    """Entry point of the console script; Ctrl-C ends with status 130."""
    try:
        status = main.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
