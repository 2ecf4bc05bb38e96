"""A benchmark whose ratio is 2."""

from __future__ import annotations

from typing import Any

from benchmarks.protocol import Side, interleaved, result


def run(rounds: int) -> list[dict[str, Any]]:
    duel = interleaved(lambda: Side(4.0, 1), lambda: Side(2.0, 1), rounds)
    return [result("R1", "made up", duel, unit="ms", check="equal")]
