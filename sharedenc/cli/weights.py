"""`sharedenc weights`: pretrained encoder weights for machines without a network."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group(epilog="Example: sharedenc weights fetch --out weights")
def weights() -> None:
    """Fetch pretrained encoder weights."""


@weights.command(epilog="Example: sharedenc weights fetch --out weights --backbone resnet18")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the files.",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    help="Only this backbone; may be given several times [default: all].",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--base-url", hidden=True, envvar="SHAREDENC_FETCH_BASE_URL")
def fetch(out: Path, backbones: tuple[str, ...], as_json: bool, base_url: str | None) -> None:
    """Fetch torchvision's ImageNet weights and check their hashes."""
    from sharedenc.data.fetch import fetch_weights

    found = fetch_weights(out, backbones or None, base_url=base_url)
    if as_json:
        click.echo(json.dumps({backbone: str(path) for backbone, path in found.items()}))
        return
    option = ",".join(f"{backbone}={path}" for backbone, path in found.items())
    click.echo(f"Ready: --weights {option}")
