"""`sharedenc evaluate`: COCO figures of a results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sharedenc.data.dataset import read_json

if TYPE_CHECKING:
    from sharedenc.evaluation.coco_tables import IouType
    from sharedenc.evaluation.detection import ApResult


@click.command(epilog="Example: sharedenc evaluate --annotations GT.json --detections DT.json")
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    required=True,
    help="Ground truth, a COCO instances file.",
)
@click.option(
    "--detections",
    type=click.Path(path_type=Path),
    required=True,
    help="Detections, a COCO results file.",
)
@click.option(
    "--iou-type",
    type=click.Choice(["bbox", "segm"]),
    default="bbox",
    show_default=True,
    help="Compare boxes or masks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(annotations: Path, detections: Path, iou_type: IouType, as_json: bool) -> None:
    """Score detections by COCO AP, over all images and categories of the ground truth."""
    truth = read_json(annotations)
    found = read_json(detections, list, "a COCO results file (a list)")

    from sharedenc.evaluation.detection import coco_ap

    if not found:
        click.echo(f"Warning: {detections} holds no detections; all figures are 0.", err=True)
    result = coco_ap(truth, found, iou_type)
    if as_json:
        click.echo(json.dumps(result.to_dict()))
    else:
        print_tables(result, len(truth["images"]), len(found))


def print_tables(result: ApResult, images: int, detections: int) -> None:
    """Print the figures, the AP by IoU threshold and by class; a dash where undefined."""
    from rich.console import Console
    from rich.table import Table

    from sharedenc.evaluation.detection import IOU_THRESHOLDS

    console = Console()
    stats = Table(title=f"COCO {result.iou_type}: {images} images, {detections} detections")
    by_iou = Table(title="AP by IoU threshold")
    by_class = Table(title="AP by class")
    rows = (
        (stats, result.stats.items()),
        (by_iou, zip((f"{iou:.2f}" for iou in IOU_THRESHOLDS), result.ap_per_iou, strict=True)),
        (by_class, result.per_class.items()),
    )
    for table, figures in rows:
        table.add_column("")
        table.add_column("value", justify="right")
        for name, value in figures:
            table.add_row(name, f"{value:.3f}" if value >= 0 else "-")
        console.print(table)
