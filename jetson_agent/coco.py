"""Annotated photos in COCO format: which take part, their boxes, and their label maps.

The rules are those of `sharedenc evaluate` and of every sweep with default settings: classes match
by name; an image takes part if it shows an object of the classes; crowd regions are ignored; where
two objects overlap, and where an object has no outline, nobody is right or wrong (255).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetson_agent.errors import AgentError

IGNORE = 255
# Other spellings of the same thing, as the sweep side knows them, each to that of Pascal VOC.
ALIASES = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "diningtable": "dining table",
    "motorcycle": "motorbike",
    "pottedplant": "potted plant",
    "tv": "tv/monitor",
    "tvmonitor": "tv/monitor",
}
# Which annotations are taken where there are several: what a sweep calls its test split.
PREFERRED = ("test", "val2017", "test2017", "val")
RULES = ("merge", "ignore", "rules")


@dataclass(frozen=True)
class Thing:
    """One object: `box` is xyxy in pixels inside the photo, `outline` polygons or a RLE mask."""

    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    outline: Any


@dataclass(frozen=True)
class Photo:
    """One annotated photo of `width` x `height` pixels."""

    image_id: int
    path: Path
    width: int
    height: int
    things: list[Thing]


@dataclass(frozen=True)
class Annotated:
    """The photos that take part, by rising id; `warnings` are one sentence each.

    `category_ids` has the file's own id of each label.
    """

    photos: list[Photo]
    has_masks: bool
    category_ids: dict[int, int]
    warnings: list[str] = field(default_factory=list)


def find_annotations(data: Path, split: str | None) -> tuple[Path, Path] | None:
    """The annotation file of a data set and the folder of its photos.

    Args:
        data: A folder with ``annotations/instances_<split>.json`` or ``annotations/<split>.json``,
            and photos in ``<split>/``, ``images/<split>/`` or ``images/``.
        split: Which of them; None for the only one, else the first there is of `PREFERRED`.

    Returns:
        None for a folder of plain photos.

    Raises:
        AgentError: the split is not there, or several are and none is preferred.
    """
    found = {
        path.stem.removeprefix("instances_"): path
        for path in sorted((data / "annotations").glob("*.json"))
        if not path.stem.startswith(("captions_", "person_keypoints_"))
    }
    names = ", ".join(found) or "none"
    if split is not None and split not in found:
        raise AgentError(f"{data} has no annotations of split {split!r}; it has {names}")
    if not found:
        return None
    if split is None:
        one = [*found] if len(found) == 1 else [name for name in PREFERRED if name in found]
        if not one:
            raise AgentError(f"{data} has annotations of {names}: choose one with --split")
        split = one[0]
    for folder in (data / split, data / "images" / split, data / "images", data):
        if folder.is_dir():
            return found[split], folder
    raise AgentError(f"there is no folder {data}")


def read_annotations(
    annotations: Path, images: Path, labels: Sequence[str], limit: int | None = None
) -> Annotated:
    """Read the photos that show an object of the classes.

    Args:
        labels: The network's class names, the background first.
        limit: Only the first ones, by rising id.

    Raises:
        AgentError: the file is not in COCO format, or has none of the classes.
    """
    try:
        content = json.loads(annotations.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AgentError(f"{annotations} cannot be read as JSON: {error}") from error
    try:
        ids, warnings = _labels_of(content["categories"], labels, annotations)
        photos = {
            int(row["id"]): Photo(
                int(row["id"]),
                images / str(row["file_name"]),
                int(row["width"]),
                int(row["height"]),
                [],
            )
            for row in content["images"]
        }
        for row in content["annotations"]:
            photo = photos[int(row["image_id"])]
            if (label := ids.get(int(row["category_id"]))) is not None:
                thing = _thing(row, label, photo)
                if thing is not None:
                    photo.things.append(thing)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AgentError(
            f"{annotations} is not in COCO format ({type(error).__name__}: {error}); it needs "
            "images, annotations and categories"
        ) from error
    kept = [photos[key] for key in sorted(photos) if photos[key].things]
    if not kept:
        raise AgentError(
            f"{annotations}: none of its {len(photos)} images shows one of {', '.join(labels[1:])}"
        )
    has_masks = any(thing.outline for photo in kept for thing in photo.things)
    if not has_masks:
        warnings.append("the annotations have boxes only: masks cannot be scored")
    settings = annotations.parent.parent / "data.yaml"
    if settings.is_file():
        told = settings.read_text(errors="replace").splitlines()
        if own := [rule for rule in RULES if any(line.startswith(f"{rule}:") for line in told)]:
            warnings.append(
                f"{', '.join(own)} in {settings} do not count here: the default rules do"
            )
    category_ids = {label: number for number, label in ids.items()}
    return Annotated(kept[:limit], has_masks, category_ids, warnings)


def _labels_of(
    categories: Sequence[Mapping[str, Any]], labels: Sequence[str], where: Path
) -> tuple[dict[int, int], list[str]]:
    """Labels of category ids, by name; and what has no counterpart."""
    names = {str(row["name"]): int(row["id"]) for row in categories}
    if len(names) < len(categories):
        raise AgentError(f"{where} has a category name twice; it has {', '.join(sorted(names))}")
    ids: dict[int, int] = {}
    missing = []
    for label, name in enumerate(labels[1:], start=1):
        meaning = ALIASES.get(name, name)
        same = name if name in names else None
        same = same or next((n for n in names if ALIASES.get(n, n) == meaning), None)
        if same is None:
            missing.append(name)
        else:
            ids[names[same]] = label
    sides = f"{where.name} has {', '.join(sorted(names))}; the model has {', '.join(labels[1:])}"
    if not ids:
        raise AgentError(f"no class of the model is annotated: {sides}")
    warnings = []
    if missing:
        warnings.append(f"not annotated, so not scored: {', '.join(missing)}")
    return ids, warnings


def _thing(row: Mapping[str, Any], label: int, photo: Photo) -> Thing | None:
    x, y, w, h = (float(value) for value in row["bbox"])
    if not all(math.isfinite(value) for value in (x, y, w, h)) or w <= 0 or h <= 0:
        return None
    box = (max(x, 0.0), max(y, 0.0), min(x + w, photo.width), min(y + h, photo.height))
    if box[2] <= box[0] or box[3] <= box[1]:
        return None
    given = row.get("area")
    area = float(given) if given is not None else (box[2] - box[0]) * (box[3] - box[1])
    crowd = bool(row.get("iscrowd", 0))
    return Thing(label, box, area, crowd, _outline(row.get("segmentation"), photo))


def _outline(segmentation: Any, photo: Photo) -> Any:
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [photo.height, photo.width]:
            raise ValueError(f"a RLE mask of image {photo.image_id} has another size than it")
        return segmentation
    # The rasteriser walks every pixel of an edge: a stray 1e9 would take hours.
    far = 2 * max(photo.width, photo.height)
    polygons = []
    for polygon in segmentation:
        if len(polygon) >= 6 and len(polygon) % 2 == 0:
            if min(polygon) < -far or max(polygon) > 2 * far:
                polygon = [min(max(float(value), -far), 2 * far) for value in polygon]
            polygons.append(polygon)
    return polygons or None


def label_map(photo: Photo) -> npt.NDArray[np.uint8]:
    """The label of each pixel, ``[height, width]``; 0 is background, 255 is not scored.

    Raises:
        AgentError: a mask that is not as large as the photo.
    """
    result = np.zeros((photo.height, photo.width), np.uint8)
    seen = np.zeros_like(result)
    unknown = np.zeros(result.shape, bool)
    for thing in sorted(photo.things, key=lambda thing: (not thing.crowd, -thing.area)):
        if thing.outline is None:
            x1, y1, x2, y2 = thing.box
            unknown[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)] = True
            continue
        inside = _inside(thing.outline, photo)
        if thing.crowd:
            result[inside] = IGNORE
        else:
            result[inside] = np.where(seen[inside] > 0, IGNORE, thing.label)
        seen[inside] = 1
    result[unknown] = IGNORE
    return result


def _inside(outline: Any, photo: Photo) -> npt.NDArray[np.bool_]:
    import warnings

    from pycocotools import mask

    size = [photo.height, photo.width]
    try:
        if isinstance(outline, list):
            encoded = mask.merge(mask.frPyObjects(outline, *size))
        else:
            counts = outline["counts"]
            runs = rle_runs(counts) if isinstance(counts, str) else [int(run) for run in counts]
            # pycocotools writes past its buffer when the runs are longer than the image.
            if min(runs, default=0) < 0 or sum(runs) != photo.height * photo.width:
                raise ValueError(f"its run lengths add up to {sum(runs)}, not to {size}")
            encoded = mask.frPyObjects({"size": size, "counts": runs}, *size)
        with warnings.catch_warnings():
            # pycocotools 2.0 has not followed numpy 2's __array__ signature; the result is right.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            inside: npt.NDArray[np.bool_] = mask.decode(encoded).astype(bool)
    except Exception as error:  # pycocotools raises the bare class for a form it does not know
        raise AgentError(
            f"a mask of {photo.path.name} (image {photo.image_id}) cannot be used: {error}"
        ) from error
    return inside


def rle_runs(text: str) -> list[int]:
    """Run lengths of COCO's compressed form.

    Each number is written in groups of 5 bits, lowest first, as characters from "0" on; bit 6 says
    that more follow, bit 5 of the last group is the sign; from the fourth run on the difference to
    the run before the previous one is stored.

    Raises:
        ValueError: the text ends inside a number or holds other characters.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"a compressed RLE mask holds the character {character!r}")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("a compressed RLE mask ends inside a number")
    return runs
