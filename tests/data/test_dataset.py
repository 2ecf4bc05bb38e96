"""Finding the layout, data.yaml, the split rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sharedenc.data.classes import VOC20, ClassList
from sharedenc.data.coco import CocoSource
from sharedenc.data.dataset import DataRules, open_source, slug, split_ids
from sharedenc.errors import DataError, SpecError
from tests.data.small_sets import coco_content, write_set, write_split


def test_the_thesis_counts_come_out_of_the_split_rule() -> None:
    train, val = split_ids(range(95279), DataRules())
    assert (len(train), len(val)) == (90515, 4764)
    assert sorted(train + val) == list(range(95279))


def test_the_split_depends_on_the_set_of_ids_and_the_seed_only() -> None:
    ids = [5, 900, 31, 2, 77, 40, 41, 8, 9, 1]
    rules = DataRules(val_fraction=0.3)
    train, val = split_ids(ids, rules)
    assert (len(train), len(val)) == (7, 3)
    assert (train, val) == split_ids(ids[::-1], rules)
    assert val != split_ids(ids, DataRules(val_fraction=0.3, split_seed=1))[1]
    # RandomState(0) permutes ten things to 2 8 4 9 1 6 7 3 0 5; a change would move every key.
    assert val == [1, 8, 31]


def test_a_split_without_images_is_an_error() -> None:
    with pytest.raises(DataError, match=r"1 training images .* cannot be divided"):
        split_ids([3], DataRules())


def test_validation_can_be_a_fraction_of_training(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", {"val": 0.25}, train=coco_content(8))
    source = open_source(root / "data.yaml")
    train, val = ([r.image_id for r in source.records(s)] for s in ("train", "val"))
    assert (len(train), len(val)) == (6, 2)
    assert sorted(train + val) == list(range(8))


def test_rules_of_the_file_hold_unless_the_caller_brings_others(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", {"rules": {"overlap": "paint_small_last"}})
    assert open_source(root).rules.overlap == "paint_small_last"
    assert open_source(root, DataRules()).rules.overlap == "ignore"
    some = open_source(root, {"split_seed": 3}).rules
    assert some == DataRules(overlap="paint_small_last", split_seed=3)
    classes = ClassList("mine", ("kiwi",))
    assert open_source(root, classes=classes).classes == classes


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"tset": {}}, "Did you mean 'test'"),
        ({"val": None}, "has no `val:`"),
        ({"val": 1.5}, "fraction between 0 and 1"),
        ({"test": "test.json"}, r"`test:` must be \{images: FOLDER, annotations: FILE.json\}"),
        ({"classes": "voc2"}, "Did you mean 'voc20'"),
        ({"classes": ["fig", True]}, "put names in quotes"),
        ({"classes": []}, "empty"),
        ({"classes": ["fig", "fig"]}, "'fig' more than once"),
        ({"ignore": "fig"}, "must be a list of names"),
        ({"merge": ["fig"]}, "`merge:` must be"),
        ({"rules": {"overlapp": "ignore"}}, "Did you mean 'overlap'"),
        ({"rules": {"overlap": "last"}}, "overlap='last' is not one of"),
        ({"rules": {"split_seed": -1}}, "split_seed=-1 must lie between"),
        ({"rules": {"split_seed": True}}, "split_seed=True must be a number"),
    ],
)
def test_a_wrong_data_yaml_says_what_is_wrong(
    tmp_path: Path, more: dict[str, Any], told: str
) -> None:
    root = write_set(tmp_path / "set", more)
    with pytest.raises((DataError, SpecError), match=told):
        open_source(root)


def test_yaml_that_does_not_parse_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("name: [")
    with pytest.raises(DataError, match="not valid YAML"):
        open_source(tmp_path)
    (tmp_path / "data.yaml").write_text("just text")
    with pytest.raises(DataError, match="must hold a mapping"):
        open_source(tmp_path)


def test_an_unknown_folder_is_told_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data set at .*COCO 2017 folder"):
        open_source(tmp_path / "none")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(DataError, match=r"it holds: readme.txt\); give a COCO 2017 folder"):
        open_source(tmp_path)


def test_a_coco_folder_with_other_classes_is_told_about_data_yaml(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for part in ("train2017", "val2017"):
        write_split(tmp_path, part, coco_content(2))
        (tmp_path / f"{part}.json").rename(tmp_path / "annotations" / f"instances_{part}.json")
    source = open_source(tmp_path)
    assert isinstance(source, CocoSource)
    assert source.classes == VOC20
    with pytest.raises(DataError, match=r"lacks the classes .*describe the data in a data\.yaml"):
        source.records("test")
    own = open_source(tmp_path, classes=ClassList("fruit", ("fig",)))
    assert len(own.records("test")) == 1


def test_names_become_safe_for_files_and_models() -> None:
    assert [slug(text) for text in ("My Data/2", "coco_mini", "..")] == [
        "my-data-2",
        "coco_mini",
        "data",
    ]


def test_the_documented_example_has_only_known_keys() -> None:
    import sharedenc.data.dataset as module

    assert module.__doc__ is not None
    example = module.__doc__.split("::\n", 1)[1].split("\nPaths are", 1)[0]
    assert set(yaml.safe_load(example)) <= set(module.YAML_KEYS)
