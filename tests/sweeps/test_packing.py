"""`--pack`: who shares a GPU, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sharedenc.errors import SpecError
from sharedenc.spec import Cell
from sweeps.facts import Facts
from sweeps.fusion import MOST_TOGETHER
from sweeps.graph import Node, expand
from sweeps.ledger import Measured
from sweeps.order import Machine
from sweeps.packing import pack_trials
from sweeps.study import Study

GIB = 2**30
GPUS = [Machine(cpus=16, gpus=2, memory=64 * GIB)]


@pytest.fixture
def nodes(facts: Facts) -> list[Node]:
    study = Study(kind="full-grid", backbones=("resnet18",), strategies=("baseline", "dual"))
    return expand(study, replace(facts, device_kind="cuda"))


def measured(cell: str, gib: float, device: str = "cuda") -> Measured:
    return Measured(
        cell=Cell.parse(cell),
        image_px=320,
        batch_size=32,
        numerics={"device": device},
        device="a GPU",
        seconds_per_epoch=60,
        epochs=10,
        seconds=600,
        peak_memory_bytes=int(gib * GIB),
    )


def test_trials_share_by_their_measured_peaks_and_others_keep_a_whole_gpu(
    nodes: list[Node],
) -> None:
    told: list[str] = []
    rows = [
        measured("resnet18/baseline/det", 10.0),
        measured("resnet18/baseline/seg", 30.0),
        measured("resnet18/dual", 1.0, device="cpu"),
    ]
    packed = pack_trials(nodes, GPUS, rows, told.append, memory=lambda: 40 * GIB)
    shares = {node.id: node.demand.gpus for node in packed}
    # (10 GiB x 1.15 + 0.7) / (40 GiB x 0.95) = 0.321; 30 GiB is more than half of the device.
    assert shares["resnet18/baseline/det"] == pytest.approx(0.3211)
    assert shares["resnet18/baseline/seg"] == 1.0
    assert shares["resnet18/dual"] == 1.0
    assert told == [
        "--pack: 1 of 3 trials share a GPU by measured peaks; the others get a whole one, which "
        "measures them"
    ]


def test_without_a_gpu_there_is_nothing_to_share(nodes: list[Node]) -> None:
    with pytest.raises(SpecError, match="no machine has one"):
        pack_trials(nodes, [Machine(cpus=4, memory=GIB)], [], print, memory=lambda: 40 * GIB)


def test_a_gpu_whose_memory_is_not_told_is_not_shared(nodes: list[Node]) -> None:
    with pytest.raises(SpecError, match="nvidia-smi does not tell it"):
        pack_trials(nodes, GPUS, [], print, memory=lambda: 0)


def test_a_share_holds_as_many_of_one_encoder_as_its_memory_does(facts: Facts) -> None:
    study = Study(kind="full-grid", only=("resnet18/share-frozen/*",))
    frozen = expand(study, replace(facts, device_kind="cuda"))
    cells = [node.cell.name for node in frozen]

    def widths(gib: float, device_gib: int) -> set[int]:
        rows = [measured(cell, gib) for cell in cells]
        packed = pack_trials(frozen, GPUS, rows, print, memory=lambda: device_gib * GIB)
        assert all(node.demand.gpus < 1 for node in packed)
        return {node.width for node in packed}

    # A quarter of 40 GiB less 5 % is 9.5 GiB, of which 2 x 1.15 + 0.7 are taken.
    assert widths(2.0, 40) == {MOST_TOGETHER}
    # A quarter of 16 GiB is 3.8: 3.775 taken of it leave room for nobody, 3.66 for two.
    assert widths(2.674, 16) == {1}
    assert widths(2.574, 16) == {1 + 2}
    # Nobody knows the peak, but the device is whole.
    whole = pack_trials(frozen, GPUS, [measured("resnet18/dual", 2.0)], print, lambda: 40 * GIB)
    assert {(node.demand.gpus, node.width) for node in whole} == {(1.0, MOST_TOGETHER)}
