"""Pascal VOC folders, written here in the official layout."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sharedenc.data.classes import ClassList
from sharedenc.data.dataset import DataRules, open_source
from sharedenc.data.packed import prepare
from sharedenc.errors import DataError
from tests.data.small_sets import SIZE, write_jpeg

Box = tuple[str, int, int, int, int, int]  # name, difficult, xmin, ymin, xmax, ymax (1-based)
DOG: Box = ("dog", 0, 1, 1, 20, 16)


def write_voc(year: Path, lists: dict[str, list[str]], objects: dict[str, list[Box]]) -> None:
    """Write a year's folder; images of an even number have a label map."""
    height, width = SIZE
    for part in ("ImageSets/Main", "Annotations", "JPEGImages", "SegmentationClass"):
        (year / part).mkdir(parents=True)
    for name, entries in lists.items():
        (year / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{e}\n" for e in entries))
    for name in sorted({entry for entries in lists.values() for entry in entries}):
        number = int(name[-6:])
        write_jpeg(year / "JPEGImages" / f"{name}.jpg", number)
        rows = "".join(
            f"<object><name>{n}</name><difficult>{d}</difficult><bndbox><xmin>{x1}</xmin>"
            f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for n, d, x1, y1, x2, y2 in objects.get(name, [DOG])
        )
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        text = f"<annotation>{size}{rows}</annotation>"
        (year / "Annotations" / f"{name}.xml").write_text(text)
        if number % 2 == 0:
            values = np.zeros(SIZE, np.uint8)
            values[0:16, 0:20], values[15, 0:20], values[20:30, 20:30] = 12, 255, 9
            picture = Image.fromarray(values, mode=None).convert("P")
            picture.putdata(values.ravel().tolist())
            picture.save(year / "SegmentationClass" / f"{name}.png")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit"
    names = [f"{i:06d}" for i in range(1, 13)]
    objects: dict[str, list[Box]] = {
        "000001": [DOG, ("person", 1, 30, 5, 64, 48), ("cat", 0, 30, 10, 30, 12)],
    }
    write_voc(root / "VOC2007", {"trainval": names[:10], "test": names[10:]}, objects)
    names = [f"2008_{i:06d}" for i in range(1, 11)]
    lists = {"train": names[:8], "val": names[8:], "trainval": names}
    write_voc(root / "VOC2012", lists, {})
    return root


def test_both_years_train_on_trainval_and_test_on_2007(devkit: Path) -> None:
    source = open_source(devkit)
    ids = {split: [r.image_id for r in source.records(split)] for split in ("train", "val", "test")}
    assert ids["test"] == [11, 12]
    assert sorted(ids["train"] + ids["val"]) == [*range(1, 11), *range(8000001, 8000011)]
    assert (len(ids["train"]), len(ids["val"])) == (19, 1)
    assert len(open_source(devkit.parent).records("test")) == 2


def test_2012_alone_tests_on_its_validation_list(devkit: Path) -> None:
    source = open_source(devkit, years=[2012])
    assert [r.image_id for r in source.records("test")] == [8000009, 8000010]
    assert len(source.records("train")) + len(source.records("val")) == 8
    assert len(open_source(devkit / "VOC2012").records("test")) == 2
    with pytest.raises(DataError, match="has no VOC year 2010; it has 2007, 2012"):
        open_source(devkit, years=[2010])


def test_boxes_are_edges_from_zero_and_difficult_objects_are_crowd(devkit: Path) -> None:
    source = open_source(devkit, DataRules(split_seed=1))
    first = next(r for s in ("train", "val") for r in source.records(s) if r.image_id == 1)
    boxes = [(o.label, o.box, o.crowd) for o in first.objects]
    assert boxes == [
        (12, (0, 0, 20, 16), False),
        (15, (29, 4, 64, 48), True),
        (8, (29, 9, 30, 12), False),
    ]


def test_label_maps_keep_the_border_and_follow_the_class_list(devkit: Path, tmp_path: Path) -> None:
    years = tmp_path / "data.yaml"
    years.write_text(
        f"name: dogs\nvoc: {{folder: '{devkit}', years: [2007]}}\nclasses: [dog, cat]\n"
    )
    pack = prepare(years, cache=tmp_path / "cache", progress=False)
    assert (pack.name, pack.classes.names, pack.tasks) == ("dogs", ("dog", "cat"), ("det", "seg"))
    samples = {s.image_id: s for s in pack.split("test")}
    drawn = samples[12].label_map
    assert drawn is not None
    assert (drawn[3, 3], drawn[15, 3], drawn[25, 25], drawn[40, 40]) == (1, 255, 0, 0)
    without = samples[11].label_map
    assert without is not None
    assert (without == 255).all()
    assert any("have no label map" in warning for warning in pack.warnings)


def test_without_any_label_map_segmentation_is_off(devkit: Path, tmp_path: Path) -> None:
    for path in devkit.glob("VOC*/SegmentationClass/*.png"):
        path.unlink()
    assert prepare(devkit, cache=tmp_path / "cache", progress=False).tasks == ("det",)


def test_merged_and_ignored_classes_in_label_maps(devkit: Path) -> None:
    from sharedenc.data.voc import VocSource

    pets = ClassList("pets", ("pet",))
    source = VocSource(
        devkit, DataRules(), pets, merge={"pet": ["dog", "cat"]}, ignore=["chair"], years=[2007]
    )
    table = source.records("test")[1].label_map_table
    assert table is not None
    assert (table[8], table[12], table[9], table[15], table[255]) == (1, 1, 255, 0, 255)


def test_broken_files_are_named(devkit: Path) -> None:
    path = devkit / "VOC2007" / "Annotations" / "000011.xml"
    text = path.read_text()
    for changed, told in (
        (text.replace("dog", "wolf"), "unknown class 'wolf'"),
        (text.replace("<xmin>1</xmin>", "<xmin>one</xmin>"), "must be a number, not 'one'"),
        (text[:-20], "not valid XML"),
    ):
        path.write_text(changed)
        with pytest.raises(DataError, match=told) as caught:
            open_source(devkit).records("test")
        assert "000011.xml" in str(caught.value)
    (devkit / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").unlink()
    with pytest.raises(DataError, match="lists the images of VOC's trainval set"):
        open_source(devkit).records("train")


def test_a_label_map_of_another_size_is_refused(devkit: Path, tmp_path: Path) -> None:
    path = devkit / "VOC2007" / "SegmentationClass" / "000012.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((5, 5), np.uint8))[1].tobytes())
    with pytest.raises(DataError, match=r"000012.png must be a palette picture of 64x48"):
        prepare(devkit, tmp_path / "cache", DataRules(val_fraction=0.3), progress=False)
