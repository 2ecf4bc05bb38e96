"""`sharedenc prune`: free what finished trials keep, after saying what that means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sharedenc.cli.options import runs_option, runs_root

if TYPE_CHECKING:
    from sweeps.prune import Doomed, Plan

EXAMPLES = """\b
Examples:
  sharedenc prune full-grid-coco --keep best --dry-run
  sharedenc prune --keep final --older-than 90d --yes
"""
SHOWN = 20


@click.command(epilog=EXAMPLES)
@click.argument("study", required=False)
@click.option(
    "--keep",
    metavar="[best|final|none]",
    default="final",
    show_default=True,
    help="Whose artifacts stay: of the best trial of each cell, of every final trial, of none.",
)
@click.option(
    "--older-than", metavar="AGE", help="Only trials that ended so long ago: 90d, 2w, 12h."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--storage", metavar="URI", help="Also free checkpoints in this --storage of a sweep."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; asks nothing.")
@runs_option
def prune(
    study: str | None,
    keep: str,
    older_than: str | None,
    dry_run: bool,
    yes: bool,
    storage: str | None,
    as_json: bool,
    runs_dir: Path | None,
) -> None:
    """Free the artifacts of trials of STUDY, or of all studies.

    Runs, their settings and their metrics stay. Never touched: registered versions and their
    runs, encoders that a swap still needs, what another study reuses, and studies that are being
    run. A trial whose artifacts are gone is trained again when it is asked for.
    """
    from sharedenc.mlflow_server import serve
    from sharedenc.storage import open_storage
    from sharedenc.tracking import MlflowTracker
    from sweeps.prune import Pruner, parse_age

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json asks nothing: add --yes, or --dry-run to only look")
    days = parse_age(older_than) if older_than else 0.0
    root = runs_root(runs_dir)
    with serve(root) as server:
        pruner = Pruner(MlflowTracker(server.uri), root, open_storage(storage) if storage else None)
        plan = pruner.plan([study] if study else [], keep, days)  # type: ignore[arg-type]
        if not as_json:
            for line in lines(plan):
                click.echo(line)
        done: list[Doomed] = []
        if plan.doomed and not dry_run:
            if not yes:
                click.confirm("Free them?", abort=True)
            pruner.carry_out(plan, done.append)
            if not as_json:
                click.echo(f"freed {size(sum(run.bytes for run in done))}")
    if as_json:
        result = plan.to_dict() | {
            "study": study or "",
            "dry_run": dry_run,
            "freed_bytes": sum(run.bytes for run in done),
        }
        click.echo(json.dumps(result))


def lines(plan: Plan) -> list[str]:
    """A plan in words."""
    told = list(plan.notes)
    if not plan.doomed:
        told.append(f"nothing to free with --keep {plan.keep}")
    for run in plan.doomed[:SHOWN]:
        told.append(f"{size(run.bytes):>9}  {run.study}: {run.name}")
    if len(plan.doomed) > SHOWN:
        told.append(f"           and {len(plan.doomed) - SHOWN} more")
    for kept in plan.kept[:SHOWN]:
        told.append(f"    stays  {kept.study}: {kept.name} ({kept.reason})")
    if plan.doomed:
        told.append(f"{size(plan.bytes)} of {len(plan.doomed)} trials")
    if plan.again:
        told.append(
            f"{len(plan.again)} finished trials can then not be reused: they are trained again "
            "when a sweep asks for them, and swaps of their backbone need that first"
        )
    return told


def size(count: int) -> str:
    """Bytes as people write them."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
