"""The first pictures of a pack as a pack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sharedenc.data.dataset import Split
from sharedenc.data.packed import prepare
from sharedenc.selftest.slices import write_slice
from tests.data.small_sets import coco_content, write_set

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset


def test_a_slice_holds_the_first_pictures_with_their_objects(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    part = write_slice(tiny_pack, tmp_path / "part", {"train": 5, "val": 2, "test": 99})
    assert [len(part.split(name)) for name in ("train", "val", "test")] == [5, 2, 6]
    assert part.split("train").ids == tiny_pack.split("train").ids[:5]
    for got, whole in zip(part.split("train"), tiny_pack.split("train")[:5], strict=True):
        assert np.array_equal(got.image, whole.image)
        assert np.array_equal(got.boxes, whole.boxes)
        assert got.label_map is not None
        assert whole.label_map is not None
        assert np.array_equal(got.label_map, whole.label_map)
    truth = part.split("val").ground_truth()
    assert truth == tiny_pack.split("val").ground_truth(2)


def test_a_slice_is_never_taken_for_the_whole(tiny_pack: PackedDataset, tmp_path: Path) -> None:
    all_of_it: dict[Split, int] = {"train": 12, "val": 6, "test": 6}
    digests = {
        tiny_pack.digest,
        write_slice(tiny_pack, tmp_path / "all", all_of_it).digest,
        write_slice(tiny_pack, tmp_path / "less", {**all_of_it, "val": 5}).digest,
    }
    assert len(digests) == 3


def test_a_pack_without_masks_gives_a_slice_without_masks(tmp_path: Path) -> None:
    boxes = coco_content(3)
    for item in boxes["annotations"]:
        del item["segmentation"]
    folder = write_set(tmp_path / "boxes", train=boxes, val=boxes, test=boxes)
    pack = prepare(folder, tmp_path / "cache", progress=False)
    assert pack.tasks == ("det",)
    part = write_slice(pack, tmp_path / "part", {"train": 2, "val": 1, "test": 1})
    assert part.tasks == ("det",)
    assert part.split("train")[1].label_map is None
    assert np.array_equal(part.split("train")[1].image, pack.split("train")[1].image)
