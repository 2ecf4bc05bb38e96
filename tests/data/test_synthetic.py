"""The drawn data set: seeded, complete, read like any other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sharedenc.data.classes import VOC20, ClassList
from sharedenc.data.packed import PackedDataset
from sharedenc.data.synthetic import divide, run_lengths, write_synthetic
from sharedenc.errors import DataError, SpecError


def files_digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path: Path) -> None:
    one, two, other = (
        files_digest(write_synthetic(tmp_path / name, (3, 2, 2), seed))
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert one == two
    assert not set(one.values()) & set(other.values()) - {one["data.yaml"]}


def test_every_class_is_in_every_split_that_has_room(tiny_pack: PackedDataset) -> None:
    assert (tiny_pack.name, tiny_pack.classes) == ("synthetic", VOC20)
    for split in ("train", "val", "test"):
        objects, _ = tiny_pack.split(split).object_counts()
        assert min(objects.values()) >= 1, split
    assert tiny_pack.warnings == []
    assert tiny_pack.split("train").object_counts()[1] == 1


def test_sizes_differ_and_lie_in_range(tiny_pack: PackedDataset) -> None:
    sizes = tiny_pack.split("train").sizes()
    assert len(np.unique(sizes)) > 6
    assert sizes.min() >= 200
    assert sizes.max() <= 420


def test_boxes_and_areas_are_those_of_the_outlines(
    tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = COCO(str(tiny_dataset / "annotations" / "train.json"))
    for entry in truth.dataset["annotations"]:
        encoded = truth.annToRLE(entry)
        assert coco_mask.area(encoded) == entry["area"]
        assert np.allclose(
            coco_mask.toBbox(encoded), entry["bbox"], atol=3
        )  # a tip can be thinner than a pixel
    assert any(entry["iscrowd"] for entry in truth.dataset["annotations"])


def test_run_lengths_start_with_zeros_and_run_down_the_columns() -> None:
    assert run_lengths(np.array([[0, 1], [0, 0]], bool)) == [2, 1, 1]
    assert run_lengths(np.array([[1, 1], [1, 0]], bool)) == [0, 3, 1]


def test_one_number_is_divided_and_too_few_are_refused() -> None:
    assert divide(112) == (64, 16, 32)
    assert divide(3) == (1, 1, 1)
    assert sum(divide(1000)) == 1000
    with pytest.raises(SpecError, match="too few"):
        divide(2)


def test_other_classes_and_a_used_folder(tmp_path: Path) -> None:
    out = write_synthetic(tmp_path / "set", (1, 1, 1), classes=ClassList("two", ("left", "right")))
    content = json.loads((out / "annotations" / "train.json").read_text())
    assert [entry["name"] for entry in content["categories"]] == ["left", "right"]
    with pytest.raises(DataError, match="not an empty folder"):
        write_synthetic(out)
