"""The contact sheet of a packed data set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sharedenc.data.packed import PackedDataset
from sharedenc.data.show import contact_sheet, write_png
from sharedenc.errors import DataError
from sharedenc.spec import Recipe

RECIPE = Recipe(image_px=64)


def test_a_sheet_shows_each_picture_beside_its_truth(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    out = contact_sheet(tiny_pack, "test", tmp_path / "new" / "a.png", count=4, recipe=RECIPE)
    sheet = cv2.imread(str(out))
    cell = 2 * 64 + 4
    assert sheet.shape == (4 * cell + 4, 2 * cell + 4, 3) or sheet.shape == (
        2 * cell + 4,
        4 * cell + 4,
        3,
    )
    left, right = sheet[4 : 4 + 128, 4 : 4 + 128], sheet[4 : 4 + 128, 4 + cell : 4 + cell + 128]
    differs = (left != right).any(axis=2).mean()
    assert 0.02 < differs < 1.0
    assert [path.name for path in out.parent.iterdir()] == ["a.png"]


def test_the_seed_chooses_and_augmentation_shows(tiny_pack: PackedDataset, tmp_path: Path) -> None:
    def sheet(name: str, **options: bool | int) -> np.ndarray:
        out = tmp_path / f"{name}.png"
        contact_sheet(tiny_pack, "train", out, 3, recipe=RECIPE, **options)  # type: ignore[arg-type]
        return np.asarray(cv2.imread(str(out)))

    plain = sheet("plain")
    assert (plain == sheet("again")).all()
    assert (plain != sheet("other", seed=1)).any()
    assert (plain != sheet("augmented", augmented=True)).any()


def test_nothing_to_show_and_an_unwritable_place_are_named(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="nothing to show: 6 images in 'test', 0 asked"):
        contact_sheet(tiny_pack, "test", tmp_path / "a.png", count=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_png(tmp_path / "file" / "a.png", np.zeros((4, 4, 3), np.uint8))
