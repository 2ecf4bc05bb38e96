"""COCO-format annotations: pycocotools is the oracle of masks, the files that of counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sharedenc.data.classes import VOC20
from sharedenc.data.dataset import DataRules, Record, SourceObject, open_source
from sharedenc.data.rasterise import label_map, object_mask, rle_runs
from sharedenc.errors import DataError
from tests.data.small_sets import CATEGORIES, SIZE, box_object, coco_content, write_set

PEAR, FIG, KIWI = 7, 0, 31


def record(*objects: SourceObject) -> Record:
    return Record(1, Path("x.jpg"), 12, 10, list(objects))


def rectangle(
    label: int, x1: int, y1: int, x2: int, y2: int, crowd: bool = False, outline: bool = True
) -> SourceObject:
    polygon = [float(v) for v in (x1, y1, x2, y1, x2, y2, x1, y2)]
    area = float((x2 - x1) * (y2 - y1))
    box = (float(x1), float(y1), float(x2), float(y2))
    return SourceObject(label, box, area, crowd, [polygon] if outline else None)


def test_real_photos_have_the_known_counts(shared_data: Path) -> None:
    source = open_source(shared_data / "coco_mini")
    assert source.classes == VOC20
    counts = [len(source.records(split)) for split in ("train", "val", "test")]
    assert counts == [273, 15, 192]  # floor(.95 * 288) of 288 train images
    assert source.has_masks
    assert not source.warnings


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_folder_that_is_only_called_coco2017_is_not_the_published_set(
    shared_data: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "copy" / "coco2017"
    linked.mkdir(parents=True)
    for part in ("annotations", "train2017", "val2017"):
        (linked / part).symlink_to(shared_data / "coco_mini" / part)
    source = open_source(linked)
    for split in ("train", "test"):
        source.records(split)
    assert source.name == "coco2017-part"


def test_real_label_maps_equal_pycocotools_on_every_kind_of_mask(
    shared_data: Path,
) -> None:
    root = shared_data / "coco_mini"
    oracle = COCO(str(root / "annotations" / "instances_val2017.json"))
    source = open_source(root)
    by_name = {
        "airplane": "aeroplane",
        "motorcycle": "motorbike",
        "couch": "sofa",
        "tv": "tv/monitor",
    }
    kinds = set()
    for item in source.records("test")[::4]:
        seen = np.zeros((item.height, item.width), int)
        expected = np.zeros((item.height, item.width), int)
        crowd = np.zeros((item.height, item.width), bool)
        for entry in oracle.loadAnns(oracle.getAnnIds(item.image_id)):
            name = oracle.cats[entry["category_id"]]["name"]
            name = by_name.get(name, name)
            if name in VOC20.names:
                mask = oracle.annToMask(entry).astype(bool)
                seen += mask
                expected[mask] = VOC20.label(name)
                crowd |= mask & bool(entry["iscrowd"])
                kinds.add((type(entry["segmentation"]), entry["iscrowd"], "from_panoptic" in entry))
        expected[(seen > 1) | crowd] = 255
        assert np.array_equal(label_map(item, DataRules()), expected), item.path
    assert len(kinds) == 3


def test_overlaps_become_255_even_within_a_class_or_the_small_object_is_painted_last() -> None:
    item = record(rectangle(1, 1, 1, 4, 4), rectangle(1, 2, 2, 8, 8), rectangle(3, 9, 0, 11, 3))
    drawn = label_map(item, DataRules())
    assert drawn[2, 2] == 255
    assert (drawn[1, 1], drawn[6, 6], drawn[1, 10], drawn[9, 0]) == (1, 1, 3, 0)
    item = record(rectangle(2, 1, 1, 4, 4), rectangle(1, 2, 2, 8, 8))
    assert label_map(item, DataRules(overlap="paint_small_last"))[2, 2] == 2


def test_crowd_ignored_and_boxes_without_outline_are_255() -> None:
    crowd = rectangle(2, 0, 0, 6, 6, crowd=True)
    assert label_map(record(crowd), DataRules())[3, 3] == 255
    assert label_map(record(crowd), DataRules(crowd_seg="class"))[3, 3] == 2
    item = record(rectangle(1, 2, 2, 5, 5), rectangle(0, 4, 4, 8, 8, crowd=True))
    assert [label_map(item, DataRules())[i, i] for i in (3, 4, 7, 9)] == [1, 255, 255, 0]
    item = record(rectangle(1, 2, 2, 5, 5), rectangle(2, 7, 7, 9, 9, outline=False))
    assert [label_map(item, DataRules())[i, i] for i in (3, 7, 8, 9)] == [1, 255, 255, 0]


def test_compressed_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 1.0):
        mask = (rng.random((40, 30)) < density).astype(np.uint8)
        mask[:, 12:20] = mask[0, 0]
        text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
        item = SourceObject(1, (0, 0, 1, 1), 1, False, {"size": [40, 30], "counts": text})
        assert np.array_equal(object_mask(item, Record(1, Path("x"), 30, 40, [])), mask == 1)
        assert sum(rle_runs(text)) == mask.size


@pytest.mark.parametrize("counts", [[5, 200], [130, -10], "_", "04", "0\x7f"])
def test_run_lengths_that_do_not_fill_the_image_are_refused(counts: Any) -> None:
    item = rectangle(1, 0, 0, 2, 2)
    item.segmentation = {"size": [10, 12], "counts": counts}
    with pytest.raises(DataError, match="RLE"):
        object_mask(item, record())


def test_shuffled_ids_from_zero_with_gaps_give_the_labels_of_their_names(tmp_path: Path) -> None:
    other = {3: "kiwi", 0: "pear", 12: "fig"}
    root = write_set(
        tmp_path / "set",
        {"classes": ["kiwi", "fig", "pear"]},
        train=coco_content(3, [box_object(i, c, (1, 1, 9, 9)) for i, c in enumerate((7, 0, 31))]),
        test=coco_content(
            3, [box_object(i, c, (1, 1, 9, 9)) for i, c in enumerate((0, 12, 3))], other
        ),
    )
    source = open_source(root)
    for split in ("train", "test"):
        labels = [item.objects[0].label for item in source.records(split)]
        assert labels == [3, 2, 1]  # pear, fig, kiwi


def test_all_categories_by_rising_id_are_the_default_classes(tmp_path: Path) -> None:
    source = open_source(write_set(tmp_path / "set"))
    assert source.classes.names == ("fig", "pear", "kiwi")
    assert (source.name, source.classes.name) == ("fruit", "fruit")


def test_merged_and_ignored_categories(tmp_path: Path) -> None:
    objects = [box_object(0, FIG, (1, 1, 9, 9)), box_object(0, PEAR, (20, 1, 9, 9))]
    objects += [box_object(1, KIWI, (1, 1, 9, 9)), box_object(1, FIG, (30, 3, 9, 9))]
    more = {"merge": {"soft": ["fig", "pear"]}, "ignore": ["kiwi"]}
    source = open_source(write_set(tmp_path / "set", more, train=coco_content(2, objects)))
    assert source.classes.names == ("soft",)
    first, second = source.records("train")
    assert [(o.label, o.crowd) for o in first.objects] == [(1, False), (1, False)]
    assert [(o.label, o.crowd) for o in second.objects] == [(0, True), (1, False)]


def test_categories_that_differ_between_splits_are_an_error_that_lists_both(tmp_path: Path) -> None:
    test = coco_content(3, categories=CATEGORIES | {31: "plum"})
    source = open_source(write_set(tmp_path / "set", test=test))
    with pytest.raises(DataError, match=r"fig, pear, plum.*fig, kiwi, pear"):
        source.records("test")


def test_an_image_with_only_a_crowd_object_takes_part_and_an_empty_one_does_not(
    tmp_path: Path,
) -> None:
    crowd = {"size": list(SIZE), "counts": [10, 30, SIZE[0] * SIZE[1] - 40]}
    train = coco_content(3, [box_object(1, FIG, (0, 0, 9, 9), iscrowd=1, segmentation=crowd)])
    root = write_set(tmp_path / "set", train=train)
    source = open_source(root)
    assert [item.image_id for item in source.records("train")] == [1]
    assert any("2 images without an object" in warning for warning in source.warnings)
    keep = open_source(root, DataRules(empty_images="keep"))
    assert [item.image_id for item in keep.records("train")] == [0, 1, 2]


def test_boxes_are_clipped_or_dropped_and_counted(tmp_path: Path) -> None:
    height, width = SIZE
    boxes = [(-5, 4, 20, 10), (50, 40, 30, 30), (3, 3, 0, 5), (70, 3, 5, 5), (1, 1, 62, 46.3)]
    train = coco_content(1, [box_object(0, FIG, box) for box in boxes])
    source = open_source(write_set(tmp_path / "set", train=train))
    found = [item.box for item in source.records("train")[0].objects]
    assert found == [(0, 4, 15, 14), (50, 40, width, height), (1, 1, 63, 47.3)]
    told = " ".join(source.warnings)
    assert "2 boxes that leave their image are clipped" in told
    assert "2 boxes of no size or outside of their image are dropped" in told


def change(content: dict[str, Any], where: str, **values: Any) -> dict[str, Any]:
    content[where][0] |= values
    return content


@pytest.mark.parametrize(
    ("where", "values", "told"),
    [
        ("annotations", {"image_id": 99}, "belongs to image_id 99, which the file does not list"),
        ("annotations", {"category_id": 99}, "unknown category_id 99"),
        ("annotations", {"bbox": [1, 2, 3]}, r"bbox must be \[x, y, width, height\]"),
        ("annotations", {"bbox": [1, 2, "3", 4]}, "bbox must be"),
        ("annotations", {"segmentation": {"size": [2, 2], "counts": [4]}}, r"size \[2, 2\]"),
        ("images", {"id": 1}, "id 1: the id is used twice"),
        ("images", {"width": "64"}, "must be pixel counts"),
        ("categories", {"id": 0}, "the id is used twice"),
        ("categories", {"name": "fig"}, "more than one category 'fig'"),
    ],
)
def test_a_wrong_entry_is_an_error_that_names_file_and_entry(
    tmp_path: Path, where: str, values: dict[str, Any], told: str
) -> None:
    root = write_set(tmp_path / "set", test=change(coco_content(3), where, **values))
    with pytest.raises(DataError, match=told) as caught:
        open_source(root).records("test")
    assert "test.json" in str(caught.value)


def test_broken_json_missing_lists_and_empty_splits_are_errors(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "train.json").write_text((root / "train.json").read_text()[:-40])
    with pytest.raises(DataError, match=r"train\.json is not valid JSON"):
        open_source(root).records("train")
    (root / "train.json").write_text("[]")
    with pytest.raises(DataError, match="holds a JSON list"):
        open_source(root).records("train")
    content = coco_content(3)
    del content["annotations"]
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no list 'annotations'"):
        open_source(root).records("train")
    (root / "train.json").write_text(json.dumps(coco_content(0)))
    with pytest.raises(DataError, match="train split is empty"):
        open_source(root).records("train")
    (root / "train.json").write_text(json.dumps(coco_content(2, [])))
    with pytest.raises(DataError, match="none of its 2 images has an object of fig, pear, kiwi"):
        open_source(root).records("train")
    (root / "train.json").unlink()
    with pytest.raises(DataError, match=r"train\.json does not exist"):
        open_source(root).records("train")


def test_degenerate_polygons_are_dropped_and_stray_corners_clamped(tmp_path: Path) -> None:
    far = [0, 0, 1e9, 0, 1e9, 1e9, 0, 1e9]
    objects = [
        box_object(0, FIG, (1, 1, 5, 5), segmentation=[[1, 1, 5, 5], [1, 1, 9, 1, 9, 9]]),
        box_object(0, FIG, (1, 1, 5, 5), segmentation=[far]),
    ]
    source = open_source(write_set(tmp_path / "set", train=coco_content(1, objects)))
    item = source.records("train")[0]
    assert item.objects[0].segmentation == [[1, 1, 9, 1, 9, 9]]
    assert object_mask(item.objects[1], item).all()
    assert len(source.warnings) == 2
