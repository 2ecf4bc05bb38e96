"""What is written of a figure: a PNG for print, and an SVG for the page.

In the SVG each of the light theme's colours becomes the CSS variable of that name, so that the
figure follows the page that it is in.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from typing import Any

from jetson_agent.protocol import slug
from sharedenc.report.figures.canvas import PAPER, printable
from sharedenc.report.theme import FONT, LIGHT, variable

DPI = 300
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_SPACE = re.compile(r"\s+")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
# A text's own family gives way to the root's; older matplotlib writes it in one with the size.
_FONT_FAMILY = re.compile(r"font-family: [^;]*;? ?")
_PRINT_FONT = re.compile(r"'DejaVu Sans'[^;]*")
_VARIABLES = {colour: variable(name) for name, colour in LIGHT.items()}

ET.register_namespace("", _SVG)


def png_of(figure: Any) -> bytes:
    """A PNG of print size, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    return buffer.getvalue()


def svg_of(figure: Any, number: str, title: str, description: str) -> str:
    """An SVG for a page: text as text, colours as variables, ids that are this figure's own."""
    buffer = io.StringIO()
    nothing: dict[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    # What is read here, matplotlib has just written.
    root = ET.fromstring(buffer.getvalue())
    prefix = "fig-" + slug(number).replace(".", "-")
    for group in root.iter(f"{{{_SVG}}}defs"):
        # Its style would hold for all of the page; the root has it as attributes instead.
        for style in group.findall(f"{{{_SVG}}}style"):
            group.remove(style)
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    used = _used_ids(root)
    for element in root.iter():
        _own(element, prefix, used)
        if element.tag != f"{{{_SVG}}}text":
            element.text = None
        element.tail = None
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {
        "width": "100%",
        "role": "img",
        "aria-labelledby": f"{prefix}-title {prefix}-desc",
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
        "font-family": FONT,
    }
    for at, (tag, text) in enumerate((("title", title), ("desc", description))):
        told = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{prefix}-{tag}"})
        told.text = printable(text)
        root.insert(at, told)
    return ET.tostring(root, encoding="unicode")


def _used_ids(root: ET.Element) -> set[str]:
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in (_XLINK, "href") and value.startswith("#"):
                used.add(value[1:])
            used.update(_REFERENCE.findall(value))
    return used


def _own(element: ET.Element, prefix: str, used: set[str]) -> None:
    for name, value in list(element.attrib.items()):
        if name == "id":
            if value in used:
                element.set("id", f"{prefix}-{value}")
            else:
                del element.attrib["id"]
        elif name in (_XLINK, "href"):
            del element.attrib[name]
            element.set("href", f"#{prefix}-{value[1:]}")
        else:
            own = _REFERENCE.sub(rf"url(#{prefix}-\1)", value)
            if name == "style" and element.tag == f"{{{_SVG}}}text":
                own = _PRINT_FONT.sub(FONT, _FONT_FAMILY.sub("", own))
            if name == "transform" and own.startswith("rotate(-0 "):
                del element.attrib[name]
                continue
            own = _SPACE.sub(" ", own).strip()
            if name == "d" and not set(own) & set("CQ"):
                # A line follows of itself where no curve stands between.
                own = own.replace("L ", "")
            own = _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), own)
            element.set(name, _COLOUR.sub(lambda found: _VARIABLES.get(found[0], found[0]), own))
