"""A page of pictures can be cut again by its layout, without network or data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sharedenc.data.draw import draw_sample
from sharedenc.data.packed import PackedDataset
from sharedenc.data.transforms import eval_transform
from sharedenc.evaluation.layout import PageLayout, PagePhoto
from sharedenc.evaluation.page import prediction_page
from sharedenc.models.build import build_network
from sharedenc.spec import Cell, Recipe, resolve_numerics

RECIPE = Recipe(image_px=64, batch_size=2, epochs=1)


def page_of(cell: str, pack: PackedDataset, out: Path, count: int = 8) -> tuple[Path, PageLayout]:
    parsed = Cell.parse(cell)
    network = build_network(parsed.backbone, parsed.tasks, pack.classes.num_classes, seed=0)
    numerics = resolve_numerics(RECIPE, parsed.backbone, "cpu", "2.14")
    page, layout = prediction_page(
        network, pack.split("test"), RECIPE, pack.classes, numerics, "cpu", out / "page.png", count
    )
    assert layout == out / "page.json"
    return page, PageLayout.from_json(layout.read_text())


def test_the_truth_that_is_cut_out_is_the_photo_with_its_annotations(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    page, layout = page_of("resnet18/baseline/det", tiny_pack, tmp_path, count=3)
    pixels = cv2.cvtColor(cv2.imread(str(page)), cv2.COLOR_BGR2RGB)
    assert (layout.height, layout.width) == pixels.shape[:2]
    assert (layout.tasks, layout.split) == (("det",), "test")
    split = tiny_pack.split("test")
    samples = [eval_transform(RECIPE)(split[place]) for place in (0, 2, 5)]
    assert [photo.image_id for photo in layout.photos] == [s.image_id for s in samples]
    for photo, sample in zip(layout.photos, samples, strict=True):
        left, top, width, height = photo.truth
        drawn = draw_sample(
            np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()),
            sample.boxes.numpy(),
            sample.labels.numpy(),
            None,
            None,
            tiny_pack.classes,
            zoom=5,
        )
        assert photo.objects == len(sample.boxes) > 0
        assert np.array_equal(pixels[top : top + height, left : left + width], drawn)


def test_pages_of_several_networks_show_the_same_photos(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    cells = ("resnet18/baseline/det", "resnet18/dual")
    (_, one), (_, other) = (
        page_of(cell, tiny_pack, tmp_path / str(place)) for place, cell in enumerate(cells)
    )
    assert other.tasks == ("det", "seg")
    assert one.photos == other.photos
    # Every tile has a place of its own.
    rects = [rect for photo in one.photos for rect in (photo.truth, photo.prediction)]
    assert len({rect[:2] for rect in rects}) == len(rects) == 12


LAYOUT = PageLayout(
    width=100,
    height=50,
    tasks=("seg",),
    split="test",
    photos=(PagePhoto(image_id=7, objects=1, truth=(0, 0, 50, 50), prediction=(50, 0, 50, 50)),),
)


def changed(**values: Any) -> str:
    return json.dumps(json.loads(LAYOUT.to_json()) | values)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"),
        ("[]", "not the layout"),
        (changed(version=2), "version 2"),
        (changed(photos=[{"image_id": 7}]), "not the layout"),
        (changed(width=99), r"\(50, 0, 50, 50\) of photo 7"),
    ],
)
def test_what_is_no_layout_is_refused_with_its_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PageLayout.from_json(text)


def test_a_layout_is_read_as_it_was_written() -> None:
    assert PageLayout.from_json(LAYOUT.to_json()) == LAYOUT
