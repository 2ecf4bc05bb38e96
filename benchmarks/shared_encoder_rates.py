"""R5: `shared_encoder` with both tasks at four learning rates in one pass of their encoder."""

from __future__ import annotations

from typing import Any

from benchmarks.shared_encoder import Head, rows
from sharedenc.spec import TASKS

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
HEADS = [Head(task, lr) for task in TASKS for lr in LEARNING_RATES]


def run(rounds: int) -> list[dict[str, Any]]:
    """A row per backbone."""
    return rows("R5", "det and seg at four rates", HEADS, rounds)
