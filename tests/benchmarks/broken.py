"""A benchmark whose sides disagree."""

from __future__ import annotations

from typing import Any

from benchmarks.protocol import Side, interleaved


def run(rounds: int) -> list[dict[str, Any]]:
    interleaved(lambda: Side(1.0, 1), lambda: Side(1.0, 2), rounds)
    return []
