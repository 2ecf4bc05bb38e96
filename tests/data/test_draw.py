"""Drawing: what must change on the picture, and what must not."""

from __future__ import annotations

import numpy as np
import pytest

from sharedenc.data.classes import ClassList
from sharedenc.data.draw import class_colour, draw_sample, grid

CLASSES = ClassList(name="pair", names=("cat", "Fußgänger"))
GREY = np.full((100, 120, 3), 128, np.uint8)


def test_colours_differ_for_as_many_classes_as_a_label_map_holds() -> None:
    colours = np.array([class_colour(label) for label in range(1, 255)], int)
    assert len({tuple(c) for c in colours.tolist()}) == 254
    gaps = np.abs(colours[:20, None] - colours[None, :20]).sum(axis=2) + 999 * np.eye(20)
    assert gaps.min() > 60
    assert class_colour(255) == class_colour(1)


def test_a_box_is_an_outline_and_a_tag_in_its_colour() -> None:
    drawn = draw_sample(GREY, [[40, 50, 100, 90]], [1], [0.87], None, CLASSES)
    assert (GREY == 128).all()
    changed = (drawn != GREY).any(axis=2)
    assert not changed[54:86, 44:96].any()
    assert not changed[92:].any()
    assert changed[50, 40:100].mean() > 0.9
    assert changed[50:90, 99].mean() > 0.9
    fill = (drawn == np.array(class_colour(1))).all(axis=2)
    assert fill[:50, 40:].any()


def test_masks_are_blended_and_background_is_untouched() -> None:
    mask = np.zeros((100, 120), np.uint8)
    mask[20:60, 10:50] = 2
    mask[70:90, 70:110] = 255
    drawn = draw_sample(GREY, [], [], None, mask, CLASSES, zoom=1)
    expected = (128 + np.array(class_colour(2))) / 2
    assert np.abs(drawn[57, 13] - expected).max() <= 1
    mask[30:50] = 1  # the row of the name, which may reach beyond its mask
    assert (drawn[mask == 0] == 128).all()
    hatched = (drawn[70:90, 70:110] != 128).any(axis=2).mean()
    assert 0.3 < hatched < 0.7
    # No box names the class, so its name stands inside its mask, in ink that is not the blend.
    tag = (drawn[20:60, 10:50] == np.array(class_colour(2))).all(axis=2)
    assert tag[8:32, 8:32].any()


def test_zoom_and_empty_input() -> None:
    drawn = draw_sample(GREY, np.zeros((0, 4)), np.zeros(0, int), None, None, CLASSES, zoom=2)
    assert drawn.shape == (200, 240, 3)
    assert (drawn == 128).all()


def test_boxes_at_and_beyond_the_border_are_drawn_without_error() -> None:
    boxes = [[-20, -20, 30, 30], [110, 95, 140, 130], [0, 0, 120, 100], [5, 5, 5, 5]]
    drawn = draw_sample(GREY, boxes, [1, 2, 1, 2], [1, 0.5, 0.1, 0], None, CLASSES)
    assert drawn.shape == GREY.shape


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"label 3 is outside 1\.\.2 of pair"):
        draw_sample(GREY, [[0, 0, 9, 9]], [3], None, None, CLASSES)


def test_a_grid_keeps_every_pixel_of_every_picture() -> None:
    images = [np.full((10 + i, 20, 3), 10 * i, np.uint8) for i in range(1, 6)]
    sheet = grid(images, columns=2, gap=3)
    assert sheet.shape == (3 * 18 + 3, 2 * 23 + 3, 3)
    for i, image in enumerate(images, start=1):
        assert int((sheet == 10 * i).all(axis=2).sum()) == image.shape[0] * image.shape[1]
    with pytest.raises(ValueError, match="at least one"):
        grid([])
