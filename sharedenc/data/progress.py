"""Progress of long work on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 10.0
Advance = Callable[[int], None]


@contextmanager
def progress(
    title: str, total: int | None, *, unit: str = "", shown: bool = True
) -> Iterator[Advance]:
    """Show how far ``title`` is; the block calls the given function with every step's size.

    Args:
        total: Size of the whole, if known.
        unit: "bytes" shows sizes and speed; anything else is a count.
        shown: False shows nothing.
    """
    if not shown:
        yield lambda step: None
    elif sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        yield _lines(title, total, unit)


@contextmanager
def _bar(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    columns = [TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda step: bar.advance(task, step)


def _lines(title: str, total: int | None, unit: str) -> Advance:
    done = 0
    told_s = time.monotonic()

    def advance(step: int) -> None:
        nonlocal done, told_s
        done += step
        now_s = time.monotonic()
        if now_s - told_s >= LINE_EVERY_S or done == total:
            told_s = now_s
            of = f" of {amount(total, unit)}" if total else ""
            print(f"{title}: {amount(done, unit)}{of}", file=sys.stderr, flush=True)

    return advance


def amount(value: int, unit: str = "bytes") -> str:
    """Return a count, or a size in readable units."""
    if unit != "bytes":
        return f"{value} {unit}".strip()
    size = float(value)
    for name in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {name}"
        size /= 1000
    return f"{size:.3g} GB"
