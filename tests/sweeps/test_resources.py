"""What trials ask for and what machines give."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedenc.errors import SpecError
from sharedenc.spec import Cell, Recipe, Trial, resolve_numerics
from sweeps.graph import Node
from sweeps.order import Demand, Frontier, Job, Machine, plan
from sweeps.resources import (
    GIB,
    demand,
    fit,
    gpu_memory,
    gpu_share,
    loaders,
    local_machine,
    memory_bytes,
    node_of,
    pack,
    peaks_of,
    per_gpu,
    threads,
    work_seconds,
)
from sweeps.state import SweepState


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
    for device in ("cpu", "cuda"):
        seconds = [
            work_seconds(Cell.parse(f"resnet18/{rest}"), recipe, images, device)
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


def test_a_trial_slightly_larger_than_any_machine_gets_a_whole_one() -> None:
    (asked,) = fit([Demand(memory=9 * GIB)], [Machine(cpus=2, memory=8 * GIB)])
    assert asked.memory == 8 * GIB


def test_a_plan_that_no_machine_can_hold_is_refused_with_what_to_lower() -> None:
    machines = [Machine(cpus=1, memory=4 * GIB), Machine(cpus=2, memory=8 * GIB)]
    with pytest.raises(
        SpecError, match=r"asks for 1 CPU cores and 0 GPUs and 14\.8 GiB.*"
    ) as memory:
        fit([Demand(memory=int(14.8 * GIB))], machines)
    assert "the largest machine has 2 CPU cores and 0 GPUs and 8.0 GiB free" in str(memory.value)
    assert "lower --batch-size to 50% of what it is" in str(memory.value)
    with pytest.raises(SpecError, match=r"4 CPU cores.*largest machine has 2.*--cpu-threads"):
        fit([Demand(cpus=4)], machines)
    with pytest.raises(SpecError, match=r"1 GPUs.*largest machine has 2 CPU cores and 0.*--device"):
        fit([Demand(cpus=1, gpus=1)], machines)


def test_this_machine_has_something() -> None:
    machine = local_machine()
    assert machine.cpus >= 1
    assert machine.memory > 0
    assert local_machine(cpus=1, memory_gib=2) == Machine(cpus=1, gpus=machine.gpus, memory=2 * GIB)


@dataclass(frozen=True)
class Measured:
    cell: Cell
    image_px: int
    batch_size: int
    peak_memory_bytes: int


def _node(name: str, cell: str, needs: tuple[str, ...] = ()) -> Node:
    return Node(
        id=name,
        stage="share",
        cell=Cell.parse(cell),
        recipe=Recipe(),
        seed=0,
        trial=None,
        needs=needs,
        demand=Demand(cpus=2, gpus=1, memory=GIB),
    )


def test_a_share_holds_the_peak_the_allocator_and_a_context() -> None:
    # (6 x 1.15 + 0.7) of 0.95 x 24 GiB = 7.6 / 22.8 = 1/3: rounded up, three do not fit, two do
    assert gpu_share(6 * GIB, 24 * GIB) == 0.3367  # 1.01 / 3: a third one misses clearly
    # (2 x 1.15 + 0.7) / 22.8 = 0.13158, but no more than four share a device
    assert gpu_share(2 * GIB, 24 * GIB) == 0.25
    # more than half: nothing else of its kind fits, so it has the device to itself
    assert gpu_share(11 * GIB, 24 * GIB) == 1.0
    assert gpu_share(40 * GIB, 24 * GIB) == 1.0
    assert gpu_share(None, 24 * GIB) == 1.0
    assert gpu_share(2 * GIB, 0) == 1.0


@given(peak=st.integers(1, 80 * GIB), device=st.integers(GIB, 80 * GIB))
def test_ray_accepts_every_share_and_a_full_device_holds_its_trials(peak: int, device: int) -> None:
    share = gpu_share(peak, device)
    assert 0 < share <= 1
    assert share == round(share, 4)
    together = int(1 / share + 1e-9)
    if together > 1:
        assert together * (peak * 1.15 + 0.7 * GIB) <= 0.95 * device * (1 + 1e-9)


def test_packing_divides_gpus_and_cores_and_leaves_unknown_kinds_whole() -> None:
    nodes = [
        _node("frozen", "resnet18/share-frozen/seg"),
        _node("dual", "resnet18/dual"),
        _node("new", "densenet121/dual"),
    ]
    measured = [
        Measured(Cell.parse("resnet18/share-frozen/seg"), 320, 32, 2 * GIB),
        Measured(Cell.parse("resnet18/share-frozen/seg"), 320, 32, 1 * GIB),
        Measured(Cell.parse("resnet18/dual"), 320, 32, 8 * GIB),
        Measured(Cell.parse("densenet121/dual"), 320, 16, GIB),  # another batch says nothing
    ]
    peaks = peaks_of(measured)
    assert peaks["resnet18/share-frozen/seg", 320, 32] == 2 * GIB
    packed = pack(nodes, peaks, 24 * GIB, cpus_per_gpu=4)
    assert packed["frozen"] == Demand(cpus=1.0, gpus=0.25, memory=GIB)
    # (8 x 1.15 + 0.7) / 22.8 = 0.4342...
    assert packed["dual"].gpus == pytest.approx(0.4343, abs=1e-4)
    assert packed["new"] == Demand(cpus=2, gpus=1, memory=GIB)


def test_a_machine_of_two_gpus_is_two_devices_for_the_policy() -> None:
    whole = Machine(cpus=7, gpus=2, memory=10 * GIB, id="abc")
    devices = per_gpu([whole, Machine(cpus=4, memory=GIB, id="cpu")])
    assert [m.id for m in devices] == ["abc/gpu0", "abc/gpu1", "cpu"]
    assert devices[0] == Machine(cpus=3.5, gpus=1, memory=5 * GIB, id="abc/gpu0")
    assert [node_of(m.id) for m in devices] == ["abc", "abc", "cpu"]
    # Two halves on different devices hold no whole trial, although they add up to one.
    half, one = Demand(cpus=1, gpus=0.5), Demand(cpus=1, gpus=1)
    halved = [machine.without(half) for machine in devices]
    assert not any(machine.holds(one) for machine in halved)
    assert whole.without(half).without(half).holds(one)


@settings(max_examples=50, deadline=None)
@given(
    gib=st.lists(st.floats(0.5, 30), min_size=1, max_size=4),
    counts=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    devices=st.integers(1, 4),
)
def test_no_device_ever_holds_more_than_fits(
    gib: list[float], counts: list[int], devices: int
) -> None:
    """Declared GPUs of 24 GiB, trials of given peaks, the real policy on a virtual clock."""
    cells = ["resnet18/dual", "densenet121/dual", "resnet18/share-bias/seg", "resnet18/swap/det"]
    kinds = list(zip(cells, gib, strict=False))
    peaks = {(cell, 320, 32): int(size * GIB) for cell, size in kinds}
    nodes = [
        _node(f"{cell} {i}", cell)
        for (cell, _), count in zip(kinds, counts, strict=False)
        for i in range(count)
    ]
    machines = per_gpu([Machine(cpus=8 * devices, gpus=devices, memory=100 * GIB)])
    packed = pack(nodes, peaks, 24 * GIB, cpus_per_gpu=8)
    demands = dict(zip(packed, fit(list(packed.values()), machines), strict=True))
    works = {node.id: i + 1.0 for i, node in enumerate(nodes)}
    frontier = Frontier(Job(id=n, work=works[n], demand=demands[n]) for n in works)
    cell_of = {node.id: node.cell.name for node in nodes}
    free, running, now, ended = list(machines), [], 0.0, 0
    while ended < len(nodes):
        for name, place in plan(frontier.ready, frontier.ranks, free):
            frontier.start(name)
            free[place] = free[place].without(demands[name])
            heapq.heappush(
                running,
                (now + nodes.index(next(n for n in nodes if n.id == name)) + 1.0, name, place),
            )
        assert running, "something fits and nothing runs"
        for place in range(len(machines)):
            there = [name for _, name, where in running if where == place]
            memory = sum(peaks[cell_of[name], 320, 32] for name in there)
            assert len(there) == 1 or memory + len(there) * 0.7 * GIB <= 24 * GIB
            assert len(there) <= 4
        now, name, place = heapq.heappop(running)
        frontier.end(name, done=True)
        free[place] = free[place].having_back(demands[name])
        ended += 1


def test_threads_and_loaders_fit_the_cores() -> None:
    assert threads(Demand(cpus=3.5, gpus=1)) == 3
    assert threads(Demand(cpus=0.5, gpus=0.25)) == 1
    assert loaders(Demand(cpus=4, gpus=1), 8) == 3
    assert loaders(Demand(cpus=1, gpus=0.25), 8) == 0
    assert loaders(Demand(cpus=1), 2) == 2
    assert loaders(Demand(cpus=4, gpus=1), 2) == 2
    assert loaders(Demand(cpus=8, gpus=1), None) == 7
    assert loaders(Demand(cpus=0.5, gpus=0.25), None) == 0
    assert loaders(Demand(cpus=8), None) == 0


def test_a_trial_out_of_memory_in_a_pack_gets_a_whole_device() -> None:
    nodes = [_node("a", "resnet18/dual"), _node("b", "resnet18/share-bias/seg")]
    trial = Trial(
        cell=Cell.parse("resnet18/dual"),
        recipe=Recipe(),
        lr=1e-3,
        seed=0,
        data_digest="d",
        weights_digest="none",
        numerics=resolve_numerics(Recipe(), "resnet18", "cuda", "2.14"),
    )
    peaks = {(node.cell.name, 320, 32): 2 * GIB for node in nodes}
    packed = pack(nodes, peaks, 24 * GIB, cpus_per_gpu=4)
    asked = [replace(node, trial=trial, demand=packed[node.id]) for node in nodes]
    asked[1] = replace(asked[1], trial=replace(trial, seed=1))
    state = SweepState(asked, per_gpu([Machine(cpus=4, gpus=1, memory=64 * GIB)]))
    first, second = state.next(), state.next()
    assert first is not None
    assert second is not None
    assert [state.demand(name).gpus for name in ("a", "b")] == [0.25, 0.25]
    state.end("a", {"state": "failed", "kind": "oom", "reason": "CUDA out of memory"})
    assert state.next() is None  # a whole device is not free while the other one trains
    state.end("b", {"state": "done", "result": {"score": 0.5}})
    again = state.next()
    assert again is not None
    assert (again.node.id, state.demand("a").gpus) == ("a", 1.0)


def test_the_smallest_gpu_is_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory() == 0
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    fake.chmod(0o755)
    assert gpu_memory() == 40 * GIB
    fake.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert gpu_memory() == 0
    fake.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_memory() == 0
