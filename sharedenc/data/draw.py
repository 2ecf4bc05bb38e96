"""Draw boxes, class names and translucent masks on pictures, and tile pictures on a sheet."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from sharedenc.data.transforms import Pixels

if TYPE_CHECKING:
    from sharedenc.data.classes import ClassList

Colour = tuple[int, int, int]
Rect = tuple[int, int, int, int]

IGNORE = 255
IGNORE_COLOUR: Colour = (235, 235, 235)
MASK_ALPHA = 0.5
BACKGROUND: Colour = (255, 255, 255)
# Below this share of the picture a mask gets no name of its own: the text would hide it.
MIN_NAMED_SHARE = 0.004


def class_colour(label: int) -> Colour:
    """The RGB colour of class ``label`` (1, 2, ...): each far from all the earlier ones."""
    return _palette()[(label - 1) % len(_palette())]


@lru_cache(maxsize=1)
def _palette() -> list[Colour]:
    """254 colours, chosen one by one from a grid as the farthest in Lab space from those before.

    Dull, very dark and very pale ones are not on the grid: they would not show on a photo, and
    pale grey means ignored.
    """
    grid_hls = np.array(
        [
            (hue / 48, lightness, saturation)
            for hue in range(48)
            for lightness in (0.3, 0.38, 0.46, 0.54, 0.62, 0.7)
            for saturation in (0.55, 0.75, 0.95)
        ]
    )
    rgb = np.array([colorsys.hls_to_rgb(*row) for row in grid_hls.tolist()], np.float32)
    lab = cv2.cvtColor(rgb[None], cv2.COLOR_RGB2LAB)[0]
    chosen = [int(np.argmin(np.abs(grid_hls - (0.0, 0.46, 0.95)).sum(axis=1)))]
    gap = np.linalg.norm(lab - lab[chosen[0]], axis=1)
    while len(chosen) < IGNORE - 1:
        chosen.append(int(gap.argmax()))
        gap = np.minimum(gap, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return [(round(r * 255), round(g * 255), round(b * 255)) for r, g, b in rgb[chosen].tolist()]


def draw_sample(
    image: Pixels,
    boxes: npt.ArrayLike,
    labels: npt.ArrayLike,
    scores: npt.ArrayLike | None,
    mask: npt.ArrayLike | None,
    classes: ClassList,
    *,
    zoom: int = 1,
) -> Pixels:
    """Draw truth or predictions on a copy of ``image``.

    Args:
        image: uint8 RGB ``[H, W, 3]``.
        boxes: xyxy in pixels of ``image``, ``[N, 4]``; large ones are drawn first.
        labels: ``[N]``, 1 is the first class.
        scores: ``[N]`` in 0..1, or None for truth.
        mask: labels ``[H, W]``, 0 background, 255 ignored (pale, hatched); or None.
        classes: gives the names.
        zoom: enlarge by this before drawing: text on a 320 px picture stays readable at 2.

    Returns:
        uint8 RGB ``[H * zoom, W * zoom, 3]``.
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4) * zoom
    names = [_name(classes, int(label)) for label in np.asarray(labels).reshape(-1)]
    colours = [class_colour(int(label)) for label in np.asarray(labels).reshape(-1)]
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    canvas = np.array(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    map_px: Pixels | None = None
    if mask is not None:
        label_map = np.asarray(mask).astype(np.uint8)
        map_px = np.asarray(cv2.resize(label_map, size, interpolation=cv2.INTER_NEAREST_EXACT))
        _paint_mask(canvas, map_px)

    text = _Text(canvas)
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    order = np.argsort(-area, kind="stable")
    line = max(1, round(min(size) / 240))
    for i in order:
        x1, y1, x2, y2 = (round(float(v)) for v in corners[i])
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colours[i], line, cv2.LINE_AA)
    for i in order:
        caption = names[i]
        if scores is not None:
            caption += f" {float(np.asarray(scores).reshape(-1)[i]):.2f}"
        x1, y1, x2, y2 = (round(float(v)) for v in corners[i])
        left = x2 - text.width(caption)
        above, below = y1 - text.height, y2
        places = [(x1, above), (x1, y1), (x1, below), (left, above), (left, below)]
        text.tag(caption, colours[i], places)
    if map_px is not None:
        _name_masks(text, map_px, set(names), classes)
    return canvas


def grid(images: Sequence[Pixels], columns: int | None = None, *, gap: int = 4) -> Pixels:
    """Tile pictures of any sizes row by row on white; cells are as large as the largest picture.

    Raises:
        ValueError: there is no picture.
    """
    places = grid_places(images, columns, gap=gap)
    right = max(left for left, _ in places) + max(image.shape[1] for image in images) + gap
    bottom = max(top for _, top in places) + max(image.shape[0] for image in images) + gap
    sheet = np.full((bottom, right, 3), BACKGROUND, np.uint8)
    for (left, top), image in zip(places, images, strict=True):
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def grid_places(
    images: Sequence[Pixels], columns: int | None = None, *, gap: int = 4
) -> list[tuple[int, int]]:
    """Left and top of each picture on the sheet that `grid` makes of them."""
    if not images:
        raise ValueError("a grid needs at least one picture")
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    columns = min(columns, len(images))
    cell_h = max(image.shape[0] for image in images) + gap
    cell_w = max(image.shape[1] for image in images) + gap
    return [
        (gap + place % columns * cell_w, gap + place // columns * cell_h)
        for place in range(len(images))
    ]


def _name(classes: ClassList, label: int) -> str:
    if 1 <= label <= len(classes.names):
        return classes.names[label - 1]
    raise ValueError(f"label {label} is outside 1..{len(classes.names)} of {classes.name}")


def _paint_mask(canvas: Pixels, label_map: Pixels) -> None:
    """Blend class colours into ``canvas``; classes get an outline, ignored pixels a hatching."""
    present = [int(label) for label in np.unique(label_map) if label]
    if not present:
        return
    palette = np.zeros((256, 3), np.float32)
    for label in present:
        palette[label] = IGNORE_COLOUR if label == IGNORE else class_colour(label)
    covered = label_map > 0
    ignored = label_map == IGNORE
    if ignored.any():
        y, x = np.ogrid[: label_map.shape[0], : label_map.shape[1]]
        covered &= ~ignored | ((x + y) % 8 < 4)
    blend = canvas[covered] * (1 - MASK_ALPHA) + palette[label_map[covered]] * MASK_ALPHA
    canvas[covered] = blend.astype(np.uint8)
    for label in present:
        if label != IGNORE:
            region = (label_map == label).astype(np.uint8)
            outline, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, outline, -1, class_colour(label), 1)


def _name_masks(text: _Text, label_map: Pixels, named: set[str], classes: ClassList) -> None:
    """Write the name of each class whose mask no box has named, deep inside its largest part."""
    for label in np.unique(label_map):
        if label in (0, IGNORE) or _name(classes, int(label)) in named:
            continue
        region = (label_map == label).astype(np.uint8)
        if region.mean() < MIN_NAMED_SHARE:
            continue
        depth = cv2.distanceTransform(np.pad(region, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        caption = _name(classes, int(label))
        left = int(x) - text.width(caption) // 2
        text.tag(caption, class_colour(int(label)), [(left, int(y) - text.height // 2)])


class _Text:
    """Puts captions on one picture without covering one by another where there is room."""

    def __init__(self, canvas: Pixels) -> None:
        self.canvas = canvas
        self.pixels = int(np.clip(min(canvas.shape[:2]) / 30, 11, 22))
        self.height = self.pixels + 4
        # OpenCV's built-in outline font: smooth at small sizes, and it has accents and CJK, which
        # people's own class names need.
        self._face: Any = cv2.FontFace("sans")
        self._taken: list[Rect] = []

    def width(self, caption: str) -> int:
        box = cv2.getTextSize((0, 0), caption, (0, 0), self._face, self.pixels)
        return int(box[2]) + 6

    def tag(self, caption: str, colour: Colour, corners: Iterable[tuple[int, int]]) -> None:
        """Write on a filled tag at the first of the top left ``corners`` that is still free."""
        height, width = self.canvas.shape[:2]
        size = self.width(caption)
        places: list[Rect] = []
        for left, top in corners:
            left = max(0, min(left, width - size))
            top = max(0, min(top, height - self.height))
            places.append((left, top, left + size, top + self.height))
        place = next((p for p in places if not self._hits(p)), places[0])
        self._taken.append(place)
        left, top, right, bottom = place
        cv2.rectangle(self.canvas, (left, top), (right - 1, bottom - 1), colour, cv2.FILLED)
        bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
        ink = (0, 0, 0) if bright else (255, 255, 255)
        base = (left + 3, bottom - 2 - round(self.pixels * 0.22))
        cv2.putText(self.canvas, caption, base, ink, self._face, self.pixels, 500)

    def _hits(self, rect: Rect) -> bool:
        return any(
            rect[0] < other[2] and other[0] < rect[2] and rect[1] < other[3] and other[1] < rect[3]
            for other in self._taken
        )
