"""Counts against Table 3.2, and what "contains the classes" may mean."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sharedenc.data.classes import VOC20, ClassList
from sharedenc.selftest.counts import TABLE_3_2, compare_counts, rule_counts

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 9, "name": "tv"}, {"id": 11, "name": "spoon"}]


def annotation(image_id: int, category_id: int, area: float, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "area": area, "iscrowd": crowd}


def test_table_3_2_adds_up_as_the_text_says() -> None:
    assert TABLE_3_2["train"] + TABLE_3_2["val"] == 95_279
    assert sum(TABLE_3_2.values()) == 99_310


def test_three_readings_of_an_image_with_the_classes() -> None:
    content = {
        "categories": CATEGORIES,
        "annotations": [
            annotation(1, 3, 600),
            annotation(1, 9, 401),  # 1001 pixels together
            annotation(2, 3, 1000),  # not more than 1000
            annotation(3, 9, 5000, crowd=1),  # crowd only
            annotation(4, 11, 9000),  # another class
        ],
    }
    classes = ClassList("two", ("cat", "tv/monitor"))
    assert rule_counts(content, classes) == {"any": 3, "not_crowd": 2, "area": 2}


def test_other_data_sets_are_counted_and_not_compared(tiny_pack: PackedDataset) -> None:
    found = compare_counts(tiny_pack, Path("nowhere"))
    assert found["ok"] is None
    assert found["reason"] == (
        "not compared with Table 3.2: data set 'synthetic' is not official COCO 2017"
    )
    assert {name: row["images"] for name, row in found["splits"].items()} == {
        "train": 12,
        "val": 6,
        "test": 6,
    }


def test_official_coco_with_other_numbers_fails_and_says_what_each_rule_gives(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    pack = copy.copy(tiny_pack)
    pack.name = "coco2017"
    names = [{"id": number, "name": name} for number, name in enumerate(VOC20.names)]
    content = {"categories": names, "annotations": [annotation(5, 0, 2000)]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    found = compare_counts(pack, tmp_path)
    assert found["ok"] is False
    assert "train has 12 images, Table 3.2 has 90,515" in found["reason"]
    assert found["rules"]["train2017"] == {"any": 1, "not_crowd": 1, "area": 1}
    assert "does not exist" in found["rules"]["val2017"]["error"]


@pytest.mark.parametrize(("split", "count"), [("train", 90_515), ("val", 4_764), ("test", 4_031)])
def test_the_published_numbers_pass(
    tiny_pack: PackedDataset, monkeypatch: pytest.MonkeyPatch, split: str, count: int
) -> None:
    pack = copy.copy(tiny_pack)
    pack.name = "coco2017"
    own = {name: len(pack.split(name)) for name in ("train", "val", "test")}
    monkeypatch.setattr("sharedenc.selftest.counts.TABLE_3_2", own)
    assert TABLE_3_2[split] == count
    assert compare_counts(pack, Path("nowhere"))["ok"] is True
