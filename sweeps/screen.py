"""One screen of a running sweep: what runs, the grid, the searches, what failed, what waits.

Pure: rows in, lines of text out. Everything fits the terminal; of what does not, the number is
said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from math import isfinite, isnan
from typing import TYPE_CHECKING

from sweeps.graph import SEARCH_STAGE
from sweeps.grid_view import MARKS, ORDER, STYLES, Mark, collect, draw, fitted, mark_of, tail
from sweeps.wording import (
    duration,
    epoch_text,
    failure_text,
    headline,
    retry_text,
    row_time_left,
    score_text,
)

if TYPE_CHECKING:
    from rich.text import Text

    from sweeps.state import Row, SweepState

    Line = tuple[Text, int]
    """A line and how many trials it tells of."""

# Rows whose reason for waiting is looked up for one frame.
ASKED = 200
LEFT_OUT = {
    "running": "running",
    "searches": "searches",
    "failed": "failed or skipped",
    "waiting": "waiting",
}
# A grid with scores may take all but this many lines.
_BESIDE = 9
_ROOMY = 34


def screen(
    state: SweepState,
    width: int,
    height: int,
    *,
    works: Mapping[str, float] | None = None,
    marks: Mapping[Mark, str] = MARKS,
) -> Text:
    """The whole screen.

    Args:
        state: The sweep.
        width: Columns; no line is longer.
        height: Lines; there are no more.
        works: Estimated seconds by trial, where there are estimates.
        marks: A sign per state, for terminals without these letters.
    """
    from rich.text import Text

    rows = list(state.rows.values())
    cells = [row for row in rows if row.node.stage != SEARCH_STAGE]
    grid: list[Text] = []
    if cells:
        collected, methods = collect(cells)
        grid = draw(collected, methods, width, max(height - _BESIDE, 3), marks=marks)
        grid.append(_legend(rows, width, marks))
    sections: dict[str, list[Line]] = {
        "running": _running(state.running, width),
        "searches": _searches(rows, width),
        "failed": _failed(rows, width, marks),
        "waiting": _waiting(state, rows, width, marks),
    }
    gap = 1 if height >= _ROOMY else 0
    wants = {name: len(lines) for name, lines in sections.items() if lines}
    shares = share(wants, height - 1 - len(grid) - gap * (len(wants) + bool(grid)))
    head = fitted(headline(state, works), width)
    lines = [Text(head, style="bold")]
    for name in ("running", "grid", "searches", "failed", "waiting"):
        if name == "grid":
            part = grid
        else:
            part = _cut(sections[name], shares.get(name, 0), name)
        if part and gap:
            lines.append(Text(""))
        lines += part
    return Text("\n").join(lines[:height])


def share(wants: Mapping[str, int], lines: int) -> dict[str, int]:
    """Deal out lines one by one until all wants are met or none are left."""
    given = dict.fromkeys(wants, 0)
    while lines > 0 and any(given[name] < wants[name] for name in wants):
        for name in wants:
            if given[name] < wants[name] and lines > 0:
                given[name] += 1
                lines -= 1
    return given


def _cut(lines: Sequence[Line], room: int, name: str) -> list[Text]:
    """As many lines as there is room for; the last one then says how many trials are left out."""
    from rich.text import Text

    if len(lines) <= room:
        return [line for line, _ in lines]
    if room <= 0:
        return []
    left_out = sum(count for _, count in lines[room - 1 :])
    more = f"{left_out} {LEFT_OUT[name]}" if room == 1 else f"and {left_out} more {LEFT_OUT[name]}"
    return [*(line for line, _ in lines[: room - 1]), Text(more, style="dim")]


def _legend(rows: Sequence[Row], width: int, marks: Mapping[Mark, str]) -> Text:
    from rich.text import Text

    seen = {mark_of(row) for row in rows}
    text = Text()
    for mark in (mark for mark in reversed(ORDER) if mark in seen):
        text.append(f"{marks[mark]} {mark}  ", style=STYLES[mark])
    text.truncate(width)
    return text


def _running(rows: Sequence[Row], width: int) -> list[Line]:
    """Trial, epoch, best score, speed, the time left should it run all its epochs, its group."""
    from rich.text import Text

    columns = [[row.node.id for row in rows]]
    columns.append([f"epoch {epoch_text(row)}" for row in rows])
    columns.append([score_text(row) for row in rows])
    columns.append([f"{row.speed:.0f} img/s" if isfinite(row.speed) else "" for row in rows])
    columns.append([_left(row) for row in rows])
    columns.append(
        [f"attempt {row.attempts + row.preemptions}" if _again(row) else "" for row in rows]
    )
    columns.append(_groups(rows))
    widths = [max((len(text) for text in column), default=0) for column in columns]
    beside = sum(w + 2 for w in widths[1:] if w)
    widths[0] = max(min(widths[0], width - beside), 8)
    lines: list[Line] = []
    for texts in zip(*columns, strict=True):
        parts = [tail(texts[0], widths[0]).ljust(widths[0])]
        parts += [text.rjust(w) for text, w in zip(texts[1:], widths[1:], strict=True) if w]
        lines.append((Text("  ".join(parts).rstrip()[:width], style=STYLES["running"]), 1))
    return lines


def _groups(rows: Sequence[Row]) -> list[str]:
    """Which rows train together over one encoder: a number for each such group."""
    sizes = Counter(row.together for row in rows if row.together)
    numbers: dict[tuple[str, ...], int] = {}
    texts = []
    for row in rows:
        # One that is tried again elsewhere has left the group, which still names it.
        others = sizes[row.together] > 1
        number = numbers.setdefault(row.together, len(numbers) + 1) if others else 0
        texts.append(f"together {number}" if number else "")
    return texts


def _again(row: Row) -> bool:
    return row.attempts + row.preemptions > 1


def _left(row: Row) -> str:
    left = row_time_left(row)
    return f"{duration(left)} left" if left is not None else f"for {duration(row.seconds)}"


def _searches(rows: Sequence[Row], width: int) -> list[Line]:
    """One line per search: how far it is and the best rate so far."""
    from rich.text import Text

    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.node.stage == SEARCH_STAGE:
            found.setdefault(row.node.search or row.node.group or row.node.id, []).append(row)
    ranked = sorted(found.values(), key=lambda group: not any(r.state == "running" for r in group))
    return [(Text(fitted(search_line(group), width)), 1) for group in ranked]


def search_line(rows: Sequence[Row]) -> str:
    """One search: ``search resnet18/baseline/seg: 3/8 ended (1 cut), 2 running, best 0.0003``."""
    names = list(dict.fromkeys(row.node.cell.name for row in rows))
    backbone, _, _ = names[0].partition("/")
    same = all(name.startswith(f"{backbone}/") for name in names)
    label = names[0]
    if len(names) > 1:
        tails = (name.removeprefix(f"{backbone}/") for name in names)
        label = f"{backbone}/({', '.join(tails)})" if same else ", ".join(names)
    counts = Counter(row.state for row in rows)
    ended = sum(counts[state] for state in ("done", "stopped", "failed", "skipped"))
    text = f"search {label}: {ended}/{len(rows)} ended"
    if counts["stopped"]:
        text += f" ({counts['stopped']} cut)"
    text += f", {counts['running']} running" if counts["running"] else ""
    text += f", {counts['failed']} failed" if counts["failed"] else ""
    scored = [row for row in rows if row.trial is not None and not isnan(row.score)]
    if scored and len(names) == 1:
        best = max(scored, key=lambda row: row.score)
        assert best.trial is not None
        text += f", best {best.trial.lr:.3g} ({best.score:.3f})"
    return text


def _failed(rows: Sequence[Row], width: int, marks: Mapping[Mark, str]) -> list[Line]:
    lines = [
        _line("failed", failure_text(row), width, marks) for row in rows if row.state == "failed"
    ]
    skipped = [row for row in rows if row.state == "skipped"]
    for reason, group in _grouped(skipped, lambda row: row.reason):
        lines.append(
            _line("skipped", f"{_names(group)} skipped: {reason}", width, marks, len(group))
        )
    return lines


def _waiting(
    state: SweepState, rows: Sequence[Row], width: int, marks: Mapping[Mark, str]
) -> list[Line]:
    """What is tried again and when; then what waits, most of one reason first."""
    waiting = [row for row in rows if row.state == "waiting"]
    again = [row for row in waiting if mark_of(row) == "again"]
    lines = [
        _line("again", f"{row.node.id}: {retry_text(row, state)}", width, marks) for row in again
    ]
    asked = list(islice((row for row in waiting if mark_of(row) == "waiting"), ASKED))
    for reason, group in _grouped(asked, lambda row: state.waiting_for(row.node.id)):
        text = f"{_names(group)} {'waits' if len(group) == 1 else 'wait'}"
        if reason:
            # A reason names a thing to wait for, or says why everything of its kind waits.
            whole = reason == state.stopping or reason.startswith("held back")
            text += f": {reason}" if whole else f" for {reason}"
        lines.append(_line("waiting", text, width, marks, len(group)))
    left = len(waiting) - len(again) - len(asked)
    if left:
        lines.append(_line("waiting", f"{left} more wait", width, marks, left))
    return lines


def _line(mark: Mark, text: str, width: int, marks: Mapping[Mark, str], count: int = 1) -> Line:
    from rich.text import Text

    return Text(fitted(f"{marks[mark]} {text}", width), style=STYLES[mark]), count


def _grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _names(rows: Sequence[Row]) -> str:
    return rows[0].node.id if len(rows) == 1 else f"{len(rows)} trials"
