"""A data set of twelve own classes in COCO format; a pixel's colour tells its class."""

from __future__ import annotations

import colorsys
import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import yaml

# In the order of `classes:`; the ids are shuffled, start at 0 and have gaps.
CATEGORY_IDS = {
    "zip tie": 41,
    "apple": 7,
    "wine glass (full)": 0,
    "Käse": 23,
    "bolt M8": 3,
    "left/right arrow": 90,
    "person": 12,
    "crane": 58,
    "traffic cone": 2,
    "no. 9": 77,
    "bus": 5,
    "éclair": 64,
}
NAMES = tuple(CATEGORY_IDS)
GROUND = (90, 90, 90)
WIDTH, HEIGHT = 128, 96
# In each quarter of a picture one box, some pixels in from its borders: x, y, width, height.
QUARTERS = ((6, 6, 44, 32), (72, 8, 40, 36), (10, 54, 48, 34), (70, 56, 46, 30))


def colour(name: str) -> tuple[int, int, int]:
    """RGB of a class: hues 30 degrees apart."""
    rgb = colorsys.hsv_to_rgb(NAMES.index(name) / len(NAMES), 1.0, 0.9)
    red, green, blue = (round(255 * value) for value in rgb)
    return red, green, blue


def class_of(pixel: npt.NDArray[np.uint8]) -> str:
    """The class whose colour is nearest to a pixel's, or `background`."""
    colours = {"background": GROUND, **{name: colour(name) for name in NAMES}}
    away = {name: np.abs(pixel.astype(int) - rgb).sum() for name, rgb in colours.items()}
    return min(away, key=lambda name: away[name])


def write_own_classes(out: Path) -> Path:
    """Draw 12 training, 6 validation and 6 test pictures; returns the `data.yaml`.

    In each split every class comes up. The file's categories are in no order at all.
    """
    turns = itertools.cycle(NAMES)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        (out / split).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            image_id, file_name = 1000 - 7 * number, f"{split} {number}.jpg"
            picture = np.full((HEIGHT, WIDTH, 3), GROUND, np.uint8)
            for x, y, w, h in QUARTERS:
                name = next(turns)
                picture[y : y + h, x : x + w] = colour(name)
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": image_id,
                        "category_id": CATEGORY_IDS[name],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            encoded = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
            (out / split / file_name).write_bytes(encoded.tobytes())
            images.append(
                {"id": image_id, "file_name": file_name, "width": WIDTH, "height": HEIGHT}
            )
        categories = [{"id": CATEGORY_IDS[name], "name": name} for name in sorted(NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (out / f"{split}.json").write_text(json.dumps(content))
    settings: dict[str, Any] = {
        split: {"images": split, "annotations": f"{split}.json"}
        for split in ("train", "val", "test")
    }
    file = out / "data.yaml"
    text = yaml.safe_dump({"name": "workshop", **settings, "classes": list(NAMES)})
    file.write_text(text, encoding="utf-8")
    return file
