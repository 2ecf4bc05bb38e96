"""A page of pictures: the truth on the left, what a network predicts on the right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import torch

from sharedenc.data.classes import ClassList
from sharedenc.data.draw import draw_sample, grid, grid_places
from sharedenc.data.transforms import ModelSample, eval_transform
from sharedenc.evaluation.layout import PageLayout, PagePhoto, Rect
from sharedenc.models.boxes import postprocess
from sharedenc.models.network import Network
from sharedenc.spec import Numerics, Recipe
from sharedenc.training.numerics import forward

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedSplit

Pixels = npt.NDArray[np.uint8]
SHOWN_SCORE, SHOWN_BOXES, PAIRS_PER_ROW, READABLE_PX = 0.3, 12, 2, 320


def prediction_page(
    network: Network,
    split: PackedSplit,
    recipe: Recipe,
    classes: ClassList,
    numerics: Numerics,
    device: str,
    out: Path,
    count: int = 8,
) -> tuple[Path, Path]:
    """Write ``out`` (PNG) with pictures spread over the split, at network size, and its layout.

    Boxes below a score of 0.3 are not drawn, and at most twelve per picture. Which photos it shows
    depends on the split alone, so that the pages of several networks can be compared.

    Returns:
        The page, and the JSON file beside it that says where each photo is
        (`sharedenc.evaluation.layout`).
    """
    network.eval()
    transform = eval_transform(recipe)
    places = np.linspace(0, len(split) - 1, num=min(count, len(split))).round().astype(int)
    pictures: list[Pixels] = []
    samples: list[ModelSample] = []
    for place in places:
        sample = transform(split[int(place)])
        samples.append(sample)
        pictures += [
            _truth(sample, network, classes),
            _prediction(sample, network, recipe, classes, numerics, device),
        ]
    out.parent.mkdir(parents=True, exist_ok=True)
    page = grid(pictures, columns=2 * PAIRS_PER_ROW)
    if not cv2.imwrite(str(out), cv2.cvtColor(page, cv2.COLOR_RGB2BGR)):
        raise OSError(f"could not write {out}")
    layout = PageLayout(
        width=page.shape[1],
        height=page.shape[0],
        tasks=network.tasks,
        split=split.split,
        photos=_photos(samples, pictures),
    )
    beside = out.with_suffix(".json")
    beside.write_text(layout.to_json())
    return out, beside


def _photos(samples: list[ModelSample], pictures: list[Pixels]) -> tuple[PagePhoto, ...]:
    """Where the pictures, two for each sample, lie on their page."""
    rects: list[Rect] = [
        (left, top, picture.shape[1], picture.shape[0])
        for (left, top), picture in zip(
            grid_places(pictures, columns=2 * PAIRS_PER_ROW), pictures, strict=True
        )
    ]
    return tuple(
        PagePhoto(
            image_id=int(sample.image_id),
            objects=len(sample.boxes),
            truth=truth,
            prediction=prediction,
        )
        for sample, truth, prediction in zip(samples, rects[::2], rects[1::2], strict=True)
    )


def _draw(
    sample: ModelSample,
    boxes: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32] | None,
    mask: Pixels | None,
    classes: ClassList,
) -> Pixels:
    picture = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
    zoom = max(1, READABLE_PX // picture.shape[0])
    return draw_sample(picture, boxes, labels, scores, mask, classes, zoom=zoom)


def _truth(sample: ModelSample, network: Network, classes: ClassList) -> Pixels:
    with_boxes, with_mask = "det" in network.tasks, "seg" in network.tasks
    boxes = sample.boxes.numpy() if with_boxes else np.zeros((0, 4), np.float32)
    labels = sample.labels.numpy() if with_boxes else np.zeros(0, np.int64)
    mask = sample.mask.numpy() if with_mask and sample.mask is not None else None
    return _draw(sample, boxes, labels, None, mask, classes)


def _prediction(
    sample: ModelSample,
    network: Network,
    recipe: Recipe,
    classes: ClassList,
    numerics: Numerics,
    device: str,
) -> Pixels:
    boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    scores, mask = np.zeros(0, np.float32), None
    with torch.inference_mode():
        outputs = forward(network, sample.image[None].to(device), numerics)
        if network.det_head is not None:
            (found,) = postprocess(
                outputs["cls_logits"],
                outputs["bbox_regression"],
                network.det_head.anchors(recipe.image_px),
                recipe.image_px,
                recipe,
            )
            shown = (found.scores >= SHOWN_SCORE).nonzero()[:SHOWN_BOXES, 0]
            boxes = found.boxes[shown].float().cpu().numpy()
            labels, scores = found.labels[shown].cpu().numpy(), found.scores[shown].cpu().numpy()
        if network.seg_head is not None:
            mask = outputs["seg_logits"][0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return _draw(sample, boxes, labels, scores, mask, classes)
