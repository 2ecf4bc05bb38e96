"""Made-up studies whose trials end at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sharedenc.spec import Recipe
from sweeps.graph import Facts, Node, expand
from sweeps.studies import Study

MakeNodes = Callable[..., list[Node]]


@pytest.fixture
def facts() -> Facts:
    """Facts of a data set and a machine that do not exist."""
    names = ("resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121")
    return Facts(
        data_name="made-up",
        data_digest="d" * 64,
        tasks=("det", "seg"),
        images=(64, 16, 32),
        weights=dict.fromkeys(names, "none"),
        device_kind="cpu",
        torch_version="2.14",
    )


@pytest.fixture
def make_nodes(facts: Facts) -> MakeNodes:
    """Trials of a study given by its settings."""

    def make(**settings: object) -> list[Node]:
        settings.setdefault("kind", "full-grid")
        if "search_cell" in settings and "search_trials" not in settings:
            settings.setdefault("search_lrs", (1e-4, 2e-4, 4e-4, 8e-4))
        settings.setdefault("recipe", Recipe(epochs=2, batch_size=2, image_px=64))
        return expand(Study(**settings), facts)  # type: ignore[arg-type]

    return make
