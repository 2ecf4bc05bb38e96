"""What `once` and `run` have in common: a server, a choice of jobs, a place for state."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import click

from jetson_agent.cli.options import default_state_dir, make_settings, say
from jetson_agent.errors import AgentError
from jetson_agent.protocol import LOADS, PRECISIONS, VERDICTS, Load

if TYPE_CHECKING:
    from jetson_agent.agent import Agent
    from jetson_agent.backends.base import Probe
    from jetson_agent.identity import Device
    from jetson_agent.jobs import Bench
    from jetson_agent.stopping import StopFlag

Command = TypeVar("Command", bound=Callable[..., Any])
GIB = 2**30


def split_choices(allowed: Sequence[str]) -> Callable[..., tuple[str, ...]]:
    """Callback of an option that takes several values, by comma or by repeating it."""

    def split(_context: click.Context, parameter: click.Parameter, value: Any) -> tuple[str, ...]:
        chosen = [word.strip() for text in value for word in text.split(",")]
        for word in chosen:
            if word not in allowed:
                raise click.BadParameter(f"{word!r} is not one of {', '.join(allowed)}")
        return tuple(dict.fromkeys(chosen))

    return split


def server_options(loads: Sequence[Load]) -> Callable[[Command], Command]:
    """Options of a command that works for a tracking server; `loads` is the default."""
    doubted = [verdict for verdict in VERDICTS if verdict != "valid"]
    options = [
        click.option(
            "--tracking-uri",
            envvar="MLFLOW_TRACKING_URI",
            show_envvar=True,
            help="Address of the MLflow server.",
        ),
        click.option(
            "--credentials",
            type=click.Path(path_type=Path, dir_okay=False),
            help="File of mode 600 with username= and password=, or token=.",
        ),
        click.option(
            "--ca-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Certificate of the CA that vouches for the server.",
        ),
        click.option(
            "--load",
            "loads",
            multiple=True,
            default=list(loads),
            show_default=True,
            callback=split_choices(LOADS),
            help="One query at a time, or two in flight (stream); by comma, or repeated.",
        ),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            callback=split_choices(PRECISIONS),
            help="These instead of what each model asks for; by comma, or repeated.",
        ),
        click.option(
            "--select",
            multiple=True,
            metavar="GLOB",
            help="Only models of such a name, as 'voc20-*'.",
        ),
        click.option(
            "--retry",
            multiple=True,
            callback=split_choices(doubted),
            help=f"Repeat timings that ended {', '.join(doubted)}; by comma, or repeated.",
        ),
        click.option(
            "--state-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="Where results wait until they are sent.",
        ),
        click.option(
            "--cache-gib",
            type=click.FloatRange(min=0),
            default=4.0,
            show_default=True,
            help="Room for downloaded files.",
        ),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def open_agent(
    stopping: StopFlag,
    *,
    state: Path,
    tracking_uri: str | None,
    credentials: Path | None,
    ca_file: Path | None,
    loads: tuple[Load, ...],
    precisions: tuple[str, ...],
    select: tuple[str, ...],
    retry: tuple[str, ...],
    cache_gib: float,
    device: str | None,
    **timing: Any,
) -> tuple[Agent, str]:
    """The agent that the options describe, and the server's address for people.

    Raises:
        AgentError: no server is named, or nothing can be timed here.
    """
    from jetson_agent.agent import Agent
    from jetson_agent.artifacts import Artifacts
    from jetson_agent.attempt import Workbench
    from jetson_agent.catalog import Catalog
    from jetson_agent.credentials import find_server
    from jetson_agent.journal import Journal
    from jetson_agent.outbox import Outbox
    from jetson_agent.registry_mlflow import MlflowRegistry

    if not tracking_uri:
        raise AgentError(
            "no tracking server is named: give its address with --tracking-uri or "
            "MLFLOW_TRACKING_URI, such as http://server:5000"
        )
    look = make_look(device, precisions, loads, timing)
    bench = look()
    server = find_server(tracking_uri, credentials_file=credentials, ca_file=ca_file)
    for warning in server.warnings:
        say(f"warning: {warning}")
    say(f"device {bench.device.name} in mode {bench.mode}, server {server.uri}")
    cache = cache_dir(state)
    journal = Journal(state, server.uri)
    agent = Agent(
        registry=MlflowRegistry(server),
        outbox=Outbox(state, server.uri),
        journal=journal,
        catalog=Catalog(journal.folder / "registered"),
        workbench=Workbench(
            artifacts=Artifacts(cache / "files", int(cache_gib * GIB)),
            engines=cache / "engines",
            say=say,
            stopping=stopping,
        ),
        look=look,
        name=agent_name(state),
        say=say,
        stopping=stopping,
        select=select,
        retry=retry,
    )
    return agent, server.uri


def make_look(
    device: str | None, precisions: Sequence[str], loads: Sequence[Load], timing: dict[str, Any]
) -> Callable[[], Bench]:
    """A function that tells what times here at the moment when it is called.

    It raises `AgentError` while the backend is gone, as during an upgrade.
    """
    from jetson_agent.backends import load_backend
    from jetson_agent.identity import identify
    from jetson_agent.jobs import Bench

    settings, _ = make_settings(**timing)
    backend = load_backend(settings.backend)
    last: tuple[object, Probe] | None = None

    def look() -> Bench:
        nonlocal last
        here = identify(device)
        stamp = _software(settings.backend, here)
        if last is None or stamp is None or last[0] != stamp or not last[1].available:
            last = stamp, backend.probe()
        probe = last[1]
        if not probe.available:
            raise AgentError(f"backend {settings.backend} cannot work here: {probe.reason}")
        return Bench(
            device=here,
            settings=replace(settings, runtime=here.runtime(probe.runtime)),
            can=backend.precisions,
            recipe=backend.int8_recipe,
            loads=[load for load in loads if load in backend.loads],
            precisions=precisions or None,
        )

    return look


def _software(backend: str, here: Device) -> object:
    """What changes when the backend's software does; None where a probe itself costs nothing."""
    from jetson_agent.backends.trtexec import find_trtexec

    if backend != "tensorrt":
        return None
    found = find_trtexec()
    if not found:
        return None
    with suppress(OSError):
        stat = Path(found).stat()
        return here.tensorrt, here.l4t, str(found), stat.st_mtime_ns, stat.st_size
    return None


def agent_name(state: Path) -> str:
    """This agent's name in claims: made once, kept in its state folder."""
    from jetson_agent import durable

    path = state / "agent-id"
    if not path.exists():
        durable.write_text(path, uuid4().hex[:16] + "\n")
    return path.read_text().strip()


def cache_dir(state: Path) -> Path:
    """``$JETSON_AGENT_CACHE``, else systemd's ``$CACHE_DIRECTORY``, else in the state folder."""
    for name in ("JETSON_AGENT_CACHE", "CACHE_DIRECTORY"):
        if value := os.environ.get(name):
            return Path(value)
    return state / "cache"


def state_of(given: Path | None) -> Path:
    """The state folder that was given or is the default."""
    return given or default_state_dir()
