"""From a decoded sample to a network's input: crop, resize, flip, colour jitter, blur.

Random numbers are drawn once, in `draw_augmentation`; the fast path here and the torchvision
path in `transforms_reference` both only apply what was drawn, so that one tests the other.
Pixels stay uint8: normalisation happens on the device (`sharedenc.data.batch.normalise`).
Source: thesis, section 3.4; the order and the ranges are torchvision v2's RandomResizedCrop,
RandomHorizontalFlip, ColorJitter and GaussianBlur.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sharedenc.spec import Recipe

if TYPE_CHECKING:
    from sharedenc.data.packed import RawSample

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]
JitterName = Literal["brightness", "contrast", "saturation", "hue"]

CROP_TRIES = 10
NO_PICTURE: Pixels = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Crop:
    """A window of whole pixels in the source image."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Everything random about one sample, already drawn.

    ``jitter`` holds (name, factor) in the order of application: factors of brightness, contrast
    and saturation are multipliers, that of hue a shift in turns. ``blur_sigma`` is in pixels of
    the resized image.
    """

    crop: Crop
    flip: bool = False
    jitter: tuple[tuple[JitterName, float], ...] = ()
    blur_sigma: float | None = None


@dataclass
class ModelSample:
    """One sample at network size S.

    Shapes: ``image`` uint8 ``[3, S, S]`` RGB, ``boxes`` float32 ``[N, 4]`` xyxy in pixels at S,
    ``labels`` int64 ``[N]``, ``mask`` uint8 ``[S, S]`` (0 background, 255 ignored) or None.
    ``size`` is the source's (height, width). N may be 0.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    mask: Tensor | None
    image_id: int
    size: tuple[int, int]


def whole(height: int, width: int) -> Augmentation:
    """The augmentation that changes nothing."""
    return Augmentation(crop=Crop(0, 0, width, height))


def draw_crop(
    rng: np.random.Generator, height: int, width: int, scale_min: float, ratio_max: float
) -> Crop:
    """Draw a window of ``scale_min``..1 of the area and aspect 1/``ratio_max``..``ratio_max``.

    After ten windows that do not fit, the largest centred one within the aspect limits.
    """
    log_ratio = math.log(ratio_max)
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(scale_min, 1.0)
        ratio = math.exp(rng.uniform(-log_ratio, log_ratio))
        crop_w = round(math.sqrt(area * ratio))
        crop_h = round(math.sqrt(area / ratio))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            top = int(rng.integers(0, height - crop_h + 1))
            left = int(rng.integers(0, width - crop_w + 1))
            return Crop(left, top, crop_w, crop_h)
    crop_w = min(width, max(1, round(height * ratio_max)))
    crop_h = min(height, max(1, round(width * ratio_max)))
    return Crop((width - crop_w) // 2, (height - crop_h) // 2, crop_w, crop_h)


def draw_augmentation(
    rng: np.random.Generator, recipe: Recipe, height: int, width: int
) -> Augmentation:
    """Draw crop, flip, jitter (factors and order) and blur for an image of that size."""
    crop = draw_crop(rng, height, width, recipe.crop_scale_min, recipe.crop_ratio_max)
    flip = bool(rng.random() < recipe.flip_p)
    jitter: list[tuple[JitterName, float]] = []
    if rng.random() < recipe.jitter_p:
        amounts: list[tuple[JitterName, float, float]] = [
            ("brightness", recipe.jitter_brightness, 1.0),
            ("contrast", recipe.jitter_contrast, 1.0),
            ("saturation", recipe.jitter_saturation, 1.0),
            ("hue", recipe.jitter_hue, 0.0),
        ]
        for place in rng.permutation(len(amounts)):
            name, amount, centre = amounts[place]
            if amount > 0:
                low = max(0.0, centre - amount) if name != "hue" else -amount
                jitter.append((name, float(rng.uniform(low, centre + amount))))
    sigma: float | None = None
    if rng.random() < recipe.blur_p:
        sigma = float(rng.uniform(recipe.blur_sigma_min, recipe.blur_sigma_max))
    blur = sigma if sigma and recipe.blur_kernel > 1 else None
    return Augmentation(crop=crop, flip=flip, jitter=tuple(jitter), blur_sigma=blur)


def map_boxes(
    boxes: Boxes, augmentation: Augmentation, recipe: Recipe
) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """Move boxes ``[N, 4]`` (xyxy, source pixels) along with the picture.

    Returns:
        The boxes clamped to the crop, in pixels at ``recipe.image_px``, and which of them stay:
        both sides at least ``min_box_px`` and at least ``min_visible`` of the area in the crop.
    """
    crop, px = augmentation.crop, recipe.image_px
    source = np.asarray(boxes, np.float64).reshape(-1, 4)
    size = np.array([crop.width, crop.height] * 2, np.float64)
    inside = np.clip(source - np.array([crop.left, crop.top] * 2), 0.0, size)
    area = np.prod(source[:, 2:] - source[:, :2], axis=1)
    visible = np.prod(inside[:, 2:] - inside[:, :2], axis=1)
    # Multiplied first: what lies on the border of the crop lies exactly on the border at px.
    moved = inside * px / size
    sides = moved[:, 2:] - moved[:, :2]
    keep = (sides >= recipe.min_box_px).all(axis=1) & (sides > 0).all(axis=1)
    keep &= visible >= recipe.min_visible * area
    if augmentation.flip:
        moved[:, [0, 2]] = px - moved[:, [2, 0]]
    return moved.astype(np.float32), keep


def resize(image: Pixels, px: int) -> Pixels:
    """Squash ``[H, W, 3]`` to ``[px, px, 3]``, linear, with antialiasing along axes that shrink.

    The one step that torch does here: on uint8 its kernel takes a fifth of the time of OpenCV's
    INTER_AREA (0.16 against 0.85 ms for 500x430), and is the reference's very filter.
    """
    # In this order the strides say channels_last, also for a batch of one: the kernel then neither
    # transposes what it reads nor what it gives.
    pixels = torch.from_numpy(_owned(image)).unsqueeze(0).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(
        pixels, (px, px), mode="bilinear", antialias=True, align_corners=False
    )
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def adjust_brightness(image: Pixels, factor: float) -> Pixels:
    """Multiply by ``factor`` and clip."""
    return _by_table(image, np.arange(256) * factor)


def adjust_contrast(image: Pixels, factor: float) -> Pixels:
    """Blend with the image's mean grey."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return _by_table(image, np.arange(256) * factor + mean * (1 - factor))


def adjust_saturation(image: Pixels, factor: float) -> Pixels:
    """Blend with the grey version."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # torchvision truncates where OpenCV rounds; just under one half makes the two agree.
    return np.asarray(cv2.addWeighted(image, factor, grey, 1 - factor, -0.499), np.uint8)


def adjust_hue(image: Pixels, turns: float) -> Pixels:
    """Shift the hue by ``turns`` of the colour circle, in 256 steps."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    # The same shift in every third value of whole rows: numpy adds those four times as fast.
    step = np.array([round(turns * 256) % 256, 0, 0], np.uint8)
    rows = hsv.reshape(len(hsv), -1)
    rows += np.tile(step, hsv.shape[1])
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def _by_table(image: Pixels, values: npt.NDArray[Any]) -> Pixels:
    return np.asarray(cv2.LUT(image, np.clip(values, 0, 255).astype(np.uint8)), np.uint8)


JITTER: dict[JitterName, Callable[[Pixels, float], Pixels]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def apply_fast(
    raw: RawSample, augmentation: Augmentation, recipe: Recipe, picture: bool = True
) -> ModelSample:
    """Apply a drawn augmentation on uint8; the crop comes before all pixel work.

    Args:
        picture: Whether the picture is wanted; the sample's ``image`` is ``[3, 0, 0]`` otherwise.
    """
    crop, px = augmentation.crop, recipe.image_px
    rows = slice(crop.top, crop.top + crop.height)
    columns = slice(crop.left, crop.left + crop.width)
    image = NO_PICTURE
    if picture:
        image = _apply_to_picture(raw.image[rows, columns], augmentation, recipe)
    mask: Pixels | None = None
    if raw.label_map is not None:
        # The "exact" rule samples at pixel centres, as the image does; plain INTER_NEAREST is
        # half a pixel off and is not symmetric under a flip.
        way = cv2.INTER_NEAREST_EXACT
        mask = cv2.resize(raw.label_map[rows, columns], (px, px), interpolation=way)
        if augmentation.flip:
            mask = cv2.flip(mask, 1)
    boxes, keep = map_boxes(raw.boxes, augmentation, recipe)
    keep &= ~raw.crowd
    return ModelSample(
        image=torch.from_numpy(_owned(image)).permute(2, 0, 1),
        boxes=torch.from_numpy(boxes[keep]),
        labels=torch.from_numpy(raw.labels[keep].astype(np.int64)),
        mask=None if mask is None else torch.from_numpy(_owned(mask)),
        image_id=raw.image_id,
        size=(raw.image.shape[0], raw.image.shape[1]),
    )


def _apply_to_picture(window: Pixels, augmentation: Augmentation, recipe: Recipe) -> Pixels:
    image = resize(window, recipe.image_px)
    if augmentation.flip:
        image = cv2.flip(image, 1)
    for name, factor in augmentation.jitter:
        image = JITTER[name](image, factor)
    if augmentation.blur_sigma is not None:
        kernel = (recipe.blur_kernel, recipe.blur_kernel)
        image = cv2.GaussianBlur(image, kernel, augmentation.blur_sigma)
    return image


def _owned(pixels: Pixels) -> Pixels:
    """Contiguous and writable, as torch wants it: a pack's memory may be read-only."""
    return np.require(pixels, np.uint8, ["C", "W"])


@dataclass(frozen=True)
class Transform:
    """Applies the recipe to samples; picklable, so that loader workers can hold it.

    Without ``picture`` a sample's ``image`` is ``[3, 0, 0]``, and the rest as always.
    """

    recipe: Recipe
    train: bool

    def __call__(
        self, raw: RawSample, rng: np.random.Generator | None = None, picture: bool = True
    ) -> ModelSample:
        height, width = raw.image.shape[:2]
        if self.train and self.recipe.augment:
            if rng is None:
                raise ValueError("a training transform needs a random generator")
            augmentation = draw_augmentation(rng, self.recipe, height, width)
        else:
            augmentation = whole(height, width)
        if self.recipe.sample_path == "reference":
            from sharedenc.data.transforms_reference import apply_reference

            sample = apply_reference(raw, augmentation, self.recipe)
            return sample if picture else replace(sample, image=sample.image[:, :0, :0])
        return apply_fast(raw, augmentation, self.recipe, picture)


def train_transform(recipe: Recipe) -> Transform:
    """The recipe's random transform; without ``recipe.augment`` the plain one."""
    return Transform(recipe, train=True)


def eval_transform(recipe: Recipe) -> Transform:
    """Squash to ``recipe.image_px``, nothing random. Crowd and tiny boxes are dropped here too:

    these boxes feed the validation loss; scores are computed against the split's ground truth.
    """
    return Transform(recipe, train=False)
