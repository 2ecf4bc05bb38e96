"""The lines of a `trtexec` log, whatever happened to it on the way.

Information goes to standard output, warnings and errors to standard error, so in a log of both one
may stand in the middle of the other. Colours, carriage returns and comments are taken off.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# "[04/07/2025-23:59:50] [I] [TRT] text"; Python's logger of the library has the tag first.
_PREFIX = re.compile(
    r"\[[0-9]{2}/[0-9]{2}/[0-9]{4}-[0-9]{2}:[0-9]{2}:[0-9]{2}\] (?:\[TRT\] )?\[([FEWIV])\](?: |$)"
)
BANNER = re.compile(r"&&&& (?:RUNNING|PASSED|FAILED|WAIVED)(?= |$)")
_START = re.compile(f"{_PREFIX.pattern}|{BANNER.pattern}")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclass(frozen=True)
class Line:
    """One message.

    `level` is F, E, W, I or V (fatal, error, warning, information, verbose), empty for text without
    TensorRT's prefix and for banners. `complete` is False if the log ends within this line.
    """

    level: str
    text: str
    complete: bool = True


def read_lines(text: str) -> list[Line]:
    """All messages of a log, in order; comments (``# ...``) are left out."""
    rows = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    whole = len(rows) - 1  # what follows the last line feed has none
    found: list[Line] = []
    cut = ""  # a line in which another stream broke in; the next line may be the rest of it
    for number, row in enumerate(rows):
        if row.startswith("# ") or (number == whole and not row):
            continue
        starts = [match.start() for match in _START.finditer(row)]
        if cut and not starts:
            row, cut = cut + row, ""
            starts = [match.start() for match in _START.finditer(row)]
        if cut:
            found.append(_line(cut, complete=False))
            cut = ""
        pieces = [row[a:b] for a, b in zip([0, *starts], [*starts, len(row)], strict=True) if a < b]
        if len(pieces) > 1:
            cut = pieces.pop(0)
        found += [_line(piece, complete=number < whole) for piece in pieces or [row]]
    if cut:
        found.append(_line(cut, complete=False))
    return found


def _line(row: str, *, complete: bool) -> Line:
    match = _PREFIX.match(row)
    level, text = (match[1], row[match.end() :]) if match else ("", row)
    return Line(level, text.removeprefix("[TRT] ").rstrip(), complete)
