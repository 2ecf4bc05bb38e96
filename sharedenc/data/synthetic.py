"""Draws a seeded data set on disk: real JPEGs, polygons, boxes, a few crowd regions.

It exists so that everything can run without a download, never for results. Each class has a shape,
a hue and a texture of its own, on textured grey-brown backgrounds, so that both tasks can be learnt
from few images.
"""

from __future__ import annotations

import colorsys
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sharedenc.data.classes import VOC20, ClassList
from sharedenc.data.dataset import SPLITS
from sharedenc.data.rasterise import decode
from sharedenc.errors import DataError, SpecError

Points = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]

SIDE_PX = (200, 420)
OBJECTS = (1, 3)
SHARES = (64, 16, 32)
"""How one number of images is divided: training, validation, test."""
CROWD_EVERY = 8
JPEG_QUALITY = 90

# Radius of a shape's outline at equal angles, as a share of the object's size.
SHAPES: tuple[tuple[float, ...], ...] = (
    (1.0,) * 24,
    (1.0, 1.0, 1.0),
    (1.0, 1.0, 1.0, 1.0),
    (1.0, 0.45) * 5,
    (1.0,) * 6,
    (1.0, 0.55, 0.55) * 4,
    (1.0, 0.8) * 3,
)
TEXTURES = ("plain", "stripes", "checks", "dots")


def divide(images: int) -> tuple[int, int, int]:
    """Divide a number of images into training, validation and test, about 64 : 16 : 32.

    Raises:
        SpecError: when there are fewer than three, one for each split.
    """
    if images < len(SHARES):
        raise SpecError(f"--images {images} is too few: one per split is the least, so 3")
    val = max(1, round(images * SHARES[1] / sum(SHARES)))
    test = max(1, round(images * SHARES[2] / sum(SHARES)))
    return images - val - test, val, test


def write_synthetic(
    out: Path,
    images: int | tuple[int, int, int] = SHARES,
    seed: int = 0,
    classes: ClassList = VOC20,
    name: str = "synthetic",
    *,
    size_px: tuple[int, int] | None = None,
    objects: tuple[int, int] = OBJECTS,
    quality: int = JPEG_QUALITY,
) -> Path:
    """Draw a data set into a new folder, in COCO format with a `data.yaml`.

    Args:
        images: Number of images in all (divided as in `divide`), or of training, validation, test.
        seed: The same seed gives the same files.
        classes: Each class appears in every split that has room for it.
        size_px: Width and height of all pictures; None: each side at random, from `SIDE_PX`.
        objects: How many there are on a picture, from and to; more where classes need the room.
        quality: Of the JPEG files.

    Returns:
        ``out``, for `open_source`.

    Raises:
        DataError: when ``out`` holds something already.
        SpecError: when a split would have no image.
    """
    import yaml

    counts = divide(images) if isinstance(images, int) else images
    if len(counts) != len(SPLITS) or min(counts) < 1:
        raise SpecError(f"images={images!r} must give at least one for each of train, val, test")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder; choose a new one for --out")
    content: dict[str, Any] = {"name": name}
    streams = np.random.SeedSequence(seed).spawn(len(SPLITS))
    for split, count, stream in zip(SPLITS, counts, streams, strict=True):
        rng = np.random.default_rng(stream)
        _write_split(out, split, count, rng, classes, size_px, objects, quality)
        content[split] = {"images": f"images/{split}", "annotations": f"annotations/{split}.json"}
    content["classes"] = classes.name if classes == VOC20 else list(classes.names)
    (out / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return out


def _write_split(
    out: Path,
    split: str,
    count: int,
    rng: np.random.Generator,
    classes: ClassList,
    size_px: tuple[int, int] | None,
    most: tuple[int, int],
    quality: int,
) -> None:
    import cv2

    folder = out / "images" / split
    folder.mkdir(parents=True)
    (out / "annotations").mkdir(exist_ok=True)
    # Enough objects per image for each class to come up once, within reason.
    least = min(5, max(1, math.ceil(len(classes.names) / count)))
    turns = _class_turns(len(classes.names), rng)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        sides = rng.integers(SIDE_PX[0], SIDE_PX[1] + 1, 2) if size_px is None else size_px
        width, height = (int(side) for side in sides)
        number = max(least, int(rng.integers(most[0], most[1] + 1)))
        picture, objects = _draw(rng, width, height, [next(turns) for _ in range(number)], classes)
        if image_id % CROWD_EVERY == 0:
            objects.append(_draw_crowd(rng, picture, next(turns), classes))
        file_name = f"{image_id:012d}.jpg"
        settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
        encoded = cv2.imencode(".jpg", picture[:, :, ::-1], settings)[1]
        (folder / file_name).write_bytes(encoded.tobytes())
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for entry in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes.names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = out / "annotations" / f"{split}.json"
    path.write_text(json.dumps(content), encoding="utf-8")


def _class_turns(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield class indices: every class once in random order, again and again."""
    return itertools.chain.from_iterable(rng.permutation(count).tolist() for _ in itertools.count())


def _draw(
    rng: np.random.Generator, width: int, height: int, indices: Sequence[int], classes: ClassList
) -> tuple[Picture, list[dict[str, Any]]]:
    picture = _background(rng, width, height)
    short = min(width, height)
    objects: list[dict[str, Any]] = []
    taken: list[tuple[float, float, float, float]] = []
    largest = 0.36 if len(indices) <= 3 else 0.24
    for index in indices:
        for attempt in range(12):
            radius = float(rng.uniform(0.12, largest)) * short * 0.93**attempt
            centre = rng.uniform(radius, np.array([width, height]) - radius)
            points = _outline(index, centre, radius, rng)
            box = (*points.min(axis=0), *points.max(axis=0))
            if all(_overlap(box, other) < 0.15 for other in taken):
                break
        taken.append(box)
        mask = _paint(picture, points, index, len(classes.names), rng)
        polygon = [round(float(v), 2) for v in points.ravel()]
        x1, y1, x2, y2 = (round(float(v), 2) for v in box)
        objects.append(
            {
                "category_id": index + 1,
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": [polygon],
            }
        )
    return picture, objects


def _draw_crowd(
    rng: np.random.Generator, picture: Picture, index: int, classes: ClassList
) -> dict[str, Any]:
    """Paint a band of small objects and return its annotation, an uncompressed RLE."""
    height, width = picture.shape[:2]
    radius = min(width, height) * 0.05
    y = float(rng.uniform(0.1, 0.9)) * (height - 2 * radius) + radius
    inside = np.zeros((height, width), bool)
    for x in np.arange(radius, width * 0.5, 1.8 * radius):
        points = _outline(index, np.array([x, y]), radius, rng)
        inside |= _paint(picture, points, index, len(classes.names), rng)
    rows, columns = np.nonzero(inside)
    x1, y1 = int(columns.min()), int(rows.min())
    return {
        "category_id": index + 1,
        "bbox": [x1, y1, int(columns.max()) + 1 - x1, int(rows.max()) + 1 - y1],
        "area": int(inside.sum()),
        "iscrowd": 1,
        "segmentation": {"size": [height, width], "counts": run_lengths(inside)},
    }


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed RLE of a mask: runs down the columns, the first one of zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    changes = np.nonzero(flat[1:] != flat[:-1])[0]
    return [int(run) for run in np.diff(np.concatenate([[0], changes]))]


def _background(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Grey-brown blotches of two scales and fine noise."""
    import cv2

    base = rng.integers(70, 150)
    total = np.full((height, width, 3), base, np.int16)
    for cells, strength in ((5, 45), (24, 20)):
        coarse = rng.integers(0, 2 * strength, (cells, cells, 1), dtype=np.uint8)
        grown = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        total += grown[:, :, None].astype(np.int16) - strength
    total += np.array([8, 3, -6], np.int16)
    total += rng.integers(-8, 9, (height, width, 1), dtype=np.int16)
    return np.clip(total, 0, 255).astype(np.uint8)


def _outline(index: int, centre: Points, radius: float, rng: np.random.Generator) -> Points:
    """Return the corners of a class's shape, float ``[P, 2]``, turned and stretched a little."""
    shares = np.array(SHAPES[index % len(SHAPES)])
    angles = np.arange(len(shares)) * (2 * math.pi / len(shares)) + rng.uniform(-0.3, 0.3)
    stretch = np.array([1.0, rng.uniform(0.7, 1.0)])
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Hundredths of a pixel, as in COCO's files: what is painted is what is written.
    points: Points = np.round(centre + radius * shares[:, None] * directions * stretch, 2)
    return points


def _paint(
    picture: Picture, points: Points, index: int, count: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Fill an outline with its class's hue and texture; return the pixels that it covers."""
    from pycocotools import mask as coco_mask

    height, width = picture.shape[:2]
    encoded = coco_mask.frPyObjects([points.ravel().tolist()], height, width)
    inside = decode(encoded[0])
    colour, second = _colours(index, count)
    shade = int(rng.integers(-18, 19))
    rows, columns = np.nonzero(inside)
    pattern = _pattern(TEXTURES[index % len(TEXTURES)], rows, columns)
    values = np.where(pattern[:, None], colour, second).astype(np.int16) + shade
    values += rng.integers(-6, 7, (len(rows), 1), dtype=np.int16)
    picture[rows, columns] = np.clip(values, 0, 255).astype(np.uint8)
    return inside


def _colours(index: int, count: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    hue = index / count
    saturation = (0.95, 0.6)[index % 2]
    bright = colorsys.hsv_to_rgb(hue, saturation, 0.95)
    dark = colorsys.hsv_to_rgb(hue, saturation, 0.5)
    first, second = (np.array([round(255 * v) for v in c], np.int16) for c in (bright, dark))
    return first, second


def _pattern(
    kind: str, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    pattern = np.ones(rows.shape, bool)
    if kind == "stripes":
        pattern = (rows + columns) // 7 % 2 == 0
    elif kind == "checks":
        pattern = (rows // 9 + columns // 9) % 2 == 0
    elif kind == "dots":
        pattern = (rows % 12 - 6) ** 2 + (columns % 12 - 6) ** 2 > 12
    return pattern


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Shared area of two boxes as a share of the smaller one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / min(areas)
