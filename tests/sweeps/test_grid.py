"""The grid of cells and the parts of it that can be picked."""

from __future__ import annotations

import pytest

from sharedenc.errors import SpecError
from sharedenc.spec import Cell
from sweeps.grid import full_grid, select

FOUR = ["resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121"]


def test_four_backbones_make_the_44_cells_of_the_study() -> None:
    names = [cell.name for cell in full_grid(FOUR)]
    assert len(names) == len(set(names)) == 44
    assert [n.removeprefix("resnet18/") for n in names if n.startswith("resnet18/")] == [
        "baseline/det",
        "baseline/seg",
        "swap-frozen/det",
        "swap-frozen/seg",
        "swap-bias/det",
        "swap-bias/seg",
        "share-frozen/det",
        "share-frozen/seg",
        "share-bias/det",
        "share-bias/seg",
        "dual",
    ]


def test_a_swap_pulls_in_the_other_tasks_baseline_once() -> None:
    cells = select(full_grid(FOUR), ["resnet18/swap-*/seg"])
    assert [cell.name for cell in cells] == [
        "resnet18/baseline/det",
        "resnet18/swap-frozen/seg",
        "resnet18/swap-bias/seg",
    ]


def test_every_selection_holds_what_its_swaps_need() -> None:
    for task in ("det", "seg"):
        cells = select(full_grid(["densenet121"], tasks=[task]))
        assert {c.source for c in cells if c.source} <= set(cells)
        assert Cell.parse("densenet121/dual") not in cells


@pytest.mark.parametrize(
    ("strategies", "freezes", "count"),
    [(["share"], ["frozen"], 2), (["baseline", "dual"], ["none"], 3), (["swap"], ["none"], 0)],
)
def test_axes_choose_a_part(strategies: list[str], freezes: list[str], count: int) -> None:
    assert len(full_grid(["resnet18"], strategies, freezes)) == count


def test_unknown_names_are_told_with_the_nearest_one() -> None:
    with pytest.raises(SpecError, match=r"'resnet81'.*Did you mean 'resnet18'"):
        full_grid(["resnet81"])
    with pytest.raises(SpecError, match=r"matches none of the study's 11 cells"):
        select(full_grid(["resnet18"]), ["densenet121/*"])
