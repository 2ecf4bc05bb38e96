"""The plan before anything runs."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace

import pytest

from sharedenc.spec import Cell, Recipe
from sweeps import fusion
from sweeps.estimates import Estimates
from sweeps.graph import Node
from sweeps.order import Demand, Machine
from sweeps.price import Price, price, with_works
from sweeps.price_text import hours_of, plan_text
from sweeps.resources import GIB, MEMBER_BYTES
from sweeps.state import Settled

GPU = Demand(cpus=1, gpus=1)
IMAGES = (1000, 100, 200)
FIXED = Recipe(epochs=10, early_stop_patience=0)
BASE = "resnet18/baseline/det"
SWAP = "resnet18/swap-frozen/seg"


@dataclass(frozen=True)
class Measured:
    cell: Cell
    seconds_per_epoch: float
    image_px: int = 320


@dataclass(frozen=True)
class Probed:
    cell: str
    step_s: float | None
    val_s_per_image: float | None


def node(name: str, cell: str, recipe: Recipe = FIXED, **more: object) -> Node:
    values: dict[str, object] = {
        "stage": Cell.parse(cell).strategy,
        "seed": 0,
        "trial": None,
        "demand": GPU,
        **more,
    }
    return Node(id=name, cell=Cell.parse(cell), recipe=recipe, **values)  # type: ignore[arg-type]


def settled(state: str = "done") -> Settled:
    return Settled(
        state=state,  # type: ignore[arg-type]
        reason="",
        score=0.5,
        run_id="r",
        reused="study",
        attempts=1,
    )


def measured(seconds: float, *cells: str) -> list[Measured]:
    return [Measured(Cell.parse(cell), seconds) for cell in cells for _ in range(40)]


def priced(
    nodes: list[Node],
    rows: list[Measured],
    devices: int = 2,
    images: tuple[int, int, int] = IMAGES,
    memory: int = 0,
    **more: object,
) -> Price:
    estimates = Estimates(nodes, images, device="cuda", measured=rows)
    machines = [Machine(cpus=devices, gpus=devices, memory=memory)]
    states = more.pop("states", {})
    return price("s", nodes, states, estimates, machines, measured=rows, **more)  # type: ignore[arg-type]


def test_hours_are_epochs_times_measured_seconds() -> None:
    nodes = [node("base", BASE), node("swap", SWAP, needs=("base",))]
    plan = priced(nodes, measured(360.0, BASE, SWAP))
    # 2 trials x 10 epochs x 0.1 h; the test of 200 images and the start add a little
    assert plan.gpu_hours.expected == pytest.approx(2.0, rel=0.03)
    assert plan.gpu_hours.low <= plan.gpu_hours.expected <= plan.gpu_hours.high
    assert plan.gpu_hours.high < 1.05 * plan.gpu_hours.low
    # one after the other, although there are two devices
    assert plan.wall_hours == pytest.approx(2.0, rel=0.03)
    assert plan.devices == 1
    assert plan.rests_on == "epochs measured in earlier runs"
    assert (plan.trials, plan.reused, plan.exports) == (2, 0, 1)


def test_independent_trials_share_the_devices() -> None:
    nodes = [node(str(i), BASE) for i in range(4)]
    plan = priced(nodes, measured(360.0, BASE))
    assert plan.gpu_hours.expected == pytest.approx(4.0, rel=0.03)
    assert plan.wall_hours == pytest.approx(2.0, rel=0.03)
    assert plan.devices == 2


def test_what_is_there_costs_nothing_and_says_so() -> None:
    nodes = [node("base", BASE), node("swap", SWAP, needs=("base",))]
    plan = priced(
        nodes,
        measured(360.0, BASE, SWAP),
        states={"base": settled()},
        why_not={"swap": "recipe.epochs 12 -> 24"},
    )
    assert plan.gpu_hours.expected == pytest.approx(1.0, rel=0.03)
    base, swap = plan.cells
    assert (base.state, base.reused, base.why_not, base.gpu_hours) == ("done", True, "", 0.0)
    assert (swap.state, swap.reused, swap.why_not) == ("waiting", False, "recipe.epochs 12 -> 24")
    nothing = priced(nodes, [], states={"base": settled(), "swap": settled()})
    assert nothing.gpu_hours.expected == nothing.wall_hours == nothing.disk_gib == 0
    assert nothing.rests_on == "nothing to run"


def test_unmeasured_speed_and_early_stopping_widen_the_range() -> None:
    sure = priced([node("a", BASE)], measured(360.0, BASE))
    model = priced([node("a", BASE)], [], images=(100_000, 0, 0))
    assert model.rests_on == "the FLOP model"
    # a factor of two either way at one standard deviation: 10 to 90 % is a factor of 5.9
    assert 4 < model.gpu_hours.high / model.gpu_hours.low < 8
    early = priced([node("a", BASE, Recipe())], measured(360.0, BASE))
    spread = early.gpu_hours.high / early.gpu_hours.low
    assert sure.gpu_hours.high / sure.gpu_hours.low < 1.1 < 2 < spread < 8
    # many trials average their own epochs out, not the typical number itself
    many = priced([node(str(i), BASE, Recipe()) for i in range(50)], measured(360.0, BASE))
    assert 1.5 < many.gpu_hours.high / many.gpu_hours.low < spread


def test_a_probe_is_named_with_its_steps_and_mixed_sources_with_their_backbones() -> None:
    nodes = [node("a", BASE), node("b", "densenet121/dual"), node("c", "mobilenet_v3_large/dual")]
    rows = [Probed(BASE, 0.32, 0.01), Probed("densenet121/dual", None, None)]
    estimates = Estimates(nodes, IMAGES, device="cuda", probe={Cell.parse(BASE): (0.01, 0.01)})
    machines = [Machine(cpus=1, gpus=1)]
    plan = price("s", nodes[:1], {}, estimates, machines, probe=rows, probe_steps=8)
    assert plan.rests_on == "a probe of 8 steps per backbone on this device"
    plan = price(
        "s",
        nodes,
        {},
        estimates,
        machines,
        probe=rows,
        probe_steps=8,
        measured=[Measured(Cell.parse("densenet121/dual"), 5.0)],
    )
    assert plan.rests_on == (
        "a probe of 8 steps per backbone on this device (resnet18); "
        "epochs measured in earlier runs (densenet121); the FLOP model (mobilenet_v3_large)"
    )


def test_the_winner_of_a_search_is_not_trained_twice() -> None:
    searched = [
        node(f"lr {i}", BASE, stage="lr-search", group="g", number=i, search="d") for i in range(4)
    ]
    final = node("final", BASE, after=tuple(n.id for n in searched))
    plan = priced([final, *searched], measured(360.0, BASE))
    assert plan.gpu_hours.expected == pytest.approx(4.0, rel=0.03)
    assert [(row.stage, row.trials) for row in plan.stages] == [("baseline", 1), ("lr-search", 4)]
    other = replace(final, recipe=replace(FIXED, epochs=20))
    plan = priced([other, *searched], measured(360.0, BASE))
    assert plan.gpu_hours.expected == pytest.approx(6.0, rel=0.03)


def test_blocked_cells_and_what_needs_them_are_skipped() -> None:
    nodes = [
        node("base", BASE, blocked="data set 'x' has no boxes"),
        node("swap", SWAP, needs=("base",)),
        node("dual", "resnet18/dual"),
    ]
    plan = priced(nodes, measured(360.0, BASE, SWAP, "resnet18/dual"))
    assert [cell.state for cell in plan.cells] == ["skipped", "skipped", "waiting"]
    assert [cell.why_not for cell in plan.cells[:2]] == ["data set 'x' has no boxes", "needs base"]
    assert plan.blocked == 2
    assert plan.gpu_hours.expected == pytest.approx(1.0, rel=0.03)


def test_packed_trials_cost_their_share_of_a_device() -> None:
    nodes = [node(str(i), BASE) for i in range(4)]
    shares = {n.id: Demand(cpus=0.25, gpus=0.25) for n in nodes}
    plan = priced(nodes, measured(360.0, BASE), devices=1, demands=shares)
    assert plan.gpu_hours.expected == pytest.approx(1.0, rel=0.03)
    assert (plan.wall_hours, plan.devices) == (pytest.approx(1.0, rel=0.03), 4)


def test_disk_holds_states_checkpoints_exports_and_the_pack() -> None:
    plan = priced([node("a", "resnet18/dual")], [], pack_bytes=2**30)
    # 12 M parameters: two states of (network + two moments), best twice, two exports
    network = 12e6 * 4
    expected = 2 * 3 * network + 2 * network + 2 * 1.3 * network + 2**20
    assert plan.disk_gib == pytest.approx(1 + expected / 2**30)


def test_a_cpu_sweep_counts_trial_hours() -> None:
    nodes = [node("a", BASE, demand=Demand(cpus=1))]
    estimates = Estimates(nodes, IMAGES, device="cpu")
    plan = price("s", nodes, {}, estimates, [Machine(cpus=2)])
    assert not plan.on_gpus
    assert "trial hours" in plan_text(plan)


SHARES = ["resnet18/share-frozen/det", "resnet18/share-frozen/seg"]


def test_what_trains_together_is_said_and_off_the_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fusion.SHARED, "resnet18", 0.8)
    nodes = [node(name, name) for name in SHARES]
    rows = measured(360.0, *SHARES)
    keys = dict.fromkeys(SHARES, "k")
    plan = priced(nodes, rows, devices=1, keys=keys)
    # 2 x 10 epochs x 0.1 h, of which 0.8 are made once
    assert plan.gpu_hours.expected == pytest.approx(1.2, rel=0.03)
    assert plan.gpu_hours.low <= plan.gpu_hours.expected <= plan.gpu_hours.high
    assert plan.gpu_hours.high < 1.3
    assert plan.wall_hours == pytest.approx(1.2, rel=0.03)
    assert (plan.together.groups, plan.together.trials) == ([SHARES], 2)
    assert plan.together.saved_hours == pytest.approx(0.8, rel=0.03)
    assert plan.together.saved_wall_hours == pytest.approx(0.8, rel=0.03)
    assert sum(cell.gpu_hours for cell in plan.cells) == pytest.approx(plan.gpu_hours.expected)
    assert plan.devices == 1
    (said,) = (line for line in plan_text(plan).splitlines() if line.startswith("together"))
    assert re.fullmatch(
        r"together     2 frozen trials in 1 group: saves 4[89] min, 4[89] min of wall time", said
    )
    assert f"{'':12} {', '.join(SHARES)}" in plan_text(plan).splitlines()
    assert json.loads(json.dumps(plan.to_dict()))["together"]["groups"] == [SHARES]


@pytest.mark.parametrize(("devices", "keys"), [(2, dict.fromkeys(SHARES, "k")), (1, {}), (1, None)])
def test_nothing_trains_together_with_a_device_each_or_when_it_is_off(
    devices: int, keys: dict[str, str] | None
) -> None:
    plan = priced([node(n, n) for n in SHARES], measured(360.0, *SHARES), devices, keys=keys)
    assert plan.gpu_hours.expected == pytest.approx(2.0, rel=0.03)
    assert (plan.together.groups, plan.together.saved_hours) == ([], 0.0)
    assert "together" not in plan_text(plan)


@pytest.mark.parametrize(
    ("values", "memory"),
    [({"width": 1}, 0), ({"demand": replace(GPU, memory=GIB)}, GIB + MEMBER_BYTES - 1)],
)
def test_no_group_is_promised_that_has_no_memory(values: dict[str, object], memory: int) -> None:
    nodes, rows = [node(n, n, **values) for n in SHARES], measured(360.0, *SHARES)
    keys = dict.fromkeys(SHARES, "k")
    plan = priced(nodes, rows, devices=1, keys=keys, memory=memory)
    assert (plan.together.groups, plan.together.saved_wall_hours) == ([], 0.0)
    assert plan.wall_hours == pytest.approx(2.0, rel=0.03)
    roomy = [replace(n, width=2) for n in nodes]
    plan = priced(roomy, rows, devices=1, keys=keys, memory=memory + 1)
    assert plan.together.groups == [SHARES]


def test_many_groups_are_counted_and_the_largest_named() -> None:
    names = [f"{i}/{task}" for i in range(8) for task in ("a", "b", "c", "d", "e")]
    nodes = [node(name, SHARES[0]) for name in names]
    keys = {name: name[0] for name in names}
    plan = priced(nodes, measured(360.0, SHARES[0]), devices=1, keys=keys)
    assert sorted(map(sorted, plan.together.groups)) == [names[i : i + 5] for i in range(0, 40, 5)]
    lines = plan_text(plan).splitlines()
    assert any(line.endswith("0/a, 0/b, 0/c, 0/d and 1 more") for line in lines)
    assert f"{'':12} and 2 more groups" in lines


def test_the_scheduler_starts_from_the_same_expectations() -> None:
    nodes = [node("a", BASE)]
    estimates = Estimates(nodes, IMAGES, device="cuda", measured=measured(360.0, BASE))
    (told,) = with_works(nodes, estimates)
    assert told.work == pytest.approx(3600, rel=0.03)


def test_the_plan_as_json_and_as_text() -> None:
    nodes = [node("base", BASE), node("swap", SWAP, needs=("base",))]
    plan = priced(
        nodes,
        measured(360.0, BASE, SWAP),
        states={"base": settled()},
        why_not={"swap": "no run of this cell yet"},
    )
    values = json.loads(json.dumps(plan.to_dict()))
    assert {
        "study",
        "cells",
        "trials",
        "gpu_hours",
        "wall_hours",
        "disk_gib",
        "board_hours",
        "rests_on",
    } <= values.keys()
    assert set(values["gpu_hours"]) == {"low", "expected", "high"}
    assert {"cell", "trials", "state", "reused", "why_not"} <= values["cells"][0].keys()
    lines = plan_text(plan).splitlines()
    assert lines[0] == "s: 2 trials of 2 cells, 1 reused, 1 to run"
    assert re.fullmatch(r"GPU hours    6[01] min \((59|60|61) min to 6[12] min\)", lines[2])
    assert "rests on     epochs measured in earlier runs" in lines
    assert f"{SWAP}      1  waiting  no run of this cell yet" in lines
    assert lines[-2].endswith("done     reused")


def test_hours_in_words() -> None:
    assert [hours_of(h) for h in (0.01, 0.5, 3.44, 120.4, 0.0)] == [
        "36 s",
        "30 min",
        "3.4 h",
        "120 h",
        "0 s",
    ]
    assert not math.isnan(float(hours_of(1000).split()[0]))
