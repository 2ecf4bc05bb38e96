"""`sharedenc selftest`: prove on this machine's device that everything runs, and write it down."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sharedenc.cli.options import load_plugins, plugin_option, weights_option
from sharedenc.spec import BACKBONES

if TYPE_CHECKING:
    from sharedenc.selftest.run import Row

CUDA_BATCH, CPU_BATCH = 32, 8
MOST_WORKERS = 8


@click.command(epilog="Example: sharedenc selftest --device cuda --data /data/coco")
@click.option("--device", default="cuda", show_default=True, metavar="[cuda|cpu]")
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="COCO 2017 or VOC folder, data.yaml, or a finished pack.",
)
@click.option("--steps", type=int, default=50, show_default=True, help="Steps of each training.")
@click.option("--quick", is_flag=True, help="Without share and swap.")
@click.option("--backbones", metavar="NAME,...", help="Backbones [default: all].")
@click.option("--image-px", type=int, default=320, show_default=True)
@click.option("--batch-size", type=int, help=f"[default: {CUDA_BATCH}; on a CPU {CPU_BATCH}]")
@click.option("--workers", type=click.IntRange(0), help="Loader processes [default: by cores].")
@weights_option
@click.option("--budget-minutes", type=float, default=60, show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("sharedenc-selftest"),
    show_default=True,
    help="Folder of the report.",
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where packed data sets lie [default: $SHAREDENC_CACHE, else the XDG cache folder].",
)
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON at the end.")
@click.pass_context
def selftest(ctx: click.Context, /, **options: Any) -> None:
    """Check data, training, memory, resume, sharing and export on a device, in an hour or less.

    Every backbone, strategy and freeze mode trains a few steps in float32 and bfloat16. A failed
    check does not stop the others. The folder of the report can be sent as it is: it names no
    user, host or path. Exit status: 0 all passed, 1 something failed or was left out.
    """
    plugins = load_plugins(options["plugins"])
    given = options["backbones"]
    names = tuple(BACKBONES) if given is None else tuple(n.strip() for n in given.split(",") if n)
    on_cpu = options["device"] == "cpu"
    if options["weights"] == "default" and _source(ctx, "weights") != "COMMANDLINE":
        options["weights"] = "none"  # needs no network, and shows as much
    workers = options["workers"]
    if workers is None:
        workers = 0 if on_cpu else min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1)

    from sharedenc.selftest.settings import SelftestSettings

    settings = SelftestSettings(
        data=options["data"],
        out=options["out"],
        device=options["device"],
        steps=options["steps"],
        quick=options["quick"],
        backbones=names,
        image_px=options["image_px"],
        batch_size=options["batch_size"] or (CPU_BATCH if on_cpu else CUDA_BATCH),
        workers=workers,
        weights=options["weights"],
        budget_minutes=options["budget_minutes"],
        cache_dir=options["cache_dir"],
        plugins=plugins,
    )

    from sharedenc.selftest.run import run_selftest

    before = signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        report = run_selftest(settings, _tell)
    finally:
        signal.signal(signal.SIGTERM, before)
    if options["as_json"]:
        click.echo(json.dumps(report.to_dict()))
    click.echo(f"{report.verdict}: {settings.out / 'report.md'}", err=options["as_json"])
    ctx.exit(report.exit_code)


def _source(ctx: click.Context, name: str) -> str:
    source = ctx.get_parameter_source(name)
    return "" if source is None else source.name


def _tell(number: int, total: int, row: Row) -> None:
    figures = row.figures
    more = row.reason
    if not more and "images_per_s" in figures:
        peak = figures["peak_memory_bytes"] / 2**30
        more = f"{figures['images_per_s']:.1f} images/s, peak {peak:.2f} GiB"
    line = f"{number}/{total}  {row.group} {row.name}: {row.status}  {row.seconds:.1f} s  {more}"
    click.echo(line.rstrip(), err=True)
