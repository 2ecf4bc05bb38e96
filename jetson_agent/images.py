"""Photos in and out, by Pillow: decoded, squashed to the network's size, and drawn on."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jetson_agent.errors import AgentError

if TYPE_CHECKING:
    from jetson_agent.decode import Decoding, Detections

Pixels = npt.NDArray[np.uint8]
# By the end of the name; whatever else lies in a folder is no photo.
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MASK_ALPHA = 0.5
IGNORE = 255


def require_pillow() -> None:
    """Raise `AgentError` with what to do unless Pillow is installed."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise AgentError(
            "photos are read with Pillow, which is not installed: pip install pillow"
        ) from None


def read_photo(path: Path, *, upright: bool) -> Pixels:
    """Decode a picture file to RGB ``[H, W, 3]``; grey ones become three equal channels.

    Args:
        upright: Turn it as its EXIF tag says. Annotations count in stored pixels, not turned.

    Raises:
        AgentError: the file is missing, no picture, cut, or larger than Pillow decodes.
    """
    from PIL import Image, ImageOps

    try:
        data = path.read_bytes()
    except OSError as error:
        raise AgentError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind = picture.format
            turned = ImageOps.exif_transpose(picture) if upright else picture
            pixels: Pixels = np.asarray(turned.convert("RGB"), np.uint8)
    # Pillow's decoders raise a dozen classes, its warning of a huge picture among them.
    except Exception as error:
        raise AgentError(
            f"{path} is not a picture that can be decoded ({error}); it may be cut or damaged. "
            "Copy it again."
        ) from error
    # A decoder invents the end of a JPEG that lacks it. Thumbnails, which have an end of their own,
    # lie before the last start of scan.
    if kind == "JPEG" and data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0:
        raise AgentError(f"{path} is a truncated JPEG (no end marker). Copy it again.")
    return pixels


def squash(image: Pixels, px: int) -> Pixels:
    """Resize to ``[px, px, 3]``, linear, with antialiasing along axes that shrink.

    Training resizes with torch, whose filter on uint8 is the same; each rounds on its own, so a
    value may differ by one level.
    """
    from PIL import Image

    small = Image.fromarray(image).resize((px, px), Image.Resampling.BILINEAR)
    return np.asarray(small, np.uint8)


def network_input(image: Pixels, decoding: Decoding) -> npt.NDArray[np.float32]:
    """The network's input ``[1, 3, S, S]``: squashed to a square, then normalised."""
    levels = squash(image, decoding.image_px).astype(np.float32) / np.float32(255)
    mean, std = (np.array(v, np.float32) for v in (decoding.mean, decoding.std))
    return np.ascontiguousarray(((levels - mean) / std).transpose(2, 0, 1)[None])


def nearest(label_map: Pixels, height: int, width: int) -> Pixels:
    """Resize a label map by the label at each new pixel's centre."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip((height, width), label_map.shape, strict=True)
    )
    picked: Pixels = label_map[rows[:, None], columns[None, :]]
    return picked


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class; neighbours in the list lie far apart on the wheel."""
    hue = (label - 1) * 0.381966 % 1
    r, g, b = colorsys.hsv_to_rgb(hue, 0.9, (0.95, 0.7)[label % 2])
    return round(r * 255), round(g * 255), round(b * 255)


def draw(
    image: Pixels, found: Detections, mask: Pixels | None, labels: Sequence[str], least: float
) -> Any:
    """The photo with boxes, names, scores and the mask on it, as a Pillow image.

    Args:
        found: Boxes in pixels of `image`; those with a score below `least` are left out.
        mask: Labels at any size, or None.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape[:2]
    canvas = image.copy()
    if mask is not None:
        palette = np.zeros((256, 3), np.float32)
        palette[1 : len(labels)] = [colour(label) for label in range(1, len(labels))]
        full = nearest(mask, height, width)
        on = (full > 0) & (full != IGNORE)
        blend = canvas[on] * (1 - MASK_ALPHA) + palette[full[on]] * MASK_ALPHA
        canvas[on] = blend.astype(np.uint8)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(11, min(width, height) // 30))
    line = max(1, round(min(width, height) / 240))
    # The best last, so that nothing covers them.
    rows = list(zip(found.boxes, found.scores, found.labels, strict=True))
    for box, score, label in reversed(rows):
        if score < least:
            continue
        x1, y1, x2, y2 = (float(value) for value in box)
        tint = colour(int(label))
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=tint, width=line)
        caption = f"{labels[int(label)]} {score:.2f}"
        left, top, right, bottom = pen.textbbox((x1, y1), caption, font=font)
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=tint)
        bright = float(np.dot(tint, (0.299, 0.587, 0.114))) > 140
        pen.text((x1, y1), caption, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)
    return picture
