"""Jobs of small trials on the shared synthetic pack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sharedenc.spec import Cell, Recipe, Trial, installed_torch, resolve_numerics
from sharedenc.training.job import TrialJob

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

MakeJob = Callable[..., TrialJob]


@pytest.fixture
def make_job(tiny_pack: PackedDataset, tmp_path: Path) -> MakeJob:
    def make(cell: str, *, weights_digest: str = "none", lr: float = 1e-3, **more: Any) -> TrialJob:
        parsed = Cell.parse(cell)
        settings = {"image_px": 64, "batch_size": 4, "calibration_images": 8}
        recipe = Recipe.from_dict({**settings, "precision": "float32", **more})
        trial = Trial(
            cell=parsed,
            recipe=recipe,
            lr=lr,
            seed=0,
            data_digest=tiny_pack.digest,
            weights_digest=weights_digest,
            numerics=resolve_numerics(recipe, parsed.backbone, "cpu", installed_torch()),
            parent_key=None if parsed.source is None else "0" * 64,
        )
        return TrialJob(
            trial=trial,
            pack=tiny_pack.root,
            weights="none",
            parent=None,
            work_dir=tmp_path / "work",
            device="cpu",
        )

    return make
