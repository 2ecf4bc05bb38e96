"""What a data set holds, and for official COCO whether its numbers are the published ones."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from sharedenc.data.classes import VOC20, ClassList, map_categories
from sharedenc.data.coco import OFFICIAL_NAME
from sharedenc.data.dataset import SPLITS, DataRules, read_json
from sharedenc.data.packed import PackedDataset
from sharedenc.data.stats import data_stats
from sharedenc.errors import DataError

# Images per split. Source: thesis, Table 3.2 (95,279 of train2017 divided 95 : 5, and val2017).
TABLE_3_2 = {"train": 90_515, "val": 4_764, "test": 4_031}
LEAST_AREA = 1000.0


def compare_counts(pack: PackedDataset, source: Path) -> dict[str, Any]:
    """Images and objects per split; compared with Table 3.2 where that means the same.

    Keys: ``ok`` (None where nothing is compared), ``reason``, ``splits`` and, when official COCO
    has other numbers, ``rules``: how many images each reading of "contains the classes" gives.
    """
    stats = data_stats(pack)
    result: dict[str, Any] = {
        "ok": None,
        "reason": "",
        "digest": pack.digest,
        "class_list": pack.classes.name,
        "splits": stats["splits"],
        "warnings": pack.warnings,
    }
    if (other := _not_comparable(pack)) is not None:
        result["reason"] = f"not compared with Table 3.2: {other}"
        return result
    found = {split: len(pack.split(split)) for split in SPLITS}
    result["ok"] = found == TABLE_3_2
    if not result["ok"]:
        result["reason"] = "; ".join(
            f"{split} has {count:,} images, Table 3.2 has {TABLE_3_2[split]:,}"
            for split, count in found.items()
            if count != TABLE_3_2[split]
        )
        result["rules"] = _official_rules(source, pack)
    return result


def _not_comparable(pack: PackedDataset) -> str | None:
    if pack.name != OFFICIAL_NAME:
        return f"data set {pack.name!r} is not official COCO 2017"
    if pack.classes != VOC20:
        return f"its class list is {pack.classes.name!r}, not {VOC20.name!r}"
    rules, usual = pack.rules, DataRules()
    if (rules.val_fraction, rules.empty_images) != (usual.val_fraction, usual.empty_images):
        return "its images were divided or chosen by other rules"
    return None


def _official_rules(source: Path, pack: PackedDataset) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for year in ("train2017", "val2017"):
        try:
            annotations = read_json(source / "annotations" / f"instances_{year}.json")
            found[year] = rule_counts(annotations, pack.classes)
        except (DataError, KeyError) as error:
            found[year] = {"error": str(error)}
    return found


def rule_counts(annotations: dict[str, Any], classes: ClassList) -> dict[str, int]:
    """How many images a COCO file has by three readings of "contains the classes".

    ``any``: an object, crowd regions included. ``not_crowd``: one that is no crowd region.
    ``area``: objects of more than 1000 pixels together, as in torchvision's training script.
    Source: methods 2.1, row 17.
    """
    names = {item["id"]: item["name"] for item in annotations["categories"]}
    wanted = map_categories(names, classes)
    single: set[int] = set()
    area: dict[int, float] = defaultdict(float)
    for item in annotations["annotations"]:
        if item["category_id"] in wanted:
            area[item["image_id"]] += item["area"]
            if not item["iscrowd"]:
                single.add(item["image_id"])
    large = sum(total > LEAST_AREA for total in area.values())
    return {"any": len(area), "not_crowd": len(single), "area": large}
