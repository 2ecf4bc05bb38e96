"""What a pass over the registry came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Summary:
    """What was done; it is what ``once --json`` prints.

    `elsewhere` counts jobs that another agent of this device had, `retried` tries that failed and
    were repeated; `lacking` counts versions by precision that cannot be timed here.
    """

    device: str
    timed: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    lacking: dict[str, int] = field(default_factory=dict)
    already_timed: int = 0
    elsewhere: int = 0
    retried: int = 0
    sent: int = 0
    waiting: int = 0
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """1 if a file was refused, a model has no good answer or a result is not sent; else 0."""
        bad = [row for row in self.timed if row["verdict"] in ("failed", "wrong")]
        return 1 if self.refused or bad or self.waiting else 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}
