"""Durations: the model against counted operations, and what is learned, by hand."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from sharedenc.models.build import build_network
from sharedenc.models.counting import training_flops
from sharedenc.models.freeze import apply_freeze
from sharedenc.spec import Cell, Recipe
from sweeps.brackets import Ladder
from sweeps.estimates import Estimates, Learned, comparable, under_ladder
from sweeps.flops import forward_cost, seconds_per_image, training_gflop
from tests.sweeps.searching import FACTS

IMAGES = (1000, 100, 200)
DUAL = Cell.parse("resnet18/dual")
SEG = Cell.parse("resnet18/baseline/seg")
OTHER = Cell.parse("densenet121/dual")


@dataclass(frozen=True)
class Planned:
    id: str
    cell: Cell
    recipe: Recipe = field(default_factory=Recipe)
    ladder: Ladder | None = None


@dataclass(frozen=True)
class Measured:
    cell: Cell
    seconds_per_epoch: float
    image_px: int = 320
    device: str = "gpu"
    numerics: dict[str, Any] = field(default_factory=dict)


FIXED = Recipe(epochs=12, early_stop_patience=0)


@pytest.mark.parametrize(
    "name",
    ["resnet18/baseline/det", "mobilenet_v3_large/dual", "mobilenet_v3_large/share-bias/seg"],
)
def test_the_table_is_what_the_counter_counts(name: str) -> None:
    cell = Cell.parse(name)
    with torch.device("meta"):
        network = build_network(cell.backbone, cell.tasks, 21, seed=0)
    apply_freeze(network.encoder, cell.freeze)
    assert training_gflop(cell) == pytest.approx(training_flops(network) / 1e9, rel=0.05)


def test_published_operations_per_step() -> None:
    # reference: GFLOP per image of a training step, 320 px, counted in another project
    for name, gflop in (
        ("resnet18/baseline/seg", 21.8),
        ("resnet18/share-bias/det", 14.6),
        ("resnet18/share-frozen/det", 7.66),
        ("efficientnet_v2_s/share-bias/det", 23.6),
        ("densenet121/baseline/seg", 34.4),
        ("mobilenet_v3_large/baseline/seg", 2.70),
    ):
        assert training_gflop(Cell.parse(name)) == pytest.approx(gflop, rel=0.04)
    assert training_gflop(DUAL, 640) == pytest.approx(4 * training_gflop(DUAL))


def test_a_mobile_network_is_bound_by_bandwidth() -> None:
    """With a seventh of the operations it takes more than half of the time."""
    recipe = Recipe()
    mobile, _ = seconds_per_image(Cell.parse("mobilenet_v3_large/dual"), recipe, "cuda")
    resnet, _ = seconds_per_image(DUAL, recipe, "cuda")
    assert mobile > resnet
    half, _ = seconds_per_image(DUAL, Recipe(precision="float32"), "cuda")
    assert half == pytest.approx(2 * resnet)


def test_an_unknown_backbone_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    known = forward_cost("resnet18")
    monkeypatch.delitem(__import__("sweeps.flops").flops.FORWARD, "resnet18")
    counted = forward_cost("resnet18")
    assert counted.encoder == pytest.approx(known.encoder, abs=1e-3)
    assert counted.det == pytest.approx(known.det, abs=1e-3)
    assert counted.traffic > 0


def test_a_measured_epoch_replaces_the_model() -> None:
    estimates = Estimates(
        [Planned("a", DUAL, FIXED)], IMAGES, device="cuda", measured=[Measured(DUAL, 77.0)] * 50
    )
    assert estimates.seconds_per_epoch(DUAL, FIXED) == pytest.approx(77.0, rel=0.02)
    assert estimates.epochs(DUAL, FIXED) == 12


def test_other_cells_of_a_backbone_learn_with_it_and_other_backbones_less() -> None:
    nodes = [Planned("a", DUAL, FIXED), Planned("b", SEG, FIXED), Planned("c", OTHER, FIXED)]
    estimates = Estimates(nodes, IMAGES, device="cuda")
    before = {n.id: estimates.seconds_per_epoch(n.cell, FIXED) for n in nodes}
    estimates.observe("a", 1, 10 * before["a"])
    after = {n.id: estimates.seconds_per_epoch(n.cell, FIXED) / before[n.id] for n in nodes}
    assert 8 < after["a"] < 10
    assert after["c"] < after["b"] < after["a"]
    assert estimates.pace_sigma(DUAL) < estimates.pace_sigma(SEG) < estimates.pace_sigma(OTHER)
    moved = estimates.works()
    assert set(moved) == {"b", "c"}  # what runs is not sorted any more
    assert estimates.works() == {}


def test_a_bracket_shortens_the_expected_search() -> None:
    # halving at 4 and 8 of 16: 4 + 4/2 + 8/4
    assert under_ladder(16, Ladder(rungs=(4, 8), factor=2)) == 8
    assert under_ladder(3, Ladder(rungs=(4, 8), factor=2)) == 3
    assert under_ladder(16, None) == 16


def test_epochs_with_early_stopping_lie_between_patience_and_budget() -> None:
    estimates = Estimates([Planned("a", DUAL)], IMAGES, device="cuda")
    # lognormal with median 60 and sigma 0.5 has the mean 60 exp(1/8) = 68
    assert estimates.epochs(DUAL, Recipe()) == pytest.approx(68, rel=0.03)
    assert estimates.epochs(DUAL, Recipe(epochs=30)) == pytest.approx(30, rel=0.03)
    assert estimates.epochs(DUAL, Recipe(epochs=10)) == 10
    assert estimates.epochs(DUAL, Recipe(scheduler="cosine", epochs=100)) == 100


def test_the_number_of_epochs_is_learned_without_being_fooled_by_the_short_ones() -> None:
    """Forty trials run side by side; when half have ended, those were the shorter ones."""
    draw = random.Random(1)
    truth = [max(26, round(draw.lognormvariate(math.log(120), 0.5))) for _ in range(200)]
    nodes = [Planned(str(i), DUAL) for i in range(200)]
    estimates = Estimates(nodes, IMAGES, device="cuda")
    now = sorted(truth)[100]
    for i, epochs in enumerate(truth):
        estimates.observe(str(i), min(epochs, now), 1.0)
        if epochs <= now:
            estimates.finished(str(i), epochs)
    estimates.works()
    mean = sum(truth) / 200
    short = sum(e for e in truth if e <= now) / sum(e <= now for e in truth)
    learned = estimates.epochs(DUAL, Recipe())
    assert abs(learned - mean) < 0.12 * mean
    assert learned > 1.3 * short


def test_trials_that_were_cut_say_nothing_of_epochs() -> None:
    estimates = Estimates([Planned("a", DUAL)], IMAGES, device="cuda")
    before = estimates.epochs(DUAL, Recipe())
    estimates.finished("a", 27, by_itself=False)
    assert estimates.epochs(DUAL, Recipe()) == before


def test_means_are_drawn_to_the_level_above() -> None:
    learned = Learned(weight=1.0)
    kind = ("resnet18", "dual")
    learned.set("a", kind, 1.0)
    # all: 1/1.1; backbone: (0.909 + 1)/2; kind: (0.955 + 1)/2
    assert learned.mean(kind) == pytest.approx(0.977, abs=1e-3)
    learned.set("a", kind, 0.0)
    assert learned.mean(kind) == 0.0
    assert learned.mean(("densenet121", "dual"), prior=2.2) == pytest.approx(0.2)
    assert (learned.count(kind), learned.count(("x", "y"))) == (1, 0)
    learned.set("b", kind, 2.0)
    spread, freedom = learned.within()
    assert (spread, freedom) == (pytest.approx(math.sqrt(2)), 1)


def test_a_probe_gives_seconds_per_image() -> None:
    estimates = Estimates(
        [Planned("a", DUAL, FIXED)], IMAGES, device="cuda", probe={DUAL: (0.05, 0.01)}
    )
    # 1000 images of 50 ms and 100 of 10 ms: 51 s, drawn a little to the model's few seconds
    model = Estimates([Planned("a", DUAL, FIXED)], IMAGES, device="cuda")
    low = model.seconds_per_epoch(DUAL, FIXED)
    assert low < 5
    assert 35 < estimates.seconds_per_epoch(DUAL, FIXED) < 51


def test_measurements_of_other_devices_and_precisions_are_left_out() -> None:
    numerics = {"device": "cuda", "precision": "bfloat16", "cpu_threads": "0"}
    mine = Measured(DUAL, 1.0, device="H100", numerics=numerics)
    other = Measured(DUAL, 1.0, device="A100", numerics=numerics)
    slow = Measured(DUAL, 1.0, device="H100", numerics={**numerics, "precision": "float32"})
    cpu = Measured(DUAL, 1.0, device="Xeon", numerics={**numerics, "device": "cpu"})
    rows = [mine, other, slow, cpu]
    there = replace(FACTS, device_kind="cuda")
    recipe = Recipe(precision="bfloat16")
    assert comparable(rows, there, recipe, "H100") == [mine]
    # On a cluster nobody knows which GPU it will be.
    assert comparable(rows, there, recipe) == [mine, other]
