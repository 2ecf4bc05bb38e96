"""Tables as LaTeX: ``tabular``s to put into a text, with what was measured as comments above.

A wide table is cut between quantities into parts one below the other, each with the labels, and a
part that is wider than the text is scaled down to it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby

from sharedenc.report.cells import Cell, Head, cells, heads
from sharedenc.report.collect import StudyRows
from sharedenc.report.table_spec import Table
from sharedenc.report.text import stamp
from sharedenc.report.writing import one_line

PACKAGES = ("booktabs", "graphicx")
# Only what is wider than the text is scaled, and TeX is the one that knows.
_SCALED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
# Characters across a part, so that it stays readable when it is scaled; and between two columns.
_PART = 120
_GAP = 2

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # babel makes the quote a command in some languages.
    '"': r"\char34{}",
    "`": r"\textasciigrave{}",
    # After the end of a row these would be its arguments.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "\u00d7": r"$\times$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "°": r"$^\circ$",
    "·": r"$\cdot$",
    "\u2212": r"$-$",
    "→": r"$\rightarrow$",
    "…": r"\ldots{}",
    "\u2013": "--",
    "\u2014": "---",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
}
# Letters and accents that every LaTeX has in its default fonts.
_LETTERS = frozenset("ßæÆœŒøØåÅłŁ")
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
_SIGN = re.compile(r"-(?=[0-9])")


def latex(table: Table, rows: StudyRows) -> str:
    """A table as ``tabular``s of the LaTeX package booktabs; notes are comments below it."""
    top = heads(table)
    body = [cells(table, row) for row in table.rows]
    lines = [
        comment(f"Table {table.spec.number}: {table.spec.title}"),
        comment(stamp(rows)),
        comment("Needs " + " and ".join(rf"\usepackage{{{name}}}" for name in PACKAGES)),
    ]
    parts = _parts(top, body)
    if len(parts) > 1:
        lines.append(comment(f"{len(parts)} parts: outside of a float they go over pages."))
    for at, places in enumerate(parts):
        lines += ["", r"\medskip", r"\noindent"] if at else [r"\noindent"]
        lines += _part([top[i] for i in places], [[line[i] for i in places] for line in body])
    lines += [comment(note) for note in table.notes]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """One line of text with LaTeX's special characters made printable.

    A letter that LaTeX's default fonts do not have becomes its number: ``{[}U+4E2D{]}``.
    """
    return "".join(_printable(letter) for letter in one_line(text))


def _printable(letter: str) -> str:
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    if " " <= letter <= "~" or letter in _LETTERS:
        return letter
    taken_apart = unicodedata.normalize("NFD", letter)
    base, accent = taken_apart[0], taken_apart[1:]
    if base.isascii() and base.isalpha() and accent in _ACCENTS:
        return letter
    return f"{{[}}U+{ord(letter):04X}{{]}}"


def _parts(top: Sequence[Head], body: Sequence[Sequence[Cell]]) -> list[list[int]]:
    """Columns of each part: the labels, and as many whole quantities as there is room for."""
    widths = _widths(top, body)
    labels = [at for at, head in enumerate(top) if head.kind == "label"]
    taken = sum(widths[at] + _GAP for at in labels)
    parts: list[list[int]] = []
    room = 0
    numbers = [at for at, head in enumerate(top) if head.kind != "label"]
    for _, found in groupby(numbers, key=lambda at: top[at].group):
        quantity = list(found)
        needed = max(sum(widths[at] + _GAP for at in quantity), len(top[quantity[0]].group))
        if not parts or needed > room:
            parts.append([*labels])
            room = _PART - taken
        parts[-1] += quantity
        room -= needed
    return parts or [labels]


def _widths(top: Sequence[Head], body: Sequence[Sequence[Cell]]) -> list[int]:
    """Characters of the widest cell of each column."""
    columns = zip(*body, strict=True) if body else [()] * len(top)
    return [
        max([len(head.part or head.group), *(len(cell.text) for cell in column)])
        for head, column in zip(top, columns, strict=True)
    ]


def _part(top: Sequence[Head], body: Sequence[Sequence[Cell]]) -> list[str]:
    """One tabular."""
    columns = "".join("l" if head.kind == "label" else "r" for head in top)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *_heads(top), r"\midrule"]
    lines += [_line([_cell(cell) for cell in line]) for line in body]
    return [_SCALED, *lines, r"\bottomrule", r"\end{tabular}}"]


def _heads(top: Sequence[Head]) -> list[str]:
    """Quantities over what stands below each: ours, published, difference."""
    over, rules, at = [], [], 1
    for (kind, group), found in groupby(top, key=lambda head: (head.kind == "label", head.group)):
        span = len(list(found))
        if kind:
            over += [escape(group)] * span
        else:
            over.append(rf"\multicolumn{{{span}}}{{c}}{{{escape(group)}}}")
            rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
        at += span
    lines = [_line(over)]
    if rules:
        lines += ["".join(rules), _line([escape(head.part) for head in top])]
    return lines


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.kind != "label" and cell.sort is not None:
        text = _SIGN.sub("$-$", text)
    return rf"\textbf{{{text}}}" if cell.strong else text


def _line(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def comment(text: str) -> str:
    """A line that is not printed."""
    return f"% {one_line(text)}"
