"""`sharedenc data`: draw, fetch, prepare, count and look at data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sharedenc.cli.options import build_recipe, data_options, data_rules, recipe_options
from sharedenc.errors import SpecError

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

EXAMPLES = """\b
Examples:
  sharedenc data synthetic --out shapes --images 112
  sharedenc data fetch coco --out /data/coco
  sharedenc data prepare --data /data/coco --decoded
  sharedenc data stats --data /data/coco
  sharedenc data show --data /data/coco --out sheet.png
"""

OUT_FOLDER = click.Path(file_okay=False, path_type=Path)
BASE_URL_ENV = "SHAREDENC_FETCH_BASE_URL"


@click.group(epilog=EXAMPLES)
def data() -> None:
    """Draw, fetch, prepare, count and look at data sets."""


@data.command(epilog="Example: sharedenc data synthetic --out shapes --images 64,16,32 --seed 1")
@click.option("--out", type=OUT_FOLDER, required=True, help="New folder to draw into.")
@click.option(
    "--images",
    default="64,16,32",
    show_default=True,
    metavar="N|TRAIN,VAL,TEST",
    help="Number of images in all (divided about 64:16:32), or of each split.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same files.")
def synthetic(out: Path, images: str, seed: int) -> None:
    """Draw a data set of coloured shapes, in COCO format. Good for trying, never a result."""
    from sharedenc.data.dataset import SPLITS
    from sharedenc.data.synthetic import divide, write_synthetic

    numbers = _numbers(images)
    counts = divide(numbers[0]) if len(numbers) == 1 else numbers
    if len(counts) != len(SPLITS):
        raise SpecError(f"--images {images!r} must be one number or three: TRAIN,VAL,TEST")
    write_synthetic(out, (counts[0], counts[1], counts[2]), seed)
    drawn = ", ".join(f"{count} {split}" for split, count in zip(SPLITS, counts, strict=True))
    click.echo(f"Drew {drawn} images into {out}")


@data.command(epilog="Example: sharedenc data prepare --data /data/coco")
@data_options
@click.option("--out", type=OUT_FOLDER, help="Folder for the pack [default: in the cache folder].")
@click.option(
    "--decoded",
    is_flag=True,
    help="Also put the decoded pictures beside it: more disk, less work for every epoch.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def prepare(
    data: Path | None,
    cache_dir: Path | None,
    out: Path | None,
    decoded: bool,
    as_json: bool,
    **rules: Any,
) -> None:
    """Build the packed form that training reads (or find it in the cache).

    With --decoded, training reads pixels instead of JPEGs, the same to the bit; results and keys do
    not depend on it. To have the disk back, delete the folder that is named.
    """
    from sharedenc.data.decoded import find_decoded, other_decoded

    pack = _pack(data, cache_dir, rules, out)
    if decoded:
        _decode(pack)
    pixels = find_decoded(pack.root, pack.digest)
    if as_json:
        from sharedenc.data.stats import data_stats

        place = None if pixels is None else str(pixels)
        click.echo(json.dumps(data_stats(pack) | {"decoded": place}))
        return
    click.echo(f"{pack.name}: {pack.root}\ndigest {pack.digest}")
    if pixels is not None:
        click.echo(f"decoded pictures: {pixels}")
    for folder in other_decoded(pack.root):
        click.echo(f"decoded by another OpenCV, of no use to this one: {folder}")
    _warn(pack)


def _decode(pack: PackedDataset) -> None:
    """Put decoded pictures beside a pack, having said what they cost."""
    from sharedenc.data.decoded import decode_pack, decoded_bytes, decoded_folder
    from sharedenc.data.progress import amount

    click.echo(
        f"Decoded pictures of {pack.name} take {amount(decoded_bytes(pack))} of disk in "
        f"{decoded_folder(pack.root)}",
        err=True,
    )
    decode_pack(pack)


@data.command(epilog="Example: sharedenc data stats --data /data/coco --json")
@data_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def stats(data: Path | None, cache_dir: Path | None, as_json: bool, **rules: Any) -> None:
    """Count images and objects per class and split."""
    from sharedenc.data.stats import data_stats

    pack = _pack(data, cache_dir, rules)
    found = data_stats(pack)
    if as_json:
        click.echo(json.dumps(found))
        return
    _print_stats(found)
    _warn(pack)


@data.command(epilog="Example: sharedenc data show --data /data/coco --out sheet.png --augmented")
@data_options
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Picture to write (.png).",
)
@click.option("--split", default="train", show_default=True, metavar="[train|val|test]")
@click.option("--count", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--augmented", is_flag=True, help="As training sees them, augmented.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which images and crops.")
@recipe_options
def show(
    data: Path | None,
    cache_dir: Path | None,
    out: Path,
    split: str,
    count: int,
    augmented: bool,
    seed: int,
    **options: Any,
) -> None:
    """Write a contact sheet: images with their boxes and masks."""
    from sharedenc.data.dataset import SPLITS
    from sharedenc.data.show import contact_sheet
    from sharedenc.errors import check_choice

    check_choice("split", split, SPLITS)
    if out.suffix.lower() != ".png":
        raise SpecError(f"--out {out} must end in .png: pictures are written as PNG only")
    pack = _pack(data, cache_dir, options)
    contact_sheet(pack, split, out, count, augmented, build_recipe(options), seed)
    click.echo(f"Wrote {out}")


@data.command(epilog="Example: sharedenc data fetch voc --out /data/voc")
@click.argument("which", metavar="[coco|voc]")
@click.option("--out", type=OUT_FOLDER, required=True, help="Folder to unpack into.")
@click.option("--keep-archives", is_flag=True, help="Do not remove the archives when unpacked.")
@click.option("--base-url", hidden=True, envvar=BASE_URL_ENV)
def fetch(which: str, out: Path, keep_archives: bool, base_url: str | None) -> None:
    """Fetch the official COCO 2017 (19 GB) or Pascal VOC 2007 and 2012 (3 GB)."""
    from sharedenc.data.fetch import fetch_data

    folder = fetch_data(which, out, keep=keep_archives, base_url=base_url)
    click.echo(f"Ready: --data {folder}")


def _pack(
    data: Path | None, cache_dir: Path | None, options: Mapping[str, Any], out: Path | None = None
) -> PackedDataset:
    from sharedenc.data.packed import prepare as prepare_pack

    if data is None:
        raise SpecError(
            "--data is missing: a COCO 2017 or VOC folder, or a data.yaml. To get one: "
            "`sharedenc data synthetic --out DIR` or `sharedenc data fetch coco --out DIR`."
        )
    return prepare_pack(data, cache_dir, data_rules(options), out=out)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise SpecError(f"--images {text!r} must be one number or three: TRAIN,VAL,TEST")
    return numbers


def _warn(pack: PackedDataset) -> None:
    for warning in pack.warnings:
        click.echo(f"Warning: {warning}", err=True)


def _print_stats(found: dict[str, Any]) -> None:
    splits = found["splits"]
    wide = max(len(name) for name in [*found["classes"], "median size, px"]) + 2

    def line(title: str, values: list[object]) -> None:
        click.echo(f"{title:<{wide}}" + "".join(f"{value!s:>12}" for value in values))

    click.echo(
        f"{found['name']}  (classes {found['class_list']}, tasks {' '.join(found['tasks'])})"
    )
    click.echo(f"digest {found['digest']}\n")
    line("", list(splits))
    line("images", [split["images"] for split in splits.values()])
    line(
        "median size, px",
        [f"{split['width'][1]}x{split['height'][1]}" for split in splits.values()],
    )
    line("stored, MB", [round(split["bytes"] / 1e6, 1) for split in splits.values()])
    for name in found["classes"]:
        line(name, [split["objects"][name] for split in splits.values()])
    line("(crowd regions)", [split["crowd"] for split in splits.values()])
