"""`jetson-agent compare`: one shared network against two separate ones, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jetson_agent.cli.measure import finish, machine, result_of, result_options
from jetson_agent.cli.options import make_settings, progress, timing_options
from jetson_agent.errors import AgentError
from jetson_agent.protocol import BenchResult, Load

ONNX = click.Path(path_type=Path, exists=True)


@click.command(epilog="Example: jetson-agent compare seg.onnx det.onnx dual.onnx --rounds 7")
@click.argument("seg", type=ONNX)
@click.argument("det", type=ONNX)
@click.argument("dual", type=ONNX)
@result_options
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often all three are timed one after the other.",
)
@timing_options
def compare(
    seg: Path,
    det: Path,
    dual: Path,
    precisions: tuple[str, ...],
    loads: tuple[Load, ...],
    out: Path | None,
    rounds: int,
    device: str | None,
    as_json: bool,
    **timing: Any,
) -> None:
    """Time SEG and DET one after the other against DUAL, which does both, in the same run.

    Each is an ONNX file or an exported folder. A ratio below 1 means that sharing is faster.
    """
    from dataclasses import replace

    from jetson_agent.backends import load_backend
    from jetson_agent.compare import compare_files
    from jetson_agent.identity import identify
    from jetson_agent.protocol import COMPARISON, comparison_architecture
    from jetson_agent.sources import find_source
    from jetson_agent.stopping import StopFlag, signals_set
    from jetson_agent.timing import Stopped
    from jetson_agent.timings_file import append, check_target

    settings, can = make_settings(**timing)
    recipe = load_backend(settings.backend).int8_recipe
    if lacking := [precision for precision in precisions if precision not in can]:
        raise AgentError(
            f"backend {settings.backend} has no precision {lacking[0]}: it has {', '.join(can)}"
        )
    if out:
        check_target(out)
    here = identify(device)
    results: list[BenchResult] = []
    stopping = StopFlag()
    with signals_set(stopping) as received:
        try:
            with machine(stopping), progress() as tell:
                for precision in precisions:
                    sources = [find_source(p, precision, recipe) for p in (seg, det, dual)]
                    parts = [source.architecture for source in sources]
                    joined = replace(
                        sources[-1],
                        architecture=comparison_architecture(parts) if all(parts) else "",
                        graph=COMPARISON,
                    )
                    for load in loads:
                        outcome = compare_files(
                            [source.model for source in sources],
                            *(precision, load, settings, here, stopping),
                            say=tell,
                            rounds=rounds,
                        )
                        result = result_of(outcome, joined, precision, load, settings, here)
                        results.append(result)
                        if out:
                            append(out, result)
                        if not as_json:
                            click.echo(_describe(result))
        except Stopped:
            pass
    finish(results, as_json, received)


def _describe(result: BenchResult) -> str:
    m = result.metrics
    head = f"{result.precision} {result.load}"
    if m:
        head += (
            f": seg + det {m['pair_ms/p50']:.4g} ms, dual {m['dual_ms/p50']:.4g} ms, ratio "
            f"{m['ratio/p50']:.3f} ({m['ratio/min']:.3f} to {m['ratio/max']:.3f})"
        )
    reasons = f" ({' '.join(result.reasons)})" if result.reasons else ""
    return f"{head}, {result.verdict}{reasons}"
