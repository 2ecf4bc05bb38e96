"""`sharedenc models`: what each network is made of and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click


@click.command(epilog="Example: sharedenc models --num-classes 3 --backbones resnet18 --json")
@click.option(
    "--num-classes",
    type=click.IntRange(min=2),
    help="Classes of both heads, the background counted [default: those of voc20].",
)
@click.option(
    "--backbones",
    multiple=True,
    metavar="NAME[,NAME...]",
    help="Only these backbones; may be given more than once.",
)
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE.py|MODULE",
    help="Load backbones from outside the package first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON and nothing else.")
def models(
    num_classes: int | None, backbones: tuple[str, ...], plugins: tuple[str, ...], as_json: bool
) -> None:
    """List encoder, seg, det and dual of each backbone: parameters, GFLOPs, taps, what trains.

    GFLOPs are those of one 320 px image (one multiply-add counts 2).
    """
    from sharedenc.data.classes import VOC20
    from sharedenc.errors import check_choice
    from sharedenc.models.build import model_rows
    from sharedenc.models.encoders import ENCODERS
    from sharedenc.models.plugins import load_entry_points, load_plugin

    load_entry_points()
    for plugin in plugins:
        load_plugin(plugin)
    names = [name.strip() for group in backbones for name in group.split(",")] or list(ENCODERS)
    for name in names:
        check_choice("backbone", name, ENCODERS)
    rows = model_rows(num_classes or VOC20.num_classes, names)
    if as_json:
        click.echo(json.dumps(rows))
    else:
        _print_tables(rows, names)


def _print_tables(rows: Iterable[dict[str, Any]], backbones: Iterable[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sharedenc.models.build import feature_maps
    from sharedenc.models.freeze import FREEZE_MODES

    # Never narrower than the tables: piped output has no width of its own.
    console = Console(soft_wrap=True) if Console().is_terminal else Console(width=120)
    costs = Table("backbone", "graph", title="Networks (parameters; GFLOPs per 320 px image)")
    for column in ("classes", "parameters", "GFLOPs", *(f"trains: {m}" for m in FREEZE_MODES)):
        costs.add_column(column, justify="right")
    for row in rows:
        if row["graph"] == "encoder":
            costs.add_section()
        costs.add_row(
            row["backbone"],
            row["graph"],
            "-" if row["graph"] == "encoder" else str(row["num_classes"]),
            f"{row['parameters']:,}",
            f"{row['gflops']:.3f}",
            *(f"{row['trainable'][mode]:,}" for mode in FREEZE_MODES),
        )
    console.print(costs)
    taps = Table("backbone", "map", "read by", "module", title="Feature maps")
    taps.add_column("channels", justify="right")
    taps.add_column("stride", justify="right")
    readers = {"low": "seg", "mid": "det", "high": "det, seg"}
    for backbone in backbones:
        taps.add_section()
        for level, tap in feature_maps(backbone).items():
            taps.add_row(
                backbone, level, readers[level], tap.name, str(tap.channels), str(tap.stride)
            )
    console.print(taps)
