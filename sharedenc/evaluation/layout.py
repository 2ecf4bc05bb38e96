"""Where a page of pictures shows what: enough to cut it again, without a network or data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

VERSION = 1

Rect = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""


@dataclass(frozen=True, kw_only=True)
class PagePhoto:
    """One photo's two tiles; ``objects`` is the number of its annotated boxes."""

    image_id: int
    objects: int
    truth: Rect
    prediction: Rect


@dataclass(frozen=True, kw_only=True)
class PageLayout:
    """A page of ``width`` x ``height`` pixels. ``tasks`` are those whose truth is drawn."""

    width: int
    height: int
    tasks: tuple[str, ...]
    split: str
    photos: tuple[PagePhoto, ...]

    def to_json(self) -> str:
        """As it is stored beside the page."""
        values = {
            "version": VERSION,
            "width": self.width,
            "height": self.height,
            "tasks": self.tasks,
            "split": self.split,
            "photos": [vars(photo) for photo in self.photos],
        }
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PageLayout:
        """Read a stored layout.

        Raises:
            ValueError: it is not one, is of another version, or has a tile outside the page.
        """
        try:
            values = json.loads(text)
            if values["version"] != VERSION:
                raise ValueError(
                    f"the page's layout has version {values['version']!r}, not {VERSION}"
                )
            layout = cls(
                width=int(values["width"]),
                height=int(values["height"]),
                tasks=tuple(str(task) for task in values["tasks"]),
                split=str(values["split"]),
                photos=tuple(_photo(photo) for photo in values["photos"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the layout of a page: {error!r}") from error
        for photo in layout.photos:
            for rect in (photo.truth, photo.prediction):
                if not layout._holds(rect):
                    raise ValueError(f"the tile {rect} of photo {photo.image_id} is off the page")
        return layout

    def _holds(self, rect: Rect) -> bool:
        left, top, width, height = rect
        right, bottom = left + width, top + height
        return 0 <= left < right <= self.width and 0 <= top < bottom <= self.height


def _photo(values: Any) -> PagePhoto:
    return PagePhoto(
        image_id=int(values["image_id"]),
        objects=int(values["objects"]),
        truth=_rect(values["truth"]),
        prediction=_rect(values["prediction"]),
    )


def _rect(values: Any) -> Rect:
    left, top, width, height = (int(value) for value in values)
    return left, top, width, height
