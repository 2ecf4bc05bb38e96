"""Which trials may train together over one encoder pass. No torch in here.

A frozen encoder makes the same maps of the same pictures for every head that is trained on it, so
that trials which agree on pictures and encoder can share both; see `sharedenc.training.together`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sharedenc.spec import BACKBONES, Trial

# What a recipe says of a head and its training alone.
_OF_A_HEAD = {
    "epochs",
    "weight_decay",
    "beta1",
    "beta2",
    "scheduler",
    "plateau_factor",
    "plateau_patience",
    "early_stop_patience",
    "grad_clip",
    "alpha",
    "score_threshold",
    "nms_iou",
    "top_k",
    "detections_per_image",
}
# What is said better elsewhere in the key, or says nothing about an encoder that stays as it is.
_RESOLVED = {
    "precision",
    "memory_format",
    "tf32",
    "cpu_threads",
    "sample_path",
    "compile_loss",
    "bn_mode",
    "bias_set",
}


def fusion_key(trial: Trial, parent_key: str | None) -> str | None:
    """Digest of what decides the pictures that a trial sees and what its encoder makes of them.

    Trials of equal keys may train together, whatever their tasks, learning rates and lengths.
    None for a trial whose encoder changes while it trains: its weights do (``freeze`` is not
    ``frozen``), or its running statistics (``bn_mode`` is not ``eval``).

    Args:
        trial: Data, recipe, seed, numerics and results versions all count.
        parent_key: The trial that gives a swap its encoder; None for any other cell.
    """
    cell, recipe = trial.cell, trial.recipe
    if cell.freeze != "frozen" or recipe.bn_mode != "eval":
        return None
    settings = {
        name: value
        for name, value in recipe.to_dict().items()
        if name not in _OF_A_HEAD | _RESOLVED
    }
    if cell.strategy == "swap":
        encoder: dict[str, Any] = {"parent": parent_key}
    else:
        encoder = {"weights": trial.weights_digest}
    if cell.strategy == "swap" or trial.weights_digest != "none":
        del settings["calibration_images"]
    content = {
        "backbone": cell.backbone,
        "backbone_digest": BACKBONES[cell.backbone].digest,
        "encoder": encoder,
        "data": trial.data_digest,
        "seed": trial.seed,
        "recipe": settings,
        "numerics": trial.numerics.content(),
        "components": dict(trial.components),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
