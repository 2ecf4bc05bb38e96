"""What trials ask for and what machines give."""

from __future__ import annotations

import pytest

from sharedenc.errors import SpecError
from sharedenc.spec import Cell, Recipe, resolve_numerics
from sweeps.order import Demand, Machine
from sweeps.resources import GIB, demand, fit, local_machine, memory_bytes, work_seconds


def _memory(batch: int, px: int = 320, cell: str = "efficientnet_v2_s/dual") -> int:
    recipe = Recipe(batch_size=batch, image_px=px)
    numerics = resolve_numerics(recipe, "efficientnet_v2_s", "cpu", "2.14")
    return memory_bytes(Cell.parse(cell), recipe, numerics)


def test_memory_grows_linearly_with_batch_and_pixels() -> None:
    step = _memory(2) - _memory(1)
    assert _memory(9) - _memory(1) == pytest.approx(8 * step, rel=1e-6)
    assert _memory(4) - _memory(1, px=640) == pytest.approx(0, abs=16)
    assert 10 * GIB < _memory(32) < 16 * GIB  # measured: 12 to 13 GB in float32


def test_a_frozen_encoder_costs_less_memory_and_time() -> None:
    assert _memory(32, cell="efficientnet_v2_s/share-frozen/seg") < 0.6 * _memory(32)
    recipe, images = Recipe(epochs=1), (64, 16, 32)
    seconds = [
        work_seconds(Cell.parse(f"resnet18/{rest}"), recipe, images)
        for rest in ("share-frozen/seg", "share-bias/seg", "baseline/seg")
    ]
    assert seconds == sorted(seconds)


def test_a_gpu_takes_one_trial_at_a_time() -> None:
    recipe = Recipe()
    numerics = resolve_numerics(recipe, "resnet18", "cuda", "2.14")
    asked = demand(Cell.parse("resnet18/dual"), recipe, numerics)
    assert asked.gpus == 1.0
    assert not Machine(cpus=64, gpus=1, memory=2**40).without(asked).holds(asked)


def test_few_cores_leave_no_gpu_idle() -> None:
    machine = Machine(cpus=4, gpus=8, memory=64 * GIB)
    (asked,) = fit([Demand(cpus=2, gpus=1, memory=GIB)], [machine])
    assert asked.cpus == 0.5


def test_demands_become_equal_when_memory_is_plenty() -> None:
    small, large = Demand(memory=1 * GIB), Demand(memory=4 * GIB)
    assert fit([small, large], [Machine(cpus=2, memory=8 * GIB)]) == [large, large]
    assert fit([small, large], [Machine(cpus=2, memory=7 * GIB)]) == [small, large]


def test_a_trial_larger_than_any_machine_gets_a_whole_one() -> None:
    (asked,) = fit([Demand(memory=20 * GIB)], [Machine(cpus=2, memory=8 * GIB)])
    assert asked.memory == 8 * GIB
    with pytest.raises(SpecError, match=r"4 CPU cores and 0 GPUs.*largest machine has 2"):
        fit([Demand(cpus=4)], [Machine(cpus=2, memory=8 * GIB)])


def test_this_machine_has_something() -> None:
    machine = local_machine()
    assert machine.cpus >= 1
    assert machine.memory > 0
    assert local_machine(cpus=1, memory_gib=2) == Machine(cpus=1, gpus=machine.gpus, memory=2 * GIB)
