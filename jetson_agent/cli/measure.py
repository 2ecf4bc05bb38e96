"""`jetson-agent measure`: a file or an exported folder, without any server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jetson_agent.cli.options import make_settings, progress, say, timing_options
from jetson_agent.cli.serving import split_choices
from jetson_agent.errors import AgentError
from jetson_agent.protocol import LOADS, PRECISIONS, BenchResult, Load

if TYPE_CHECKING:
    from jetson_agent.identity import Device
    from jetson_agent.settings import Settings
    from jetson_agent.sources import Source
    from jetson_agent.timing import Timing


def result_options(command: Any) -> Any:
    """Options of the commands that time what a person names."""
    for option in reversed(
        [
            click.option(
                "--precision",
                "precisions",
                multiple=True,
                default=["fp32"],
                show_default=True,
                callback=split_choices(PRECISIONS),
                help=f"Of {', '.join(PRECISIONS)}; by comma, or repeated.",
            ),
            click.option(
                "--load",
                "loads",
                multiple=True,
                default=["single"],
                show_default=True,
                callback=split_choices(LOADS),
                help="One query at a time, or two in flight (stream); by comma, or repeated.",
            ),
            click.option(
                "--out",
                type=click.Path(path_type=Path, dir_okay=False),
                help="Add the results to this file, for `sharedenc timings import`.",
            ),
        ]
    ):
        command = option(command)
    return command


@click.command(
    epilog="Example: jetson-agent measure exports/resnet18-dual --precision fp32,int8 --json"
)
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@result_options
@click.option(
    "--profile",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write layers.json and profile.json of each timing under this folder (tensorrt).",
)
@timing_options
def measure(
    file: Path,
    precisions: tuple[str, ...],
    loads: tuple[Load, ...],
    out: Path | None,
    profile: Path | None,
    device: str | None,
    as_json: bool,
    **timing: Any,
) -> None:
    """Time an ONNX file, or the files of an exported folder, without any server.

    Engines are built and checked as by the daemon. With --out, the results can be carried to a
    machine that has the server.
    """
    from jetson_agent.backends import load_backend
    from jetson_agent.identity import identify
    from jetson_agent.results import describe
    from jetson_agent.sources import find_source
    from jetson_agent.stopping import StopFlag, signals_set
    from jetson_agent.timing import Stopped
    from jetson_agent.timings_file import append, check_target

    settings, can = make_settings(**timing)
    backend = load_backend(settings.backend)
    for precision in precisions:
        if precision not in can:
            raise AgentError(
                f"backend {settings.backend} has no precision {precision}: it has {', '.join(can)}"
            )
    if profile and settings.backend != "tensorrt":
        raise AgentError(f"backend {settings.backend} has no layer profile: only tensorrt has one")
    if out:
        check_target(out)
    here = identify(device)
    sources = {p: find_source(file, p, backend.int8_recipe) for p in precisions}
    for precision, source in sources.items():
        if not source.architecture:
            say(
                f"{source.model.name} ({precision}) does not tell its architecture: the figure "
                "cannot be joined with an export"
            )
    results: list[BenchResult] = []
    stopping = StopFlag()
    with signals_set(stopping) as received:
        try:
            for result in _results(sources, loads, settings, here, stopping, profile):
                results.append(result)
                if out:
                    append(out, result)
                if not as_json:
                    click.echo(describe(result))
        except Stopped:
            pass
    finish(results, as_json, received)


def _results(
    sources: dict[str, Source],
    loads: tuple[Load, ...],
    settings: Settings,
    here: Device,
    stopping: Any,
    profile: Path | None,
) -> Iterator[BenchResult]:
    import tempfile

    from jetson_agent.timing import time_file

    # Both loads of a precision are timed on the same engines.
    with (
        tempfile.TemporaryDirectory(prefix="jetson-agent-") as cache,
        machine(stopping),
        progress() as tell,
    ):
        for precision, source in sources.items():
            for load in loads:
                tell(f"{source.model.name} {precision} {load}")
                outcome = time_file(
                    *(source.model, precision, load, settings, here, stopping),
                    reference=source.reference,
                    say=tell,
                    cache=Path(cache),
                    profile=profile / f"{precision}-{load}" if profile else None,
                )
                yield result_of(outcome, source, precision, load, settings, here)


def result_of(
    outcome: Timing,
    source: Source,
    precision: str,
    load: Load,
    settings: Settings,
    here: Device,
) -> BenchResult:
    """What is reported of a timing of that file."""
    return BenchResult(
        device=here.name,
        architecture=source.architecture,
        precision=precision,
        load=load,
        mode=here.mode(settings.threads),
        backend=settings.backend,
        runtime=here.runtime(settings.runtime),
        settings=settings.text,
        verdict=outcome.verdict,
        checked=outcome.checked,
        reasons=outcome.reasons,
        metrics=outcome.metrics,
        certificate=outcome.certificate,
        model=source.name,
        study=source.study,
        backbone=source.backbone,
        graph=source.graph,
    )


def machine(stopping: Any) -> Any:
    """Hold the lock of the machine: two timings at once would spoil each other."""
    from contextlib import contextmanager

    from jetson_agent.locks import machine_lock
    from jetson_agent.timing import Stopped

    @contextmanager
    def held() -> Iterator[None]:
        said = False
        while True:
            with machine_lock() as free:
                if free:
                    yield
                    return
            if not said:
                say("another jetson-agent times on this machine: waiting until it has ended")
                said = True
            if stopping.wait(1.0):
                raise Stopped

    return held()


def finish(results: list[BenchResult], as_json: bool, received: list[int]) -> None:
    """Print what there is, and end with the exit code."""
    from dataclasses import asdict

    if as_json:
        rows = [{**asdict(result), "key": result.key} for result in results]
        click.echo(json.dumps({"results": rows}))
    if received:
        raise SystemExit(128 + received[0])
    good = all(result.metrics and result.verdict != "wrong" for result in results)
    raise SystemExit(0 if results and good else 1)
