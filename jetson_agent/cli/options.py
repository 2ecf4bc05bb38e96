"""What several commands have in common: options, progress, where state lies."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jetson_agent.errors import AgentError

if TYPE_CHECKING:
    from jetson_agent.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


def say(text: str) -> None:
    """Progress goes to standard error; standard output is for results."""
    click.echo(text, err=True)


def default_state_dir() -> Path:
    """``$JETSON_AGENT_STATE``, else the user's state folder."""
    if explicit := os.environ.get("JETSON_AGENT_STATE"):
        return Path(explicit)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "jetson-agent"


def timing_options(command: Command) -> Command:
    """Options of every command that times; without a value the backend's own default holds."""
    seconds = click.FloatRange(min=0, min_open=True)
    for option in reversed(
        [
            click.option(
                "--backend",
                help="What times the models: tensorrt, onnxruntime, or package.module:Class  "
                "[default: tensorrt where there is a trtexec, else onnxruntime]",
            ),
            click.option("--device", help="Name of this device  [default: made from the board]"),
            click.option(
                "--threads",
                type=click.IntRange(min=1),
                help="CPU threads of the backend  [default: all CPUs]",
            ),
            click.option(
                "--warmup-s",
                type=click.FloatRange(min=0),
                help="Seconds of queries before each timing  [default: 2, onnxruntime 1]",
            ),
            click.option(
                "--duration-s",
                type=click.FloatRange(min=0),
                help="Least seconds of each timing  [default: 10, onnxruntime 3]",
            ),
            click.option(
                "--runs",
                type=click.IntRange(min=1),
                help="Timings of each engine  [default: 3]",
            ),
            click.option(
                "--builds",
                type=click.IntRange(min=1),
                help="Engines of each model, each timed  [default: 2, onnxruntime 1]",
            ),
            click.option(
                "--repeats",
                type=click.IntRange(min=0),
                help="How often what is suspect is timed again  [default: 3]",
            ),
            click.option(
                "--cuda-graph", is_flag=True, help="Launch by CUDA graph: a result of its own."
            ),
            click.option(
                "--deadline-s",
                type=seconds,
                help="Seconds after which a run that does not end is given up  [default: 300]",
            ),
            click.option(
                "--build-deadline-s", type=seconds, help="The same of a build  [default: 3600]"
            ),
            click.option(
                "--preflight-s",
                type=click.FloatRange(min=0),
                help="Longest wait for a cool and idle board  [default: 300]",
            ),
            click.option(
                "--workspace-mib",
                type=click.IntRange(min=1),
                help="Memory that a build may try kernels with  [default: 4096]",
            ),
            click.option("--seed", type=int, help="Seed of the random input  [default: 0]"),
            click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout."),
        ]
    ):
        command = option(command)
    return command


def make_settings(
    *, backend: str | None, threads: int | None, deadline_s: float | None, **rest: Any
) -> tuple[Settings, Any]:
    """Settings of a timing and the precisions of its backend.

    Raises:
        AgentError: no such backend, or it cannot work here.
    """
    from jetson_agent.backends import default_backend, load_backend
    from jetson_agent.identity import usable_cpus
    from jetson_agent.settings import default_settings

    name = backend or default_backend()
    chosen = load_backend(name)
    probe = chosen.probe()
    if not probe.available:
        raise AgentError(f"backend {name} cannot work here: {probe.reason}")
    settings = default_settings(
        name,
        probe.runtime,
        len(usable_cpus()),
        threads=threads,
        run_deadline_s=deadline_s,
        **rest,
    )
    return settings, chosen.precisions


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that tells on standard error what goes on; with a spinner on a terminal."""
    if not sys.stderr.isatty():
        yield say
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False)
    with console.status("") as status:

        def tell(text: str) -> None:
            console.print(text, markup=False)
            status.update(escape(text))

        yield tell
