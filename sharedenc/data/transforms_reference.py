"""The same sample path as `transforms.apply_fast`, by torchvision v2: slower, and the oracle.

Chosen with ``sample_path="reference"``. Boxes go through torchvision's own box arithmetic too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.ops import box_area
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sharedenc.data.transforms import Augmentation, ModelSample
from sharedenc.spec import Recipe

if TYPE_CHECKING:
    from sharedenc.data.packed import RawSample

_ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def apply_reference(raw: RawSample, augmentation: Augmentation, recipe: Recipe) -> ModelSample:
    """Apply a drawn augmentation with torchvision v2 on uint8 tensors."""
    crop, px = augmentation.crop, recipe.image_px
    window = (crop.top, crop.left, crop.height, crop.width)
    size = [px, px]
    height, width = raw.image.shape[:2]

    image = torch.from_numpy(np.array(raw.image)).permute(2, 0, 1)
    image = F.resized_crop(image, *window, size, antialias=True)
    mask = None
    if raw.label_map is not None:
        mask = tv_tensors.Mask(torch.from_numpy(np.array(raw.label_map)))
        mask = F.resize(F.crop(mask, *window), size, InterpolationMode.NEAREST_EXACT)
    usable = ~torch.from_numpy(np.array(raw.crowd, dtype=bool))
    source = torch.from_numpy(np.array(raw.boxes, dtype=np.float32)).reshape(-1, 4)[usable]
    boxes = tv_tensors.BoundingBoxes(
        source, format="XYXY", canvas_size=(height, width), clamping_mode=None
    )
    boxes = F.clamp_bounding_boxes(F.crop(boxes, *window), clamping_mode="hard")
    visible = box_area(boxes.as_subclass(torch.Tensor))
    boxes = F.resize(boxes, size)
    if augmentation.flip:
        image = F.horizontal_flip(image)
        mask = None if mask is None else F.horizontal_flip(mask)
        boxes = F.horizontal_flip(boxes)
    for name, factor in augmentation.jitter:
        image = _ADJUST[name](image, factor)
    if augmentation.blur_sigma is not None:
        image = F.gaussian_blur(image, [recipe.blur_kernel] * 2, [augmentation.blur_sigma] * 2)

    # Once more: in float32 the resize leaves a border box a hair outside.
    flat = F.clamp_bounding_boxes(boxes, clamping_mode="hard").as_subclass(torch.Tensor)
    sides = flat[:, 2:] - flat[:, :2]
    keep = (sides >= recipe.min_box_px).all(1) & (sides > 0).all(1)
    keep &= visible >= recipe.min_visible * box_area(source)
    labels = torch.from_numpy(np.array(raw.labels, dtype=np.int64))[usable]
    return ModelSample(
        image=image,
        boxes=flat[keep],
        labels=labels[keep],
        mask=None if mask is None else mask.as_subclass(torch.Tensor),
        image_id=raw.image_id,
        size=(height, width),
    )
