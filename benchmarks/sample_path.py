"""R2: one training sample from the pack against torchvision's data set and transforms.

The reference is what a script in torchvision's style does in every epoch: `CocoDetection` in
`wrap_dataset_for_transforms_v2` opens the JPEG and draws a mask per object, the masks are merged to
a label map, and v2 transforms crop, flip, jitter and blur a PIL picture (the references' default,
and the faster of v2's two backends here). It ends, as ours does, with uint8 pixels, boxes and a
label map; what it draws at random is noted, and ours at the same draws is compared with it.

CPU time per picture of one thread. The limits: the JPEG decoder alone; and, where the pack has
decoded pictures, a copy of the picture.

A further row has what we do not do: to decode at half the scale, which leaves out most of the
inverse DCT and all of a resize, but none of the entropy decoding.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from benchmarks.photos import Photos, photos
from benchmarks.protocol import Side, Unequal, interleaved, result, timed
from sharedenc.data.decoded import decode_pack
from sharedenc.data.packed import PackedDataset, PackedSplit
from sharedenc.data.transforms import (
    Augmentation,
    Crop,
    JitterName,
    ModelSample,
    apply_fast,
    train_transform,
)
from sharedenc.spec import Recipe

IMAGES = 48
IGNORE = 255
JITTER: tuple[JitterName, ...] = ("brightness", "contrast", "saturation", "hue")
# A box stays while a pixel of it is left, which is all that v2's SanitizeBoundingBoxes can ask.
RECIPE = Recipe(min_visible=0.0)
MEAN_PIXEL = 1.0
HALF_PIXEL = 2.0
BOX_PX = 1e-3
BORDER_PX = 0.01


@dataclass(frozen=True)
class Drawn:
    """One sample of the reference, what it drew, and its label map before cropping."""

    image: torch.Tensor
    boxes: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    augmentation: Augmentation
    label_map: npt.NDArray[np.uint8]


def run(rounds: int, images: int = IMAGES) -> list[dict[str, Any]]:
    """Three rows: pictures decoded from JPEG, and read as pixels; JPEGs at half their scale."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with photos() as data:
        reference = Reference(data)
        count = min(images, len(data.pack.split("train")))
        rows = [_row("from JPEG", data.name, reference, data.pack, count, rounds)]
        scaled = _scaled_row(data, count, rounds)
        decode_pack(data.pack, shown=False)
        decoded = PackedDataset.open(data.pack.root)
        rows.append(_row("from decoded pictures", data.name, reference, decoded, count, rounds))
    return [*rows, scaled]


def _row(
    source: str, name: str, reference: Reference, pack: PackedDataset, count: int, rounds: int
) -> dict[str, Any]:
    split = pack.split("train")
    duel = interleaved(
        lambda: _per_image(lambda: [reference.sample(i) for i in range(count)], count),
        lambda: _per_image(lambda: _ours(split, count), count),
        rounds,
        same=lambda theirs, _: compare(theirs, split),
    )
    # Of what is mapped nothing but the picture: a whole sample has its label map drawn too.
    alone = split.decode if source == "from JPEG" else lambda index: split._decoded(index).copy()
    limit = min(
        _per_image(lambda: [alone(i) for i in range(count)], count).figure
        for _ in range(max(rounds, 5))
    )
    return result(
        "R2",
        f"sample {source}, {count} pictures of {name}, {RECIPE.image_px} px",
        duel,
        unit="ms/image",
        check=f"labels and label map exact, boxes to {BOX_PX:g} px, pixels to {MEAN_PIXEL:g}/255",
        limit=limit,
    )


def _scaled_row(data: Photos, count: int, rounds: int) -> dict[str, Any]:
    """Half the size in each direction: by the decoder, against all of it and a resize."""
    listed = json.loads(data.annotations.read_text())["images"][:count]
    files = [
        np.frombuffer((data.folder / image["file_name"]).read_bytes(), np.uint8) for image in listed
    ]
    duel = interleaved(
        lambda: _per_image(lambda: [half_resized(file) for file in files], count),
        lambda: _per_image(lambda: [half_decoded(file) for file in files], count),
        rounds,
        same=near,
    )
    return result(
        "R2",
        f"JPEG at half its scale by DCT, not used, against decoding and resizing, {count} pictures "
        f"of {data.name}",
        duel,
        unit="ms/image",
        check=f"pixels to {HALF_PIXEL:g}/255 on average",
    )


def half_resized(file: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Decode a JPEG and resize it to half its size."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image: Any = cv2.imdecode(file, flags)
    height, width = image.shape[:2]
    size = ((width + 1) // 2, (height + 1) // 2)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def half_decoded(file: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Decode a JPEG at half its size."""
    flags = cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION
    image: Any = cv2.imdecode(file, flags)
    return np.asarray(image)


def near(theirs: list[npt.NDArray[Any]], ours: list[npt.NDArray[Any]]) -> bool:
    """Whether pictures are of equal sizes and, on average, of nearly equal pixels."""
    gaps = [
        float(np.abs(one.astype(np.int16) - other).mean()) if one.shape == other.shape else np.inf
        for one, other in zip(theirs, ours, strict=True)
    ]
    return bool(np.mean(gaps) <= HALF_PIXEL)


def _per_image(work: Callable[[], Any], count: int) -> Side:
    side = timed(work)
    return Side(1000 * side.figure / count, side.answer)


def _ours(split: PackedSplit, count: int) -> list[ModelSample]:
    transform = train_transform(RECIPE)
    return [transform(split[i], np.random.default_rng((0, i))) for i in range(count)]


class Reference:
    """torchvision's data set and transforms; notes what they draw."""

    def __init__(self, data: Photos) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            coco = CocoDetection(data.folder, str(data.annotations))
        keys = ("boxes", "labels", "masks", "iscrowd")
        self._set = wrap_dataset_for_transforms_v2(coco, target_keys=keys)
        self._crop = _Crop(
            (RECIPE.image_px, RECIPE.image_px),
            scale=(RECIPE.crop_scale_min, 1.0),
            ratio=(1 / RECIPE.crop_ratio_max, RECIPE.crop_ratio_max),
        )
        self._flip = _Flip(RECIPE.flip_p)
        self._jitter = _Jitter(*(getattr(RECIPE, f"jitter_{name}") for name in JITTER))
        self._blur = _Blur(RECIPE.blur_kernel, (RECIPE.blur_sigma_min, RECIPE.blur_sigma_max))
        self._transforms = v2.Compose(
            [
                self._crop,
                self._flip,
                self._jitter,
                self._blur,
                v2.PILToTensor(),
                v2.ClampBoundingBoxes(),
                v2.SanitizeBoundingBoxes(
                    min_size=RECIPE.min_box_px, labels_getter=lambda inputs: inputs[1]["labels"]
                ),
            ]
        )

    def sample(self, index: int) -> Drawn:
        """One sample, as training would get it."""
        image, target = self._set[index]
        label_map = _merged(target["masks"], target["labels"])
        single = torch.tensor([not crowd for crowd in target["iscrowd"]], dtype=torch.bool)
        objects = {
            "boxes": tv_tensors.wrap(target["boxes"][single], like=target["boxes"]),
            "labels": target["labels"][single],
            "mask": tv_tensors.Mask(label_map),
        }
        self._flip.done = False
        pixels, found = self._transforms(image, objects)
        drawn = Augmentation(
            crop=self._crop.drawn,
            flip=self._flip.done,
            jitter=self._jitter.drawn,
            blur_sigma=self._blur.drawn,
        )
        return Drawn(
            pixels, found["boxes"], found["labels"], found["mask"], drawn, label_map.numpy()
        )


def _merged(masks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One label map of all masks, ``[H, W]``: overlaps become 255."""
    label_map, _ = (masks * labels[:, None, None]).max(dim=0)
    label_map[masks.sum(dim=0) > 1] = IGNORE
    return label_map.to(torch.uint8)


class _Crop(v2.RandomResizedCrop):  # type: ignore[misc]  # torchvision has no types
    drawn: Crop

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params: dict[str, Any] = super().make_params(flat_inputs)
        self.drawn = Crop(params["left"], params["top"], params["width"], params["height"])
        return params


class _Flip(v2.RandomHorizontalFlip):  # type: ignore[misc]
    done: bool

    def transform(self, value: Any, params: dict[str, Any]) -> Any:
        self.done = True
        return super().transform(value, params)


class _Jitter(v2.ColorJitter):  # type: ignore[misc]
    drawn: tuple[tuple[JitterName, float], ...]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params: dict[str, Any] = super().make_params(flat_inputs)
        order = [JITTER[int(place)] for place in params["fn_idx"]]
        self.drawn = tuple((name, float(params[f"{name}_factor"])) for name in order)
        return params


class _Blur(v2.GaussianBlur):  # type: ignore[misc]
    drawn: float

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params: dict[str, Any] = super().make_params(flat_inputs)
        self.drawn = float(params["sigma"][0])
        return params


def compare(theirs: list[Drawn], split: PackedSplit) -> bool:
    """Whether ours, at the same draws, gives the same samples.

    Raises:
        Unequal: not; it says in which picture and by how much.
    """
    gaps = []
    for index, sample in enumerate(theirs):
        raw = split[index]
        ours = apply_fast(raw, sample.augmentation, RECIPE)
        where = f"image {raw.image_id}"
        gaps.append(float((ours.image.int() - sample.image.int()).abs().float().mean()))
        if ours.labels.tolist() != sample.labels.tolist():
            raise Unequal(f"{where}: labels {sample.labels.tolist()}, ours {ours.labels.tolist()}")
        far = float((ours.boxes - sample.boxes).abs().max()) if len(ours.boxes) else 0.0
        if far > BOX_PX:
            raise Unequal(f"{where}: a box is {far} px off")
        if raw.label_map is None or not np.array_equal(raw.label_map, sample.label_map):
            raise Unequal(f"{where}: the label maps differ before cropping")
        if ours.mask is None or not _at_centres(sample, ours.mask.numpy()):
            raise Unequal(f"{where}: the label maps differ after cropping")
    if np.mean(gaps) > MEAN_PIXEL:
        raise Unequal(f"pixels differ by {np.mean(gaps):.3f} of 255 on average")
    return True


def _at_centres(sample: Drawn, mask: npt.NDArray[np.uint8]) -> bool:
    """Whether a mask is the reference's label map at the centres of the network's pixels.

    That is our recipe's rule; v2 takes the pixel at the upper left of a cell instead, which moves
    when the picture is flipped. A centre on the border of two pixels may be either's.
    """
    crop, px = sample.augmentation.crop, RECIPE.image_px
    equal = np.zeros(mask.shape, bool)
    for down, right in itertools.product((-BORDER_PX, BORDER_PX), repeat=2):
        rows = _cells(crop.height, px, down) + crop.top
        columns = _cells(crop.width, px, right) + crop.left
        found = sample.label_map[np.ix_(rows, columns)]
        equal |= (found[:, ::-1] if sample.augmentation.flip else found) == mask
    return bool(equal.all())


def _cells(size: int, px: int, nudge: float) -> npt.NDArray[np.int64]:
    cells = np.floor((np.arange(px) + 0.5) * size / px + nudge).astype(np.int64)
    return cells.clip(0, size - 1)
