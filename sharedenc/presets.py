"""Presets are data: recipe settings and study settings under a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sharedenc.errors import check_choice


@dataclass(frozen=True)
class Preset:
    """Settings that differ from the defaults of `Recipe` and of a study."""

    about: str
    recipe: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)


DEFAULT_PRESET = "standard"

PRESETS: dict[str, Preset] = {
    "standard": Preset(
        about="the reference study's recipe with its published learning rates (the default)",
    ),
    "thesis": Preset(
        about="the same recipe in float32; learning rates are searched once per backbone, on its "
        "baselines",
        recipe={"precision": "float32"},
        study={"lr_search": "backbone"},
    ),
    "quick": Preset(
        about="a first look at your own data: 12 epochs, batch 16, patience scaled down",
        recipe={
            "epochs": 12,
            "batch_size": 16,
            "plateau_patience": 3,
            "early_stop_patience": 6,
        },
        study={"int8_images": 32, "accuracy_images": 500},
    ),
    "demo": Preset(
        about="the whole loop in minutes on two cores: synthetic pictures, one epoch",
        recipe={
            "epochs": 1,
            "batch_size": 8,
            "calibration_images": 32,
        },
        study={
            "weights": "none",
            "synthetic_images": [64, 16, 32],
            "search_cell": "mobilenet_v3_large/share-frozen/seg",
            "search_lrs": [1e-4, 4e-4, 1.6e-3, 6.4e-3],
            "search_epochs": 4,
            "search_rungs": [1, 2],
            "agent": True,
            "int8_images": 16,
            "accuracy_images": 16,
        },
    ),
}


def preset(name: str) -> Preset:
    """Look a preset up by name; unknown names raise `SpecError` with the nearest one."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name]
