"""Small data sets on disk, written by hand for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

CATEGORIES = {7: "pear", 0: "fig", 31: "kiwi"}
SIZE = (48, 64)
"""Height and width of every picture."""


def write_jpeg(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, grey: bool = False) -> None:
    """Write a picture of smooth noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (6, 8) if grey else (6, 8, 3)
    coarse = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    picture = cv2.resize(coarse, (size[1], size[0]))
    path.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())


def box_object(
    image_id: int, category_id: int, box: Sequence[float], **more: Any
) -> dict[str, Any]:
    """Return an annotation whose outline is its box, xywh."""
    x, y, w, h = box
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "area": w * h,
        "iscrowd": 0,
        "segmentation": outline,
    } | more


def coco_content(
    count: int,
    annotations: list[dict[str, Any]] | None = None,
    categories: dict[int, str] = CATEGORIES,
) -> dict[str, Any]:
    """Return the content of an annotation file of ``count`` images, by default one object each."""
    height, width = SIZE
    ids = sorted(categories)
    if annotations is None:
        annotations = [
            box_object(i, ids[i % len(ids)], (4 + i % 8, 5, 20, 16)) for i in range(count)
        ]
    return {
        "images": [
            {"id": i, "file_name": f"{i:04d}.jpg", "width": width, "height": height}
            for i in range(count)
        ],
        "annotations": [{"id": n} | a for n, a in enumerate(annotations)],
        "categories": [{"id": key, "name": name} for key, name in categories.items()],
    }


def write_split(root: Path, split: str, content: dict[str, Any], seed: int = 0) -> None:
    """Write one split's pictures and annotations."""
    for image in content["images"]:
        write_jpeg(root / split / image["file_name"], seed + image["id"])
    (root / f"{split}.json").write_text(json.dumps(content))


def write_set(root: Path, more: dict[str, Any] | None = None, **splits: dict[str, Any]) -> Path:
    """Write a data.yaml with its splits (3 images each by default); returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {"name": "fruit"}
    for seed, split in enumerate(("train", "val", "test")):
        write_split(root, split, splits.get(split) or coco_content(3), 100 * seed)
        described[split] = {"images": split, "annotations": f"{split}.json"}
    (root / "data.yaml").write_text(yaml.safe_dump(described | (more or {}), sort_keys=False))
    return root
