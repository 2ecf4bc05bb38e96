"""Which trials may train together, from their values alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest

from sharedenc.spec import CHOICES, Cell, Numerics, Recipe, Trial
from sharedenc.training.fusion import fusion_key

NUMERICS = Numerics(
    device="cpu",
    precision="float32",
    memory_format="contiguous",
    tf32=False,
    cpu_threads=1,
    sample_path="fast",
    torch="2.14",
)
FREE = {
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
# `auto` and its like count by what they are resolved to; a frozen encoder has no trained biases.
ELSEWHERE = {
    "precision",
    "memory_format",
    "tf32",
    "cpu_threads",
    "sample_path",
    "compile_loss",
    "bias_set",
}
PARENT = "a" * 64


def trial(cell: str, **more: Any) -> Trial:
    parsed = Cell.parse(cell)
    values: dict[str, Any] = {
        "cell": parsed,
        "recipe": Recipe(),
        "lr": 1e-3,
        "seed": 0,
        "data_digest": "d" * 64,
        "weights_digest": "none",
        "numerics": NUMERICS,
        "parent_key": PARENT if parsed.source else None,
    }
    return Trial(**values | more)


def key(cell: str, **more: Any) -> str | None:
    made = trial(cell, **more)
    return fusion_key(made, made.parent_key)


def changed(name: str) -> Recipe:
    """The default recipe with one field at another value that is allowed."""
    before: Any = getattr(Recipe(), name)
    after: Any = {"image_px": 352, "blur_kernel": 7}.get(name)
    if name in CHOICES:
        after = next(choice for choice in CHOICES[name] if choice != before)
    elif isinstance(before, bool):
        after = not before
    elif after is None:
        after = before + 1 if isinstance(before, int) else 0.9 * before + 0.013
    return replace(Recipe(), **{name: after})


SHARE = "resnet18/share-frozen/det"


def test_tasks_and_learning_rates_of_one_shared_encoder_train_together() -> None:
    cells = (SHARE, "resnet18/share-frozen/seg", "resnet18/dual-frozen")
    keys = {key(cell, lr=lr) for cell in cells for lr in (1e-4, 1e-3)}
    assert len(keys) == 1
    (only,) = keys
    assert only is not None
    assert len(only) == 64


@pytest.mark.parametrize(
    "cell",
    ["resnet18/baseline/det", "resnet18/dual", "resnet18/share-bias/seg", "resnet18/swap-bias/det"],
)
def test_an_encoder_that_trains_is_trained_alone(cell: str) -> None:
    assert key(cell) is None


def test_an_encoder_whose_statistics_move_is_trained_alone() -> None:
    assert key(SHARE, recipe=Recipe(bn_mode="train")) is None


@pytest.mark.parametrize("name", sorted(f.name for f in fields(Recipe) if f.name != "bn_mode"))
def test_each_setting_counts_unless_it_is_a_heads_own(name: str) -> None:
    assert changed(name) != Recipe()
    same = key(SHARE, recipe=changed(name)) == key(SHARE)
    assert same == (name in FREE | ELSEWHERE)


@pytest.mark.parametrize(
    "more",
    [
        {"seed": 1},
        {"data_digest": "e" * 64},
        {"weights_digest": "w" * 64},
        {"numerics": replace(NUMERICS, precision="bfloat16")},
        {"numerics": replace(NUMERICS, memory_format="channels_last")},
        {"components": {"transforms": 9}},
    ],
)
def test_whatever_decides_pictures_or_maps_counts(more: dict[str, Any]) -> None:
    assert key(SHARE, **more) != key(SHARE)
    assert key(SHARE, **more) is not None


def test_a_swap_counts_by_the_trial_that_gave_it_its_encoder() -> None:
    swap = "resnet18/swap-frozen/seg"
    assert key(swap) != key("resnet18/share-frozen/seg")
    assert key(swap) != key(swap, parent_key="b" * 64)
    # Nothing of its own initial weights is left in it.
    assert key(swap) == key(swap, weights_digest="w" * 64)
    assert key(swap, recipe=Recipe(calibration_images=8)) == key(swap)


def test_calibration_counts_for_random_weights_only() -> None:
    few = Recipe(calibration_images=8)
    assert key(SHARE, recipe=few) != key(SHARE)
    assert key(SHARE, recipe=few, weights_digest="w") == key(SHARE, weights_digest="w")


def test_importing_it_does_not_import_torch() -> None:
    check = "import sys, sharedenc.training.fusion; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
