"""What a self-test is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharedenc.errors import SpecError, check_choice
from sharedenc.spec import BACKBONES, Precision

DEVICES = ("cuda", "cpu")


@dataclass(frozen=True, kw_only=True)
class SelftestSettings:
    """Settings of a self-test; nothing in here names a person or a machine.

    ``steps`` are those of each training, ``image_px`` and ``batch_size`` the recipe's,
    ``budget_minutes`` after which no check is started, ``deadline_s`` when one that hangs is
    ended. ``quick`` leaves out share and swap.
    """

    data: Path
    out: Path
    device: str = "cuda"
    steps: int = 50
    quick: bool = False
    backbones: tuple[str, ...] = field(default_factory=lambda: tuple(BACKBONES))
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    image_px: int = 320
    batch_size: int = 32
    val_images: int = 32
    workers: int = 0
    weights: str = "none"
    budget_minutes: float = 60.0
    deadline_s: float = 900.0
    cache_dir: Path | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("device", self.device.partition(":")[0], DEVICES)
        for name in self.backbones:
            check_choice("backbone", name, BACKBONES)
        if not self.backbones:
            raise SpecError("backbones is empty; give at least one")
        if self.steps < 2:
            raise SpecError(f"steps={self.steps} must be at least 2: a loss must have time to fall")
        if self.batch_size < 2:
            raise SpecError(f"batch_size={self.batch_size} must be at least 2 (batch norm)")
        if self.budget_minutes <= 0:
            raise SpecError(f"budget_minutes={self.budget_minutes} must be above 0")

    def shown(self) -> dict[str, Any]:
        """Settings for the report, without folders."""
        return {
            "device": self.device,
            "steps": self.steps,
            "quick": self.quick,
            "backbones": list(self.backbones),
            "precisions": list(self.precisions),
            "image_px": self.image_px,
            "batch_size": self.batch_size,
            "workers": self.workers,
            "weights": self.weights if self.weights in ("none", "default") else "files",
            "budget_minutes": self.budget_minutes,
        }
