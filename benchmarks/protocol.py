"""How a ratio is measured on a noisy machine, and what one row of results says.

Reference and ours run in turns (A B A B ...), each figure is the minimum of its rounds, and the
answers are compared in the same run: a faster wrong answer is no result. A row carries the load
average during the run, so that a reader can judge how quiet the machine was.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# Libraries whose version may move a figure.
LIBRARIES = (
    "torch",
    "torchvision",
    "ray",
    "mlflow",
    "numpy",
    "optuna",
    "pycocotools",
    "faster-coco-eval",
    "hotcoco",
    "opencv-python-headless",
    "onnxruntime",
    "pillow",
)


class Unequal(AssertionError):
    """The two sides gave different answers, so that their times cannot be compared."""


@dataclass(frozen=True)
class Side:
    """What one round of one side measured: its figure (less is better) and its answer."""

    figure: float
    answer: Any


@dataclass(frozen=True)
class Duel:
    """The best figure of each side over the rounds; ``load`` is the highest load average seen."""

    reference: float
    ours: float
    rounds: int
    load: float


def interleaved(
    reference: Callable[[], Side],
    ours: Callable[[], Side],
    rounds: int,
    *,
    same: Callable[[Any, Any], bool] = lambda a, b: bool(a == b),
) -> Duel:
    """Run both in turns and compare their answers in every round.

    Args:
        reference: One round of what is compared with.
        ours: One round of ours.
        rounds: Turns of each; at least 1, 5 for a figure to publish.
        same: Whether two answers are equal, or near enough where the benchmark says so.

    Raises:
        Unequal: they are not.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least one is needed")
    best = [float("inf"), float("inf")]
    load = load_average()
    for _ in range(rounds):
        sides = [reference(), ours()]
        if not same(sides[0].answer, sides[1].answer):
            raise Unequal(f"reference: {sides[0].answer!r}; ours: {sides[1].answer!r}")
        best = [min(known, side.figure) for known, side in zip(best, sides, strict=True)]
        load = max(load, load_average())
    return Duel(best[0], best[1], rounds, load)


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> Side:
    """One round of a function: its time on ``clock`` and what it returned."""
    start = clock()
    answer = work()
    return Side(clock() - start, answer)


def result(
    id: str, case: str, duel: Duel, *, unit: str, check: str, limit: float | None = None
) -> dict[str, Any]:
    """One row of results.

    Args:
        id: `R8` and so on.
        case: What was run, with its size.
        duel: The two figures.
        unit: Of both figures and the limit.
        check: Which equality was asserted in the same run.
        limit: The figure that the machine allows at best, measured or computed.

    Returns:
        ``{id, case, unit, reference, ours, ratio, limit, limit_share, check, rounds, load, cpu,
        versions}``; ``ratio`` is how many times less ours takes, ``limit_share`` is 1 at the
        limit.
    """
    return {
        "id": id,
        "case": case,
        "unit": unit,
        "reference": duel.reference,
        "ours": duel.ours,
        "ratio": duel.reference / duel.ours,
        "limit": limit,
        "limit_share": None if limit is None else limit / duel.ours,
        "check": check,
        "rounds": duel.rounds,
        "load": duel.load,
        "cpu": cpu(),
        "versions": versions(),
    }


def load_average() -> float:
    """Processes that ran or waited over the last minute."""
    return round(os.getloadavg()[0], 2)


@cache
def cpu() -> str:
    """The processor's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


@cache
def versions() -> dict[str, str]:
    """Python and the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for people: both figures, their ratio and the share of the limit."""
    heads = ("id", "case", "reference", "ours", "ratio", "limit share", "load", "equal")
    lines = [heads]
    for row in rows:
        share = row.get("limit_share")
        unit = row.get("unit", "")
        lines.append(
            (
                str(row["id"]),
                str(row["case"]),
                _figure(row["reference"], unit),
                _figure(row["ours"], unit),
                f"{row['ratio']:.2f}x",
                "-" if share is None else f"{100 * share:.1f} %",
                f"{row['load']:.1f}",
                str(row["check"]),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _figure(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.4g} {unit}".rstrip()
