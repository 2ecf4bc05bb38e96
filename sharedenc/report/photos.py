"""Cut the pages of pictures that trials upload, so that one photo's tiles stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.evaluation.layout import PageLayout, PagePhoto, Rect
from sharedenc.report.evidence import Photo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST_PHOTOS, TILE_PX, JPEG_QUALITY = 4, 224, 80
MOST_BYTES = 4_000_000
"""What all JPEG files of a report may take together."""


@dataclass(frozen=True)
class Tiles:
    """What one cell's page shows: JPEG files of at most 224 pixels, by photo."""

    layout: PageLayout
    truth: Mapping[int, bytes]
    predictions: Mapping[int, bytes]

    @property
    def truth_name(self) -> str:
        """What the truth shows: ``det``, ``seg`` or ``both``."""
        return "both" if len(self.layout.tasks) > 1 else "".join(self.layout.tasks)


def cut(folder: Path) -> Tiles:
    """Cut the ``page.png`` in ``folder`` by its ``page.json``.

    Raises:
        ValueError: they are not a page and its layout.
    """
    layout = PageLayout.from_json((folder / "page.json").read_text())
    pixels = _pixels(folder / "page.png", layout)
    return Tiles(
        layout=layout,
        truth={photo.image_id: _jpeg(pixels, photo.truth) for photo in layout.photos},
        predictions={photo.image_id: _jpeg(pixels, photo.prediction) for photo in layout.photos},
    )


def side_by_side(
    cells: Mapping[str, Tiles], most_bytes: int = MOST_BYTES
) -> tuple[tuple[Photo, ...], list[str]]:
    """Up to four photos with every cell's prediction, and notes on what is left out.

    Those with annotated objects are taken first, spread over the page. Photos are left out, and
    then cells, until all files together are small enough.
    """
    ids = chosen_ids([tiles.layout for tiles in cells.values()])
    photos: list[Photo] = []
    notes: list[str] = []
    left = most_bytes
    for number in ids:
        having = {cell: tiles for cell, tiles in cells.items() if number in tiles.predictions}
        truth: dict[str, bytes] = {}
        for tiles in having.values():
            truth.setdefault(tiles.truth_name, tiles.truth[number])
        found = {cell: tiles.predictions[number] for cell, tiles in having.items()}
        left -= sum(map(len, truth.values()))
        if sum(map(len, found.values())) > left and photos:
            notes.append(
                f"Predictions: {len(photos)} of {len(ids)} photos are shown; more would make the "
                "page too large. All are on the trials' own pages in MLflow."
            )
            break
        fitting = _first_that_fit(found, left)
        photos.append(Photo(image_id=str(number), truth=truth, predictions=fitting))
        if len(fitting) < len(found):
            notes.append(
                f"Predictions: those of {len(fitting)} of {len(found)} cells are shown; more would "
                "make the page too large. All are on the trials' own pages in MLflow."
            )
            break
        left -= sum(map(len, found.values()))
    return tuple(photos), notes


def chosen_ids(layouts: Sequence[PageLayout]) -> list[int]:
    """The photos to show, in the order of the pages; those that most pages have."""
    counts: dict[int, int] = {}
    seen: dict[int, PagePhoto] = {}
    for layout in layouts:
        for photo in layout.photos:
            counts[photo.image_id] = counts.get(photo.image_id, 0) + 1
            seen.setdefault(photo.image_id, photo)
    most = max(counts.values(), default=0)
    common = [number for number in seen if counts[number] == most]
    with_objects = [number for number in common if seen[number].objects]
    without = [number for number in common if not seen[number].objects]
    chosen = _spread(with_objects, MOST_PHOTOS)
    chosen += without[: MOST_PHOTOS - len(chosen)]
    return [number for number in common if number in chosen]


def _spread(values: list[int], count: int) -> list[int]:
    if len(values) <= count:
        return list(values)
    return [values[k * len(values) // count] for k in range(count)]


def _first_that_fit(found: Mapping[str, bytes], most_bytes: int) -> dict[str, bytes]:
    kept: dict[str, bytes] = {}
    for cell, jpeg in found.items():
        most_bytes -= len(jpeg)
        if most_bytes < 0:
            break
        kept[cell] = jpeg
    return kept


def _pixels(image: Path, layout: PageLayout) -> npt.NDArray[np.uint8]:
    """The page, BGR ``[H, W, 3]``."""
    import cv2

    pixels: Any = cv2.imread(str(image), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("its page is not a picture")
    if pixels.shape[:2] != (layout.height, layout.width):
        raise ValueError("its page has another size than its layout says")
    found: npt.NDArray[np.uint8] = pixels
    return found


def _jpeg(pixels: npt.NDArray[np.uint8], rect: Rect) -> bytes:
    import cv2

    left, top, width, height = rect
    tile = pixels[top : top + height, left : left + width]
    scale = min(1.0, TILE_PX / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(tile, size, interpolation=cv2.INTER_AREA)
    fine, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert fine, "OpenCV writes JPEG"
    return encoded.tobytes()
