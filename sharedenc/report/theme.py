"""The colours of the report, in light and dark, as data for the page and the figures in it.

Series are close to Okabe and Ito's palette, which colour-blind readers can tell apart; the ones
that are too pale on white are darker in light, and all are lighter in dark.
"""

from __future__ import annotations

from collections.abc import Mapping

# Variable without its dashes -> colour. Text is `ink` or `soft` on `paper`; `line` is a grid's.
LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "soft": "#57606a",
    "line": "#d5dae0",
    "reference": "#868e97",
    "series-1": "#0072b2",
    "series-2": "#d55e00",
    "series-3": "#009472",
    "series-4": "#b9609a",
    "series-5": "#a97400",
    "series-6": "#3391c9",
    "series-7": "#5c6670",
    "series-8": "#7b2d26",
}
DARK: Mapping[str, str] = {
    "paper": "#14181d",
    "ink": "#e8ebee",
    "soft": "#a9b1ba",
    "line": "#363d46",
    "reference": "#737c86",
    "series-1": "#4ba3e3",
    "series-2": "#ff8b4d",
    "series-3": "#2cc295",
    "series-4": "#e599c6",
    "series-5": "#eab02e",
    "series-6": "#9ad6ff",
    "series-7": "#b3bcc6",
    "series-8": "#d08379",
}
SERIES: tuple[str, ...] = tuple(name for name in LIGHT if name.startswith("series-"))
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def declarations(colours: Mapping[str, str]) -> str:
    """CSS declarations of all variables: ``--paper: #ffffff; --ink: ...``."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def variable(name: str) -> str:
    """How a figure uses a colour: it follows the page, and is the light one where none is set."""
    return f"var(--{name}, {LIGHT[name]})"


def luminance(colour: str) -> float:
    """Relative luminance (0..1) of ``#rrggbb``, as WCAG 2.2 defines it."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio (1..21) of two colours, as WCAG 2.2 defines it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def standalone(svg: str) -> str:
    """A figure of the page as a file of its own, with the colours of both themes in it."""
    head, end, body = svg.partition(">")
    style = (
        f"<style>:root {{ {declarations(LIGHT)} color-scheme: light dark; "
        "background: var(--paper); } "
        f"@media (prefers-color-scheme: dark) {{ :root {{ {declarations(DARK)} }} }}</style>"
    )
    return f"{head}{end}{style}{body}"
