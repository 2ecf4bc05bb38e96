"""The fast path against torchvision, and image, boxes and mask kept aligned."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from sharedenc.data.packed import RawSample
from sharedenc.data.transforms import (
    Augmentation,
    Crop,
    adjust_hue,
    apply_fast,
    draw_augmentation,
    draw_crop,
    eval_transform,
    map_boxes,
    resize,
    train_transform,
    whole,
)
from sharedenc.data.transforms_reference import apply_reference
from sharedenc.spec import Recipe

RECIPE = Recipe()
GEOMETRY = Recipe(jitter_p=0.0, blur_p=0.0)


def raw_sample(
    image: np.ndarray,
    boxes: Any = (),
    *,
    label_map: np.ndarray | None = None,
    crowd: Any = None,
) -> RawSample:
    """A sample whose box i has label i + 1."""
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(corners)
    return RawSample(
        image=image,
        label_map=label_map,
        boxes=corners,
        labels=np.arange(1, count + 1, dtype=np.int64),
        crowd=np.zeros(count, bool) if crowd is None else np.asarray(crowd, bool),
        areas=np.prod(corners[:, 2:] - corners[:, :2], axis=1),
        image_id=7,
    )


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """Something like a photo: smooth colours with a few edges and a little noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (9, 9, 3), np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        cv2.circle(image, (x, y), int(rng.integers(10, 60)), colour, -1, cv2.LINE_AA)
    noisy = image + rng.normal(0, 3, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def random_boxes(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (12, 2, 2)) * np.array([width, height])
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def difference(left: torch.Tensor, right: torch.Tensor) -> tuple[float, int]:
    """Mean and largest difference of two uint8 images, in steps of 1/255."""
    gap = (left.int() - right.int()).abs()
    return float(gap.float().mean()), int(gap.max())


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (200, 250), (333, 500), (320, 320)])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_paths_give_the_same_sample_for_the_same_draw(
    size: tuple[int, int], seed: int
) -> None:
    height, width = size
    labels = cv2.resize(photo(9, 9, seed)[..., 0] % 21, (width, height), interpolation=0)
    raw = raw_sample(
        photo(height, width, seed),
        random_boxes(height, width, seed),
        label_map=labels,
        crowd=np.arange(12) % 4 == 0,
    )
    drawn = draw_augmentation(np.random.default_rng(seed), RECIPE, height, width)
    fast, reference = apply_fast(raw, drawn, RECIPE), apply_reference(raw, drawn, RECIPE)
    assert fast.image.shape == reference.image.shape == (3, 320, 320)
    assert difference(fast.image, reference.image)[0] < 1.5
    assert fast.mask is not None
    assert reference.mask is not None
    assert (fast.mask != reference.mask).float().mean() < 0.002
    torch.testing.assert_close(fast.boxes, reference.boxes, atol=1e-3, rtol=0)
    assert fast.labels.tolist() == reference.labels.tolist()
    assert len(fast.labels) > 0
    assert (fast.image_id, fast.size) == (reference.image_id, reference.size) == (7, size)


@pytest.mark.parametrize(
    ("part", "mean", "largest"),
    [
        ({"jitter": (("brightness", 1.17),)}, 0.01, 1),
        ({"jitter": (("contrast", 0.83),)}, 0.5, 1),
        ({"jitter": (("saturation", 1.2),)}, 0.5, 2),
        ({"jitter": (("saturation", 0.8),)}, 0.5, 2),
        ({"jitter": (("hue", 0.09),)}, 1.0, 8),
        ({"jitter": (("hue", -0.1),)}, 1.0, 8),
        ({"blur_sigma": 0.1}, 0.0, 0),
        ({"blur_sigma": 1.7}, 0.1, 1),
        ({"flip": True}, 0.0, 0),
    ],
)
def test_each_step_alone_is_as_torchvision_has_it(
    part: dict[str, Any], mean: float, largest: int
) -> None:
    raw = raw_sample(photo(320, 320, 3))
    drawn = Augmentation(crop=Crop(0, 0, 320, 320), **part)
    fast, reference = apply_fast(raw, drawn, RECIPE), apply_reference(raw, drawn, RECIPE)
    got = difference(fast.image, reference.image)
    assert got[0] <= mean
    assert got[1] <= largest
    if not drawn.flip and drawn.blur_sigma != 0.1:
        assert difference(fast.image, torch.from_numpy(raw.image).permute(2, 0, 1))[0] > 1


def test_shrinking_does_not_alias_in_either_axis() -> None:
    # A one-pixel checkerboard of 0 and 255 must become grey where it is halved.
    for height, width in ((640, 640), (640, 200), (200, 640)):
        board = (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)
        small = resize(np.repeat(board[..., None], 3, axis=2), 320)
        assert small.shape == (320, 320, 3)
        assert np.abs(small.astype(int) - 127).max() < 30


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(120, 520),
    width=st.integers(120, 520),
    corner=st.tuples(st.floats(0, 0.8), st.floats(0, 0.8)),
    extent=st.tuples(st.floats(0.15, 0.9), st.floats(0.15, 0.9)),
    reference=st.booleans(),
)
def test_a_drawn_object_moves_with_its_box_and_its_mask(
    seed: int,
    height: int,
    width: int,
    corner: tuple[float, float],
    extent: tuple[float, float],
    reference: bool,
) -> None:
    left, top = int(corner[0] * width), int(corner[1] * height)
    right = min(width, left + max(12, int(extent[0] * width)))
    bottom = min(height, top + max(12, int(extent[1] * height)))
    image = np.full((height, width, 3), 20, np.uint8)
    label_map = np.zeros((height, width), np.uint8)
    image[top:bottom, left:right] = 230
    label_map[top:bottom, left:right] = 1
    raw = raw_sample(image, [[left, top, right, bottom]], label_map=label_map)
    path = "reference" if reference else "fast"
    recipe = dataclasses.replace(RECIPE, sample_path=path)
    sample = train_transform(recipe)(raw, np.random.default_rng(seed))

    # The jitter's strongest contrast, brightness and blur leave the two greys far apart.
    bright = sample.image.float().mean(dim=0) > 125
    assert sample.mask is not None
    inside = sample.mask == 1
    # A blurred, resampled edge may be off by a pixel or two, on all four sides.
    assert int((bright != inside).sum()) <= 2 * 4 * 320
    edge = 320 - 2
    columns, rows = inside.any(dim=0).nonzero(), inside.any(dim=1).nonzero()
    if len(sample.boxes) == 0:
        # Dropped only if little of it is left: then its pixels are a small part of the object.
        drawn = draw_augmentation(np.random.default_rng(seed), recipe, height, width)
        scale = (320 / drawn.crop.width) * (320 / drawn.crop.height)
        area = (right - left) * (bottom - top) * scale
        assert int(inside.sum()) <= 0.25 * area + 2 * 320
        return
    x1, y1, x2, y2 = sample.boxes[0].tolist()
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.allclose((x1, y1, x2, y2), [float(v) for v in seen], atol=1.5)
    inner = bright[round(y1) + 3 : round(y2) - 3, round(x1) + 3 : round(x2) - 3]
    assert bool(inner.all())
    assert 0 <= x1 < x2 <= 320 + 1e-3
    assert 0 <= y1 < y2 <= 320 + 1e-3
    if x2 < edge and y2 < edge and x1 > 2 and y1 > 2:
        whole_area = (x2 - x1) * (y2 - y1)
        assert int(inside.sum()) == pytest.approx(whole_area, rel=0.1, abs=320)


def test_boxes_are_clamped_and_dropped_by_the_visible_share_and_size() -> None:
    drawn = Augmentation(crop=Crop(100, 0, 200, 200))
    boxes = np.array(
        [
            [60, 10, 120, 60],  # a third inside: stays, clamped
            [20, 10, 119, 60],  # 19 % inside: goes
            [20, 10, 120, 60],  # 20 % inside: goes
            [70, 10, 110, 60],  # exactly a quarter inside: stays
            [150, 50, 150.5, 90],  # 0.8 px wide at 320: goes
            [150, 50, 150.7, 90],  # 1.12 px: stays
            [10, 10, 100, 60],  # touches the border only: goes
            [120, 120, 120, 150],  # no width at all: goes
        ],
        np.float32,
    )
    moved, keep = map_boxes(boxes, drawn, RECIPE)
    assert keep.tolist() == [True, False, False, True, False, True, False, False]
    np.testing.assert_allclose(moved[0], [0, 16, 32, 96])
    flipped, _ = map_boxes(boxes, dataclasses.replace(drawn, flip=True), RECIPE)
    np.testing.assert_allclose(flipped[0], [288, 16, 320, 96])


@pytest.mark.parametrize("path", ["fast", "reference"])
def test_crowds_are_no_training_boxes_and_images_without_boxes_stay(path: Any) -> None:
    recipe = Recipe(sample_path=path)
    raw = raw_sample(photo(100, 120, 0), [[5, 5, 60, 60], [5, 5, 90, 90]], crowd=[False, True])
    assert eval_transform(recipe)(raw).labels.tolist() == [1]
    empty = train_transform(recipe)(raw_sample(photo(90, 70, 0)), np.random.default_rng(0))
    assert empty.boxes.shape == (0, 4)
    assert (empty.boxes.dtype, empty.labels.dtype) == (torch.float32, torch.int64)
    assert empty.mask is None


def test_evaluation_squashes_the_whole_picture() -> None:
    label_map = np.zeros((200, 400), np.uint8)
    label_map[:, 300:] = 255
    raw = raw_sample(photo(200, 400, 1), [[100, 50, 300, 150]], label_map=label_map)
    sample = eval_transform(RECIPE)(raw)
    assert sample.boxes.tolist() == [[80, 80, 240, 240]]
    assert sample.mask is not None
    assert sample.mask[0].tolist() == [0] * 240 + [255] * 80
    same = train_transform(Recipe(augment=False))(raw, np.random.default_rng(3))
    assert same.image.equal(sample.image)


def test_a_read_only_picture_of_network_size_is_copied() -> None:
    image = photo(320, 320, 2)
    kept = image.copy()
    image.flags.writeable = False
    sample = eval_transform(RECIPE)(raw_sample(image))
    sample.image.zero_()
    np.testing.assert_array_equal(image, kept)


def test_crops_follow_the_rule_of_random_resized_crop() -> None:
    rng = np.random.default_rng(0)
    crops = [draw_crop(rng, 300, 400, 0.5, 4 / 3) for _ in range(3000)]
    shares = np.array([c.width * c.height for c in crops]) / (300 * 400)
    ratios = np.array([c.width / c.height for c in crops])
    assert all(0 <= c.left <= 400 - c.width and 0 <= c.top <= 300 - c.height for c in crops)
    assert 0.49 < shares.min() < 0.53
    assert 0.95 < shares.max() <= 1.0
    assert 0.74 < ratios.min() < 0.78
    assert 1.29 < ratios.max() < 1.35
    # The same distribution as torchvision's, by its first two moments.
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(320, scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3))
    picture = [torch.zeros(3, 300, 400, dtype=torch.uint8)]
    drawn = [theirs.make_params(picture) for _ in range(3000)]
    for ours, name in (("left", "left"), ("top", "top"), ("width", "width"), ("height", "height")):
        mine = np.array([getattr(crop, ours) for crop in crops], float)
        other = np.array([params[name] for params in drawn], float)
        assert abs(mine.mean() - other.mean()) < 4
        assert abs(mine.std() - other.std()) < 4


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 1000, Crop(493, 0, 13, 10)), (1000, 12, Crop(0, 492, 12, 16)), (1, 1, Crop(0, 0, 1, 1))],
)
def test_very_long_pictures_get_the_largest_centred_window(
    height: int, width: int, expected: Crop
) -> None:
    assert draw_crop(np.random.default_rng(0), height, width, 0.5, 4 / 3) == expected


def test_draws_stay_in_their_ranges_and_take_every_order() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_augmentation(rng, RECIPE, 300, 400) for _ in range(600)]
    factors = {name: [dict(d.jitter)[name] for d in draws] for name, _ in draws[0].jitter}
    for name in ("brightness", "contrast", "saturation"):
        assert 0.8 <= min(factors[name]) < 0.82
        assert 1.18 < max(factors[name]) <= 1.2
    assert -0.1 <= min(factors["hue"]) < -0.09
    assert 0.09 < max(factors["hue"]) <= 0.1
    assert len({tuple(name for name, _ in d.jitter) for d in draws}) == 24
    assert 0.4 < np.mean([d.flip for d in draws]) < 0.6
    sigmas = [d.blur_sigma for d in draws if d.blur_sigma is not None]
    assert len(sigmas) == 600
    assert 0.1 <= min(sigmas) < 0.2
    assert 1.9 < max(sigmas) <= 2.0


def test_switched_off_steps_are_not_drawn() -> None:
    off = Recipe(
        crop_scale_min=1.0, crop_ratio_max=1.0, flip_p=0, jitter_hue=0, jitter_contrast=0, blur_p=0
    )
    drawn = draw_augmentation(np.random.default_rng(0), off, 300, 300)
    assert {name for name, _ in drawn.jitter} == {"brightness", "saturation"}
    plain = draw_augmentation(np.random.default_rng(0), dataclasses.replace(off, jitter_p=0), 9, 9)
    assert plain == whole(9, 9)


def test_a_transform_travels_to_workers_and_needs_its_generator() -> None:
    transform = pickle.loads(pickle.dumps(train_transform(RECIPE)))
    raw = raw_sample(photo(200, 300, 4))
    first = transform(raw, np.random.default_rng(1))
    assert first.image.equal(train_transform(RECIPE)(raw, np.random.default_rng(1)).image)
    assert not first.image.equal(transform(raw, np.random.default_rng(2)).image)
    with pytest.raises(ValueError, match="random generator"):
        transform(raw)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    px=st.sampled_from([32, 64, 320]),
)
def test_resizing_gives_torchvisions_very_bits(seed: int, height: int, width: int, px: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    expected = v2.functional.resize(planes, [px, px], antialias=True)
    assert torch.from_numpy(resize(image, px)).permute(2, 0, 1).equal(expected)


@pytest.mark.parametrize("turns", [-0.1, -0.001, 0.0, 0.05, 0.5])
def test_a_hue_is_shifted_in_the_first_channel_alone_and_wraps(turns: float) -> None:
    image = photo(33, 47, 5)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] = (hsv[..., 0].astype(int) + round(turns * 256)) % 256
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    np.testing.assert_array_equal(adjust_hue(image, turns), expected)
