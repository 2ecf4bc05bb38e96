"""What a check of one cell gives, as a row; no torch in here."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sharedenc.errors import FailureKind
from sharedenc.training.job import failure_kind

MAX_TRACEBACK = 4000


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What checking one cell gave.

    ``kind``, ``error``, ``reason``, ``traceback`` and ``stage`` say how and where it failed.
    ``step_s`` is the time of a training step, data loading included, the first epoch left out;
    ``val_s_per_image`` that of validation. Both are scaled to the recipe's batch and image size
    where the check ran with less. ``stages`` are seconds of build, train, validate, checkpoint,
    reload, resume, export. ``checkpoint_bytes`` and ``onnx_bytes`` are sizes of files.
    ``remembered``: passed before, with nothing changed since.
    """

    cell: str
    ok: bool
    kind: FailureKind | None = None
    error: str = ""
    reason: str = ""
    traceback: str = ""
    stage: str = ""
    step_s: float | None = None
    val_s_per_image: float | None = None
    peak_memory_bytes: int | None = None
    stages: dict[str, float] = field(default_factory=dict)
    checkpoint_bytes: int | None = None
    onnx_bytes: int | None = None
    remembered: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Checked:
        """Inverse of `to_dict`; other keys are left alone."""
        names = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})


def failed(cell: str, error: BaseException, stage: str = "") -> Checked:
    """The row of a cell whose check raised ``error``."""
    trace = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
    return Checked(
        cell=cell,
        ok=False,
        kind=failure_kind(error),
        error=type(error).__name__,
        reason=str(error) or type(error).__name__,
        traceback=trace,
        stage=stage,
    )
