"""The command `jetson-agent`."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jetson_agent.errors import AgentError
from jetson_agent.protocol import LOADS, PRECISIONS, VERDICTS, Load

if TYPE_CHECKING:
    from jetson_agent.timing import Settings

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


@contextmanager
def signals_set(stopping: threading.Event) -> Iterator[list[int]]:
    """SIGINT and SIGTERM only set `stopping`; the list tells which came. Old handlers come back."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        stopping.set()

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def timing_options(command: Command) -> Command:
    """Options that `once` and `measure` have in common."""
    for option in reversed(
        [
            click.option(
                "--backend",
                default="onnxruntime",
                show_default=True,
                help="What times the models; a name, or package.module:Class.",
            ),
            click.option("--device", help="Name of this device  [default: made from the board]"),
            click.option(
                "--threads",
                type=click.IntRange(min=1),
                help="Threads of the backend  [default: all CPUs]",
            ),
            click.option(
                "--warmup-s",
                type=click.FloatRange(min=0),
                default=1.0,
                show_default=True,
                help="Seconds of queries before the timing.",
            ),
            click.option(
                "--duration-s",
                type=click.FloatRange(min=0),
                default=3.0,
                show_default=True,
                help="Least seconds of timing.",
            ),
            click.option(
                "--deadline-s",
                type=click.FloatRange(min=0, min_open=True),
                default=600.0,
                show_default=True,
                help="Seconds after which a model that does not end is given up.",
            ),
            click.option("--seed", default=0, show_default=True, help="Seed of the random input."),
            click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout."),
        ]
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sharedenc", prog_name="jetson-agent")
def cli() -> None:
    """Time exported networks on this device and report what they take."""


@cli.command()
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="Address of the MLflow server.",
)
@click.option(
    "--load",
    "loads",
    type=click.Choice(LOADS),
    multiple=True,
    default=["single"],
    show_default=True,
    help="One query at a time, or two in flight; may be repeated.",
)
@click.option("--select", multiple=True, metavar="GLOB", help="Only models of such a name.")
@click.option(
    "--retry",
    multiple=True,
    type=click.Choice([verdict for verdict in VERDICTS if verdict != "valid"]),
    help="Repeat timings that ended with this verdict; may be repeated.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results wait until they are sent.",
)
@timing_options
def once(
    tracking_uri: str | None,
    loads: tuple[Load, ...],
    select: tuple[str, ...],
    retry: tuple[str, ...],
    state_dir: Path | None,
    device: str | None,
    as_json: bool,
    **timing: Any,
) -> None:
    """Time every registered architecture that is not yet timed on this device."""
    from jetson_agent.agent import Agent, only_one
    from jetson_agent.identity import identify
    from jetson_agent.outbox import Outbox
    from jetson_agent.registry_mlflow import MlflowRegistry, without_credentials

    if not tracking_uri:
        raise AgentError(
            "no tracking server is named: give its address with --tracking-uri or "
            "MLFLOW_TRACKING_URI, such as http://server:5000"
        )
    state = state_dir or default_state_dir()
    settings, precisions = make_settings(**timing)
    stopping = threading.Event()
    with only_one(state), signals_set(stopping) as received:
        registry = MlflowRegistry(tracking_uri)
        identity = identify(device)
        say(f"device {identity.name}, server {without_credentials(tracking_uri)}")
        summary = Agent(
            registry=registry,
            outbox=Outbox(state, tracking_uri),
            device=identity,
            settings=settings,
            precisions=precisions,
            loads=loads,
            work=state / "work",
            say=say,
            stopping=stopping,
            select=select,
            retry=retry,
        ).once()
    if as_json:
        click.echo(json.dumps(summary.to_dict()))
    else:
        click.echo(
            f"{len(summary.timed)} timed, {summary.already_timed} already timed, "
            f"{len(summary.skipped)} skipped, {len(summary.refused)} refused, "
            f"{summary.waiting} waiting to be sent"
        )
    raise SystemExit(128 + received[0] if received else summary.exit_code)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--load", type=click.Choice(LOADS), default="single", show_default=True)
@timing_options
def measure(
    file: Path, precision: str, load: Load, device: str | None, as_json: bool, **timing: Any
) -> None:
    """Time one ONNX file, without any server."""
    from dataclasses import asdict

    from jetson_agent.agent import describe
    from jetson_agent.identity import identify
    from jetson_agent.protocol import BenchResult
    from jetson_agent.timing import Stopped, time_file

    settings, _ = make_settings(**timing)
    identity = identify(device)
    stopping = threading.Event()
    with signals_set(stopping) as received:
        try:
            outcome = time_file(file, precision, load, settings, identity, stopping)
        except Stopped:
            raise SystemExit(128 + received[0]) from None
    result = BenchResult(
        device=identity.name,
        architecture="",
        precision=precision,
        load=load,
        mode=identity.mode(settings.threads),
        backend=settings.backend,
        runtime=settings.runtime,
        verdict=outcome.verdict,
        reasons=outcome.reasons,
        metrics=outcome.metrics,
        certificate=outcome.certificate,
        model=file.name,
    )
    click.echo(json.dumps(asdict(result)) if as_json else describe(result))
    raise SystemExit(0 if result.metrics else 1)


@cli.command()
@click.option("--device", help="Name of this device  [default: made from the board]")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def doctor(
    device: str | None, state_dir: Path | None, tracking_uri: str | None, as_json: bool
) -> None:
    """Say what this machine has and lacks; changes nothing, talks to nobody."""
    from jetson_agent.doctor import examine
    from jetson_agent.registry_mlflow import without_credentials

    shown = without_credentials(tracking_uri) if tracking_uri else None
    found = examine(device, state_dir or default_state_dir(), shown)
    if as_json:
        click.echo(json.dumps(found))
    else:
        board = found["device"]
        click.echo(f"device        {board['name']} ({board['model']}, {board['cpu']})")
        click.echo(f"power mode    {board['power_mode']}")
        click.echo(f"python        {found['python']}, agent {found['agent']}")
        for name, probe in found["backends"].items():
            state = probe["runtime"] if probe["available"] else f"missing: {probe['reason']}"
            click.echo(f"backend       {name} {state}")
        click.echo(f"trtexec       {found['trtexec'] or 'not found'}")
        place = found["state_dir"]
        click.echo(f"state folder  {place['path']}{'' if place['writable'] else ' NOT WRITABLE'}")
        click.echo(f"server        {found['tracking_uri'] or 'none: set MLFLOW_TRACKING_URI'}")
    raise SystemExit(0 if found["ready"] else 1)


def make_settings(*, backend: str, threads: int | None, **rest: Any) -> tuple[Settings, Any]:
    """Settings of a timing and the precisions of its backend.

    Raises:
        AgentError: no such backend, or it cannot work here.
    """
    from jetson_agent.backends import load_backend
    from jetson_agent.identity import usable_cpus
    from jetson_agent.timing import Settings

    chosen = load_backend(backend)
    probe = chosen.probe()
    if not probe.available:
        raise AgentError(f"backend {backend} cannot work here: {probe.reason}")
    settings = Settings(
        backend=backend, runtime=probe.runtime, threads=threads or len(usable_cpus()), **rest
    )
    return settings, chosen.precisions


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
