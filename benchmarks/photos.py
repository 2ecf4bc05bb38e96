"""The pictures that data benchmarks read: those of the user, or drawn ones.

``SHAREDENC_BENCH_DATA=DIR`` names a COCO 2017 folder, or one with a ``data.yaml``. Without it a
synthetic set is drawn, of the size, the JPEG quality and about the number of objects that photos
have; rows say which of the two they were measured on.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharedenc.data.dataset import DataRules, open_source
from sharedenc.data.packed import PackedDataset, prepare
from sharedenc.data.synthetic import write_synthetic

DATA_ENV = "SHAREDENC_BENCH_DATA"
SYNTHETIC_IMAGES = (96, 16, 16)
# As most of COCO's are; on average there are seven objects.
SIZE_PX, OBJECTS, QUALITY = (640, 480), (4, 10), 95
DRAWN = f"synthetic pictures ({SIZE_PX[0]} x {SIZE_PX[1]}, quality {QUALITY})"
# As torchvision's references label pixels: crowds count as their class, overlaps are ignored.
RULES = DataRules(crowd_seg="class", overlap="ignore")


@dataclass(frozen=True)
class Photos:
    """One data set in both forms.

    ``pack`` is ours; ``folder`` and ``annotations`` are the training pictures of that pack in
    COCO's form, with its classes only, whose category ids are our labels.
    """

    name: str
    pack: PackedDataset
    folder: Path
    annotations: Path


@contextmanager
def photos() -> Iterator[Photos]:
    """Open the user's data set, or draw one; all that is written is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-data-") as scratch:
        named = os.environ.get(DATA_ENV)
        source = Path(named) if named else draw(Path(scratch) / "set")
        pack = prepare(source, Path(scratch) / "cache", RULES, progress=False)
        folder, annotations = _as_coco(source, pack, Path(scratch) / "train.json")
        name = Path(named).resolve().name if named else DRAWN
        yield Photos(name, pack, folder, annotations)


def draw(folder: Path) -> Path:
    """Draw the pictures that stand in for photos into a new folder."""
    return write_synthetic(
        folder, SYNTHETIC_IMAGES, size_px=SIZE_PX, objects=OBJECTS, quality=QUALITY
    )


def _as_coco(source: Path, pack: PackedDataset, out: Path) -> tuple[Path, Path]:
    """The folder of the training pictures, and an annotation file of what the pack took."""
    records = open_source(source, RULES, pack.classes).records("train")
    names = pack.classes.names
    annotations: list[dict[str, Any]] = []
    for record in records:
        for item in record.objects:
            x1, y1, x2, y2 = item.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": item.label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": item.area,
                    "iscrowd": int(item.crowd),
                    "segmentation": item.segmentation,
                }
            )
    folder = Path(os.path.commonpath([record.path.parent for record in records]))
    images = [
        {
            "id": record.image_id,
            "file_name": str(record.path.relative_to(folder)),
            "width": record.width,
            "height": record.height,
        }
        for record in records
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    out.write_text(json.dumps(content))
    return folder, out
