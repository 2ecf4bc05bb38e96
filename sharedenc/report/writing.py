"""What every form of a report is written with: lines of Markdown, a CSV, a file that is whole."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

Value = str | float | int | None
# What Markdown and the HTML in it would read as more than text; an underscore only beside a blank.
_MARKUP = re.compile(r"[\\`*<>|&#]|(?<=\])\(|(?<!\w)_|_(?!\w)")


def one_line(text: str) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(text.split())


def escaped(text: str) -> str:
    """One line of text that Markdown shows as it is, in a table too."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text))


def markdown_row(texts: Iterable[str]) -> str:
    """One row of a Markdown table; its cells are Markdown already."""
    return f"| {' | '.join(texts)} |"


def markdown_table(
    heads: Sequence[str], rows: Iterable[Iterable[str]], *, numbers: Iterable[int] = ()
) -> list[str]:
    """Lines of a Markdown table; heads and cells are Markdown already.

    Args:
        numbers: Places of the columns that are set to the right.
    """
    right = set(numbers)
    marks = "".join(" ---: |" if at in right else " --- |" for at in range(len(heads)))
    return [markdown_row(heads), f"|{marks}", *map(markdown_row, rows)]


def csv_of(rows: Iterable[Sequence[object]]) -> str:
    """Rows, heads included, as CSV: numbers in full precision, None empty."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def replace_file(path: Path, content: bytes) -> Path:
    """Write beside and rename, so that a reader never sees half a file; everybody may read it.

    A file that can be made again any time needs not be on the disk before this returns.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
    return path
