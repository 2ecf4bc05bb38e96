"""R2 and R3 on a few drawn pictures: equal answers give a row, unequal ones none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import label_map, sample_path
from benchmarks.photos import DATA_ENV, Photos, photos
from benchmarks.protocol import Unequal
from sharedenc.data.transforms import ModelSample
from tests.data.small_sets import box_object, coco_content, write_set

FIG = 0


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_ENV, raising=False)
    monkeypatch.setattr("benchmarks.photos.SYNTHETIC_IMAGES", (10, 1, 1))


@pytest.fixture(scope="module")
def drawn() -> Iterator[Photos]:
    with photos() as data:
        yield data


def test_label_maps_are_equal_and_make_a_row() -> None:
    (row,) = label_map.run(rounds=1, images=10)
    assert (row["id"], row["unit"], row["rounds"]) == ("R3", "ms/image", 1)
    assert row["case"].startswith("label map of 10 pictures of synthetic pictures (640 x 480, ")
    assert row["check"] == "every pixel the same"
    assert 0 < row["limit"]


def test_one_pixel_makes_label_maps_unequal(monkeypatch: pytest.MonkeyPatch) -> None:
    real = label_map.read

    def off(data: Photos, count: int) -> list[Any]:
        maps = real(data, count)
        maps[-1][0, 0] ^= 1
        return maps

    monkeypatch.setattr(label_map, "read", off)
    with pytest.raises(Unequal):
        label_map.run(rounds=1, images=4)


def test_samples_are_equal_and_make_two_rows_and_one_of_what_is_not_used() -> None:
    jpeg, decoded, scaled = sample_path.run(rounds=1, images=6)
    drawn = "synthetic pictures (640 x 480, quality 95)"
    assert jpeg["case"] == f"sample from JPEG, 6 pictures of {drawn}, 320 px"
    assert scaled["case"].startswith("JPEG at half its scale by DCT, not used, ")
    assert (scaled["unit"], scaled["check"]) == ("ms/image", "pixels to 2/255 on average")
    assert decoded["case"].startswith("sample from decoded pictures, 6 pictures")
    for row in (jpeg, decoded):
        assert (row["id"], row["unit"]) == ("R2", "ms/image")
        assert row["limit"] > 0
    assert decoded["limit"] < jpeg["limit"]


def test_pictures_that_stand_in_for_photos_are_of_their_size(drawn: Photos) -> None:
    split = drawn.pack.split("train")
    assert set(map(tuple, split.sizes().tolist())) == {(640, 480)}
    objects, _ = split.object_counts()
    assert 4 <= sum(objects.values()) / len(split) <= 10
    listed = json.loads(drawn.annotations.read_text())["images"]
    sizes = [(drawn.folder / image["file_name"]).stat().st_size for image in listed]
    # COCO's are 150 KB on average.
    assert 75_000 < np.mean(sizes) < 300_000


def test_half_a_picture_is_near_by_both_ways_and_not_another(drawn: Photos) -> None:
    listed = json.loads(drawn.annotations.read_text())["images"]
    files = [np.fromfile(drawn.folder / image["file_name"], np.uint8) for image in listed]
    one = [sample_path.half_resized(file) for file in files]
    other = [sample_path.half_decoded(file) for file in files]
    assert one[0].shape == (240, 320, 3)
    assert sample_path.near(one, other)
    assert not sample_path.near(one, other[::-1])
    assert not sample_path.near(one, [image[1:] for image in other])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pixels", "pixels differ by"),
        ("labels", "labels"),
        ("boxes", "px off"),
        ("mask", "differ after cropping"),
    ],
)
def test_every_part_of_a_sample_is_compared(
    drawn: Photos, what: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = sample_path.Reference(drawn)
    split = drawn.pack.split("train")
    theirs = [reference.sample(index) for index in range(len(split))]
    assert any(sample.augmentation.flip for sample in theirs)
    assert sample_path.compare(theirs, split)
    real = sample_path.apply_fast

    def changed(*args: Any) -> ModelSample:
        sample = real(*args)
        if what == "pixels":
            sample.image = (sample.image.int() + 3).clamp(0, 255).byte()
        elif what == "labels":
            sample.labels = sample.labels + 1
        elif what == "boxes":
            sample.boxes = sample.boxes + 0.01
        elif sample.mask is not None:
            sample.mask[5, 5] ^= 1
        return sample

    monkeypatch.setattr(sample_path, "apply_fast", changed)
    with pytest.raises(Unequal, match=message):
        sample_path.compare(theirs, split)


def test_label_maps_are_compared_before_cropping_too(drawn: Photos) -> None:
    sample = sample_path.Reference(drawn).sample(0)
    other = dataclasses.replace(sample, label_map=np.roll(sample.label_map, 1))
    with pytest.raises(Unequal, match="differ before cropping"):
        sample_path.compare([other], drawn.pack.split("train"))


def test_the_users_own_pictures_are_read_with_the_packs_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [
        box_object(0, FIG, (4, 5, 20, 16)),
        box_object(2, FIG, (4, 5, 30, 16), iscrowd=1),
        box_object(2, 99, (1, 1, 5, 5)),
    ]
    content = coco_content(3, objects, {0: "fig", 99: "stone"})
    root = write_set(tmp_path / "orchard", {"classes": ["fig"]}, train=content)
    monkeypatch.setenv(DATA_ENV, str(root))
    with photos() as data:
        assert data.name == "orchard"
        assert data.pack.split("train").ids == [0, 2]
        found = json.loads(data.annotations.read_text())
    assert [image["file_name"] for image in found["images"]] == ["0000.jpg", "0002.jpg"]
    kept = [(a["image_id"], a["category_id"], a["iscrowd"]) for a in found["annotations"]]
    assert kept == [(0, 1, 0), (2, 1, 1)]
    assert found["categories"] == [{"id": 1, "name": "fig"}]
