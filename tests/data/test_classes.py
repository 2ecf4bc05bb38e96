"""Class lists and how category ids become labels."""

from __future__ import annotations

import pytest

from sharedenc.data.classes import VOC20, ClassList, default_names, map_categories
from sharedenc.errors import DataError

# COCO's own ids of the thesis's Table 3.1, in its order.
TABLE_3_1_COCO_IDS = [5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]
COCO_NAMES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train",
    8: "truck", 9: "boat", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow",
    44: "bottle", 62: "chair", 63: "couch", 64: "potted plant", 67: "dining table", 72: "tv",
}  # fmt: skip
ABC = ClassList("abc", ("a", "b", "c"))


def test_coco_ids_of_voc20_are_those_of_the_published_table() -> None:
    labels = map_categories(COCO_NAMES, VOC20)
    assert [
        key for key, _ in sorted(labels.items(), key=lambda pair: pair[1])
    ] == TABLE_3_1_COCO_IDS
    assert sorted(labels.values()) == list(range(1, VOC20.num_classes))


def test_ids_map_by_name_whatever_their_order_and_gaps() -> None:
    assert map_categories({0: "c", 90: "a", 5: "b"}, ABC) == {90: 1, 5: 2, 0: 3}


def test_categories_that_are_not_asked_for_have_no_label() -> None:
    assert map_categories({1: "a", 2: "b", 3: "c", 4: "d"}, ABC) == {1: 1, 2: 2, 3: 3}


def test_merged_categories_share_a_label_and_ignored_ones_have_none() -> None:
    categories = {1: "car", 2: "van", 3: "dog", 4: "glare"}
    assert default_names(categories, {"car": ["car", "van"]}, ["glare"]) == ("car", "dog")
    labels = map_categories(
        categories, ClassList("x", ("dog", "car")), merge={"car": ["car", "van"]}, ignore=["glare"]
    )
    assert labels == {3: 1, 1: 2, 2: 2, 4: 0}


@pytest.mark.parametrize(
    ("categories", "merge", "ignore", "told"),
    [
        ({1: "a", 2: "b"}, {}, [], "lacks the classes 'c'"),
        ({1: "a", 2: "b", 3: "c"}, {}, ["cc"], "'cc', unknown there"),
        ({1: "a", 2: "b", 3: "c"}, {"a": ["a", "x"]}, [], "'x', unknown there"),
        ({1: "a", 2: "b", 3: "c", 4: "d"}, {"e": ["d"]}, [], "makes 'e'"),
        ({1: "a", 2: "b", 3: "c"}, {}, ["c"], "cannot be a class"),
        ({1: "a", 2: "b", 3: "c", 4: "d"}, {"a": ["a", "d"]}, ["d"], "'d' more than once"),
    ],
)
def test_a_wrong_name_is_an_error_that_lists_both_sides(
    categories: dict[int, str], merge: dict[str, list[str]], ignore: list[str], told: str
) -> None:
    with pytest.raises(DataError, match=told) as caught:
        map_categories(categories, ABC, merge=merge, ignore=ignore, where="x.json")
    assert ", ".join(sorted(categories.values())) in str(caught.value)
    assert "a, b, c" in str(caught.value)


def test_a_doubled_category_is_an_error_that_lists_all() -> None:
    with pytest.raises(DataError, match=r"x.json has more than one category 'a'.*a, a, b, c"):
        map_categories({1: "a", 2: "b", 3: "c", 4: "a"}, ABC, where="x.json")


def test_a_list_is_valid_from_birth_and_survives_json() -> None:
    with pytest.raises(DataError, match="'a' more than once"):
        ClassList("x", ("a", "b", "a"))
    with pytest.raises(DataError, match="empty"):
        ClassList("x", ())
    assert ClassList.from_dict(VOC20.to_dict()) == VOC20
    assert (ABC.label("b"), ABC.num_classes) == (2, 4)
    with pytest.raises(DataError, match=r"not one of a, b, c"):
        ABC.label("d")
