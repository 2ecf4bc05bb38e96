"""What the figures are drawn on: a canvas in points, its texts, labels and legends.

Drawn with matplotlib on its own canvas, in the light theme's colours.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sharedenc.report.theme import LIGHT, SERIES

WIDTH_PT = 16.0 / 2.54 * 72.0
SMALL_PT, TEXT_PT = 8.0, 8.5
PAPER, INK, SOFT, LINE = (LIGHT[name] for name in ("paper", "ink", "soft", "line"))
REFERENCE = LIGHT["reference"]
# Drawn in the place of a number that is missing.
MISSING = "\N{MULTIPLICATION SIGN}"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
LEGEND_ROW_PT = 13.0
_LEGEND_LEFT = 4.0
# Entries of one legend; the others are counted.
_LEGEND_MOST = 24


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    colour: str
    shape: str = "patch"
    alpha: float = 1.0


# In a legend: what follows starts a new row.
BREAK = Key("", "", "break")


def series(at: int) -> tuple[str, float]:
    """Colour and opacity of a series; from the ninth on the colours come again, paler."""
    return LIGHT[SERIES[at % len(SERIES)]], 1.0 if at < len(SERIES) else 0.55


def published_colour(is_reference: bool) -> str:
    """Pale for what must not be compared."""
    return REFERENCE if is_reference else INK


@contextmanager
def drawing() -> Iterator[None]:
    """The style, for as long as figures are drawn and written."""
    import matplotlib as mpl

    style: dict[str, Any] = {
        "font.family": ["DejaVu Sans"],
        "font.size": SMALL_PT,
        "text.color": INK,
        # A name with two dollar signs is a name.
        "text.parse_math": False,
        "axes.labelcolor": INK,
        "axes.labelsize": SMALL_PT,
        "axes.edgecolor": SOFT,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "axes.grid": False,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": SMALL_PT,
        "ytick.labelsize": SMALL_PT,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 1.5,
        "ytick.minor.size": 1.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "sharedenc",
    }
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(style)
        # A sign that the print font lacks is drawn as a box; the page has the reader's fonts.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


class Canvas:
    """A figure of print width; places are points from its upper left corner."""

    def __init__(self, height_pt: float) -> None:
        from matplotlib.figure import Figure

        self.height_pt = height_pt
        self.figure = Figure(figsize=(WIDTH_PT / 72.0, height_pt / 72.0), dpi=72)

    def axes(self, left: float, top: float, width: float, height: float, title: str = "") -> Any:
        """Axes in a box, with a title above it."""
        if title:
            # matplotlib's own title is measured against every tick.
            self.text(left, top - 8, title, fontsize=TEXT_PT)
        bottom = self.height_pt - top - height
        return self.figure.add_axes(
            (
                left / WIDTH_PT,
                bottom / self.height_pt,
                width / WIDTH_PT,
                height / self.height_pt,
            )
        )

    def text(self, left: float, top: float, text: str, **how: Any) -> None:
        """A text whose middle line is at ``top``."""
        how = {"va": "center", "fontsize": SMALL_PT, **how}
        self.figure.text(left / WIDTH_PT, 1 - top / self.height_pt, text, **how)

    def legend(self, keys: Sequence[Key], top: float) -> None:
        """Entries in as many rows as they need: `legend_height` says how high that is."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Rectangle

        for at, line in enumerate(_legend_rows(keys)):
            y = top + (at + 0.5) * LEGEND_ROW_PT
            for x, key in line:
                place = ((_LEGEND_LEFT + x) / WIDTH_PT, 1 - y / self.height_pt)
                if key.shape == "patch":
                    low = 1 - (y + 4) / self.height_pt
                    self.figure.add_artist(
                        Rectangle(
                            (place[0], low),
                            9 / WIDTH_PT,
                            8 / self.height_pt,
                            facecolor=key.colour,
                            alpha=key.alpha,
                            linewidth=0,
                            transform=self.figure.transFigure,
                        )
                    )
                elif key.shape in ("-", "--", ":"):
                    ends = [place[0], place[0] + 12 / WIDTH_PT]
                    self.figure.add_artist(
                        Line2D(ends, [place[1]] * 2, color=key.colour, ls=key.shape, lw=1.3)
                    )
                elif key.shape:
                    hollow = key.shape.startswith("hollow ")
                    self.figure.add_artist(
                        Line2D(
                            [place[0] + 5 / WIDTH_PT],
                            [place[1]],
                            marker=key.shape.removeprefix("hollow "),
                            markersize=6,
                            color=key.colour,
                            markerfacecolor=PAPER if hollow else key.colour,
                            markeredgewidth=1.0,
                            linestyle="",
                        )
                    )
                offset = _swatch(key)
                self.text(_LEGEND_LEFT + x + offset, y, fit(key.label, SMALL_PT, 190))


def _swatch(key: Key) -> float:
    return 0.0 if not key.shape else 16.0 if key.shape in ("-", "--", ":") else 13.0


def legend_height(keys: Sequence[Key]) -> float:
    """Points that a legend of these entries needs."""
    return LEGEND_ROW_PT * len(_legend_rows(keys))


def _legend_rows(keys: Sequence[Key]) -> list[list[tuple[float, Key]]]:
    shown = list(keys[:_LEGEND_MOST])
    if len(keys) > _LEGEND_MOST:
        shown.append(Key(f"and {len(keys) - _LEGEND_MOST} more", SOFT, shape=""))
    rows: list[list[tuple[float, Key]]] = [[]]
    x = 0.0
    for key in shown:
        if key.shape == "break":
            rows.append([])
            x = 0.0
            continue
        need = _swatch(key) + text_width(fit(key.label, SMALL_PT, 190), SMALL_PT) + 14
        if rows[-1] and x + need - 14 > WIDTH_PT - _LEGEND_LEFT:
            rows.append([])
            x = 0.0
        rows[-1].append((x, key))
        x += need
    return rows if rows[0] else []


@lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> float:
    """Points that a text is wide in the print font, which is wider than most of the page's."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        font = FontProperties(family="DejaVu Sans", size=size)
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def fit(text: str, size: float, width: float) -> str:
    """One line of printable text, no wider than ``width`` points: its middle gives way.

    Long names differ at their end as often as at their start.
    """
    line = " ".join(printable(text).split())
    if text_width(line, size) <= width:
        return line
    kept = len(line) - 1
    while kept > 1 and text_width(_cut(line, kept), size) > width:
        kept -= 1
    return _cut(line, kept)


def _cut(line: str, kept: int) -> str:
    end = kept * 2 // 5
    return f"{line[: kept - end]}…{line[len(line) - end :]}"


def printable(text: str) -> str:
    """The text with a space for each sign that XML 1.0 has no way to write."""
    return "".join(" " if unicodedata.category(sign)[0] == "C" else sign for sign in text)


def wrapped(text: str, size: float, width: float) -> str:
    """A name in one line or, where that is too wide, in two: ``share-`` and ``frozen``."""
    if text_width(text, size) <= width or "-" not in text:
        return fit(text, size, width)
    first, _, rest = text.partition("-")
    return f"{fit(first + '-', size, width)}\n{fit(rest, size, width)}"


def place_labels(
    axis: Any,
    points: Sequence[tuple[float, float, str]],
    obstacles: Sequence[tuple[float, float]] = (),
    *,
    must: bool = True,
) -> None:
    """Write labels beside points, where they cover neither other points nor each other.

    The limits of the axes must be set. Where no place is free, the least bad one is taken, or with
    ``must=False`` the label is left out.
    """
    to_px = axis.transData.transform
    frame = axis.get_window_extent()
    marks = [tuple(to_px(point[:2])) for point in (*points, *obstacles)]
    taken: list[tuple[float, float, float, float]] = []
    for x, y, label in points:
        text = fit(label, SMALL_PT, 120)
        width, height = text_width(text, SMALL_PT), SMALL_PT + 1.5
        px, py = to_px((x, y))
        best: tuple[float, tuple[float, float, float, float]] | None = None
        for dx, dy in _SPOTS:
            left = px + 6 if dx > 0 else px - 6 - width if dx < 0 else px - width / 2
            low = py - height / 2 + dy * (height / 2 + (5 if dx == 0 else 2))
            box = (left, low, left + width, low + height)
            cost = 10.0 * sum(_covered(box, other) for other in taken)
            cost += sum(_is_in(mark, box) for mark in marks)
            outside = box[0] < frame.x0 or box[2] > frame.x1 + 30 or box[1] < frame.y0 + 1
            cost += 100.0 * (outside or box[3] > frame.y1 + 8)
            if best is None or cost < best[0]:
                best = (cost, box)
            if cost == 0:
                break
        assert best is not None
        if best[0] > 0 and not must:
            continue
        taken.append(best[1])
        spot = axis.transData.inverted().transform((best[1][0], best[1][1] + 2.0))
        axis.text(*spot, text, fontsize=SMALL_PT, color=INK, va="baseline", ha="left")


# Where a label may be, best first: right or left of the point (1, -1), and lines above or below.
_SPOTS = (
    *((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)),
    *((side, line) for line in (2, -2, 3, -3, 4, -4) for side in (1, -1)),
)


def _covered(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _is_in(mark: tuple[float, ...], box: tuple[float, ...]) -> bool:
    return box[0] - 3 < mark[0] < box[2] + 3 and box[1] - 2 < mark[1] < box[3] + 2


def line(axis: Any, xs: Sequence[float], ys: Sequence[float], marker: str = "", **how: Any) -> None:
    """A line or, with ``ls=""``, marks, on axes whose limits are set: they stay as they are.

    Several times faster than the axes' own method, which looks at units and limits again.
    """
    from matplotlib.lines import Line2D

    drawn = Line2D(xs, ys, marker=marker or None, **{"lw": 1.0, **how})
    axis.add_artist(drawn)
    # What is inside the limits needs no clip path of its own in the SVG.
    drawn.set_clip_on(False)


def limits(
    values: Sequence[float], *, zero: bool = False, pad: float = 0.08
) -> tuple[float, float]:
    """Ends of an axis that shows all values with some room; with ``zero`` it starts at 0."""
    if not values:
        return 0.0, 1.0
    low, high = (0.0 if zero else min(values)), max(values)
    room = pad * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if zero else low - room), high + room
