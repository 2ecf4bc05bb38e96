"""`sharedenc predict`: draw what a network finds in pictures."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sharedenc.cli.options import load_plugins, plugin_option, runs_option, runs_root
from sharedenc.errors import DataError

if TYPE_CHECKING:
    from sharedenc.export.predict import Predictor


@click.command()
@click.argument("source", metavar="RUN_OR_ONNX")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the drawn pictures, OUT/<name>.png.",
)
@click.option(
    "--min-score",
    default=0.3,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Leave out boxes below this score.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON object.")
@plugin_option
@runs_option
def predict(
    source: str,
    images: tuple[Path, ...],
    out: Path,
    min_score: float,
    as_json: bool,
    plugins: tuple[Path, ...],
    runs_dir: Path | None,
) -> None:
    """Draw boxes and masks that a trained network finds in IMAGES.

    RUN_OR_ONNX is an exported .onnx file, a run's id, a registered version
    (models:/voc20-resnet18-dual/1) or the path of a best.safetensors. A picture that cannot be
    read is reported and the others are done; the exit status is then not 0.

    \b
    Examples:
      sharedenc predict models:/voc20-resnet18-dual/1 photo.jpg --out drawn
      sharedenc predict model.onnx *.jpg --out drawn --min-score 0.5 --json
    """
    load_plugins(plugins)
    predictor = _predictor(source, runs_dir)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    errors: list[DataError] = []
    taken: set[Path] = set()
    for image in images:
        target = _free_name(out, image.stem, taken)
        try:
            rows.append(_one(predictor, image, target, min_score))
        except DataError as error:
            errors.append(error)
            rows.append({"image": str(image), "error": str(error)})
            click.echo(f"Error: {error}", err=True)
            continue
        if not as_json:
            click.echo(f"{target}  {len(rows[-1]['detections'])} boxes")
    if as_json:
        click.echo(json.dumps({"source": source, "images": rows}, indent=2))
    if errors:
        raise DataError(f"{len(errors)} of {len(images)} pictures could not be done; see above.")


def _predictor(source: str, runs_dir: Path | None) -> Predictor:
    from sharedenc.export.load import load_with_meta
    from sharedenc.export.predict import onnx_predictor, torch_predictor

    if source.endswith(".onnx"):
        return onnx_predictor(Path(source))
    with ExitStack() as stack:
        uri = None
        if not Path(source).is_file():
            from sharedenc.mlflow_server import serve

            uri = stack.enter_context(serve(runs_root(runs_dir))).uri
        return torch_predictor(load_with_meta(source, uri))


def _one(predictor: Predictor, image: Path, target: Path, min_score: float) -> dict[str, Any]:
    from sharedenc.export.predict import read_image, write_image

    pixels = read_image(image)
    prediction = predictor(pixels, min_score)
    write_image(target, predictor.draw(pixels, prediction))
    return {
        "image": str(image),
        "output": str(target),
        "size": [pixels.shape[1], pixels.shape[0]],
        **prediction.to_dict(predictor.labels),
    }


def _free_name(out: Path, stem: str, taken: set[Path]) -> Path:
    """``OUT/stem.png``, numbered when another picture of this call has the same name."""
    path, number = out / f"{stem}.png", 2
    while path in taken:
        path, number = out / f"{stem}-{number}.png", number + 1
    taken.add(path)
    return path
