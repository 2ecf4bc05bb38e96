"""`sharedenc recommend`: what to deploy on a board, because."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sharedenc.cli.options import runs_option, runs_root

if TYPE_CHECKING:
    from sharedenc.report.deployments import Option
    from sharedenc.report.recommend import Cost, Recommendation
    from sharedenc.report.table_spec import Facts

EXAMPLES = """\b
Examples:
  sharedenc recommend full-grid-coco --device orin --mode MODE_30W --precision int8 \\
    --max-latency-ms 8
  sharedenc recommend full-grid-coco --precision fp32 --min-mAP 0.3 --prefer mIoU --json
  sharedenc recommend published --precision int8 --max-latency-ms 8
"""


@click.command(epilog=EXAMPLES)
@click.argument("study")
@click.option("--device", help="The timed device, or a part of its name [default: the only one].")
@click.option("--mode", help="Its power mode, likewise [default: the only one].")
@click.option(
    "--precision", help="fp32, fp16, int8, int8_fp16, int8-unscaled [default: the only one]."
)
@click.option(
    "--max-latency-ms", type=float, help="Most milliseconds for both tasks of one picture."
)
@click.option(
    "--stat",
    help="Which latency: p50, p90, p95, p99, mean, min or max, then -single (one query at a time) "
    "or -stream (two in flight) [default: p99-single].",
)
@click.option("--min-mAP", "min_map", type=float, help="Least mAP, 0 to 1.")
@click.option("--min-mIoU", "min_miou", type=float, help="Least mIoU, 0 to 1.")
@click.option("--max-parameters-m", type=float, help="Most millions of stored parameters.")
@click.option(
    "--max-memory-mib", type=float, help="Most MiB of engines and their contexts on the device."
)
@click.option(
    "--prefer",
    type=click.Choice(["both", "mAP", "mIoU"], case_sensitive=False),
    metavar="[both|mAP|mIoU]",
    default="both",
    show_default=True,
    help="What is to be high: mAP, mIoU, or both (the mean of score / best score of the board).",
)
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def recommend(
    study: str,
    device: str | None,
    mode: str | None,
    precision: str | None,
    max_latency_ms: float | None,
    stat: str | None,
    min_map: float | None,
    min_miou: float | None,
    max_parameters_m: float | None,
    max_memory_mib: float | None,
    prefer: Any,
    runs_dir: Path | None,
    as_json: bool,
) -> None:
    """Say which deployment of STUDY serves both tasks best within limits, and how sure that is.

    A deployment is two baselines, a shared or swapped encoder with two heads, or a dual network;
    one that needs two encoder passes counts with both. STUDY is read from the server in
    MLFLOW_TRACKING_URI, else from the private one of the runs folder; `published` stands for the
    numbers of the reference thesis and its one board, whose int8 was timed without its accuracy.
    Where nothing keeps the limits, the exit status is 10 and the message says what comes nearest.
    """
    from sharedenc.report.recommend import Request
    from sharedenc.report.recommend import recommend as answer

    request = Request(
        device=device,
        mode=mode,
        precision=precision,
        max_latency_ms=max_latency_ms,
        stat=stat,
        min_mIoU=min_miou,
        min_mAP=min_map,
        max_parameters_m=max_parameters_m,
        max_memory_mib=max_memory_mib,
        prefer=prefer,
    )
    found = answer(_facts(study, runs_dir), request)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    for line in lines(found):
        click.echo(line)


def _facts(study: str, runs_dir: Path | None) -> Facts:
    from sharedenc.mlflow_server import serve
    from sharedenc.report.collect import collect
    from sharedenc.report.table_spec import Facts
    from sharedenc.report.thesis import PUBLISHED, published_facts
    from sharedenc.report.write import count_parameters

    count = count_parameters()
    if study == PUBLISHED:
        return published_facts(count)
    with serve(runs_root(runs_dir)) as server:
        rows = collect(server.uri, study)
    return Facts.of(rows, count)


def lines(found: Recommendation) -> list[str]:
    """The answer to read."""
    choice, asked = found.choice, found.constraints
    told = [
        f"Deploy {choice.deployment.name} on {asked['board']} in {asked['precision']}.",
        f"  {_figures(choice)}",
        f"Because: {found.why}.",
    ]
    runner_up = found.runner_up
    if runner_up is None:
        told.append("Runner-up: none, nothing else fits.")
    else:
        told.append(f"Runner-up: {runner_up.deployment.name}: {_figures(runner_up)}")
    told.append(f"Cost: {_cost(found.cost_against_best, choice)}")
    models = ", ".join(f"{model.model} version {model.version}" for model in choice.models)
    missing = (
        "none: published numbers have no networks"
        if found.study == "published"
        else "not all registered yet: sharedenc export --deployment "
        f"{choice.deployment.name} --study {found.study}"
    )
    told.append(f"Models: {models or missing}")
    told.append(f"How sure: {found.confidence.level}")
    told += [f"  - {reason}" for reason in found.confidence.reasons]
    told += [f"Note: {note}" for note in found.notes]
    if found.unmeasured:
        names = ", ".join(row.deployment for row in found.unmeasured[:3])
        more = ", ..." if len(found.unmeasured) > 3 else ""
        told.append(
            f"Not judged: {len(found.unmeasured)} ({names}{more}); the first: "
            f"{found.unmeasured[0].why}. All of them: --json"
        )
    return told


def _figures(option: Option) -> str:
    whole = option.deployment
    passes = "one encoder pass" if whole.passes == 1 else f"{whole.passes} encoder passes"
    size = whole.parameters.value
    parts = [f"{option.latency.value:.3f} ms ({option.stat})"]
    for name, figure in (("mIoU", option.mIoU), ("mAP", option.mAP)):
        spread = "" if figure.sd is None else f" ± {figure.sd:.4f}"
        parts.append(f"{name} {figure.value:.4f}{spread}")
    if size is not None:
        parts.append(f"{size:.2f} M parameters")
    if option.memory.value is not None:
        parts.append(f"{option.memory.value:.1f} MiB")
    return ", ".join([*parts, passes])


def _cost(cost: Cost, choice: Option) -> str:
    if cost.best == choice:
        return "nothing: no deployment timed there is better, whatever its latency."
    changes = [
        f"{name} {change:+.1f} %"
        for name, change in (("mIoU", cost.mIoU), ("mAP", cost.mAP))
        if change is not None
    ]
    return (
        f"{', '.join(changes)} against the best whatever its latency, "
        f"{cost.best.deployment.name} at {cost.best.latency.value:.3f} ms."
    )
