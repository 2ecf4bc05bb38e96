"""`sharedenc sweep simulate`: how long would so many trials take on so many GPUs?"""

from __future__ import annotations

import json
from typing import Any

import click

# As many as the targets of the policy are stated for.
SEEDS = 20


@click.command(
    epilog="Example: sharedenc sweep simulate --gpus 32 --trials 352 --durations estimated"
)
@click.option("--gpus", type=click.IntRange(1), required=True, help="Devices in all.")
@click.option("--trials", type=click.IntRange(1), required=True, help="44 are the thesis's grid.")
@click.option("--seeds", type=click.IntRange(1), default=SEEDS, show_default=True)
@click.option(
    "--durations",
    type=click.Choice(["known", "estimated"]),
    default="known",
    show_default=True,
    help="Whether the policy knows how long a trial takes, or estimates it and learns.",
)
@click.option(
    "--failures",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Probability that a machine fault ends an attempt.",
)
@click.option(
    "--stragglers",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Probability that a trial takes twice as long.",
)
@click.option(
    "--early-stops",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Probability that a trial is cut after 24 epochs.",
)
@click.option(
    "--fuse",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Compare with a sweep in which frozen trials of one encoder train together (auto).",
)
@click.option("--gpus-per-node", type=click.IntRange(1), default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def simulate(
    gpus: int,
    trials: int,
    seeds: int,
    durations: str,
    failures: float,
    stragglers: float,
    early_stops: float,
    fuse: str,
    gpus_per_node: int,
    as_json: bool,
) -> None:
    """Run a sweep's policy on a virtual clock; nothing is trained.

    Trials are those of the reference grid on COCO, further ones its other learning rates and
    seeds. The bound is max(longest chain, all work / GPUs): no order of trials ends earlier, but
    that of frozen trials together, which make pictures and encoder's maps once, may.
    """
    from sweeps.simulate import Chance, summary

    row = summary(
        trials,
        gpus,
        seeds=seeds,
        durations=durations,  # type: ignore[arg-type]  # click checks it
        chance=Chance(failures=failures, stragglers=stragglers, early_stops=early_stops),
        per_node=gpus_per_node,
        fuse=fuse,  # type: ignore[arg-type]  # click checks it
    )
    click.echo(json.dumps(row) if as_json else _text(row))


def _text(row: dict[str, Any]) -> str:
    lines = [
        f"{row['trials']} trials on {row['devices']} GPUs, {row['seeds']} seeds, "
        f"durations {row['durations']}",
        f"{'':18}{'mean':>9}{'largest':>9}",
        f"{'bound':18}{row['bound_h']:>7.1f} h{row['bound_h_max']:>7.1f} h",
        f"{'makespan':18}{row['makespan_h']:>7.1f} h{row['makespan_h_max']:>7.1f} h",
        f"{'makespan / bound':18}{row['ratio_to_bound']:>9.3f}{row['ratio_to_bound_max']:>9.3f}",
        f"{'devices busy':18}{row['busy']:>8.0%}",
    ]
    if "fused_speedup" in row:
        lines += [
            f"{'frozen together':18}{row['fused_makespan_h']:>7.1f} h"
            f"{row['fused_makespan_h_max']:>7.1f} h",
            f"{'sooner':18}{row['fused_speedup']:>8.2f}x{'':4}at least "
            f"{row['fused_speedup_min']:.2f}x, {row['groups']:.0f} groups, "
            f"{row['device_hours_saved']:.0%} less device time",
        ]
    if row["retries"]:
        lines.append(f"{'retries':18}{row['retries']:>9.1f}")
    if row["failed"]:
        lines.append(f"{'failed for good':18}{row['failed']:>9.1f}")
        lines.append(f"{'skipped':18}{row['skipped']:>9.1f}")
    return "\n".join(lines)
