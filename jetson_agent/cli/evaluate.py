"""`jetson-agent evaluate`: photos on the engine, scored where they are annotated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from jetson_agent.cli.options import make_settings, progress
from jetson_agent.errors import AgentError
from jetson_agent.protocol import PRECISIONS


@click.command(
    epilog="Example: jetson-agent evaluate exports/resnet18-dual --data photos --precision int8"
)
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Photos with annotations/instances_*.json in COCO format, or a folder of plain photos.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option(
    "--backend", help="What runs the model  [default: tensorrt if there, else onnxruntime]"
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: all CPUs]")
@click.option("--split", help="Which annotations, where there are several  [default: test, val]")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first photos.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write predictions.json and pictures with boxes and masks there.",
)
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Least score of boxes that are listed and drawn; all are scored.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def evaluate(
    model: Path,
    data: Path,
    precision: str,
    backend: str | None,
    threads: int | None,
    split: str | None,
    limit: int | None,
    out: Path | None,
    min_score: float,
    as_json: bool,
) -> None:
    """Score a folder of photos on the engine of an ONNX file or of an exported folder.

    Annotated photos give mAP and mIoU by the rules of a sweep's test split; plain ones give
    predictions.
    """
    from jetson_agent.backends import load_backend
    from jetson_agent.cli.measure import machine
    from jetson_agent.errors import BackendError
    from jetson_agent.evaluate import evaluate as run_all
    from jetson_agent.evaluate import make_task
    from jetson_agent.identity import identify
    from jetson_agent.sources import find_source
    from jetson_agent.steps import Steps
    from jetson_agent.stopping import StopFlag, signals_set
    from jetson_agent.timing import Stopped

    settings, can = make_settings(backend=backend, threads=threads, deadline_s=None)
    if precision not in can:
        raise AgentError(
            f"backend {settings.backend} has no precision {precision}: it has {', '.join(can)}"
        )
    recipe = load_backend(settings.backend).int8_recipe
    source = find_source(model, precision, recipe)
    task = make_task(
        source.model,
        data,
        precision=precision,
        recipe=recipe,
        split=split,
        limit=limit,
        out=out,
        min_score=min_score,
    )
    stopping = StopFlag()
    with signals_set(stopping) as received:
        try:
            with (
                machine(stopping),
                progress() as tell,
                Steps(settings, identify(), stopping, tell, None) as steps,
            ):
                found = run_all(task, steps)
        except Stopped:
            raise SystemExit(128 + received[0]) from None
        except BackendError as error:
            raise AgentError(str(error)) from error
    head = {
        "model": source.model.name,
        "architecture": source.architecture,
        "precision": precision,
        "backend": settings.backend,
        "runtime": settings.runtime,
        "data": task.data,
        "annotations": task.annotations,
    }
    click.echo(json.dumps(head | found) if as_json else _text(head | found))


def _text(found: dict[str, Any]) -> str:
    """For a person: figures by name, or what is seen in each photo."""
    lines = [
        f"{found['model']} {found['precision']} on {found['backend']} {found['runtime']}: "
        f"{found['images']} photos"
    ]
    for name, value in found["scores"].items():
        if isinstance(value, dict):
            lines += [f"  {name}/{key:<20} {score:.4f}" for key, score in value.items()]
        else:
            lines.append(f"  {name:<12} {value:.4f}")
    for row in found.get("predictions", []):
        boxes = [f"{box['class']} {box['score']:.2f}" for box in row.get("detections", [])]
        shares = [
            f"{name} {share:.0%}"
            for name, share in row.get("mask_shares", {}).items()
            if share >= 0.01
        ]
        seen = [", ".join(boxes)] * bool(boxes) + [f"mask: {', '.join(shares)}"] * bool(shares)
        lines.append(f"  {row['image']}: {row.get('error') or '; '.join(seen) or 'nothing'}")
    if found["not_scored"]:
        lines.append(f"Not scored: {found['not_scored']}.")
    return "\n".join([*lines, *(f"Note: {text}" for text in found["warnings"])])
