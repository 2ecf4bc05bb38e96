"""R6 and R12 at small sizes: the sides agree, and a wrong answer is no result."""

from __future__ import annotations

import pytest
import torch

from benchmarks import loss_launches, memory_kept, nms, train_step
from benchmarks.dispatch import Operations
from benchmarks.protocol import Unequal
from benchmarks.references import ReferenceTrainer
from benchmarks.roofs import Demand, Roofs, demand
from tests.benchmarks.test_protocol import KEYS


def test_r12_counts_a_loop_over_images_and_one_batch() -> None:
    launches, time, at_once = loss_launches.run(1, batch=6)
    assert set(launches) >= KEYS
    assert (launches["id"], launches["unit"], time["unit"]) == ("R12", "ops", "ms")
    # The loop grows with the batch, the batched form does not.
    again, _, _ = loss_launches.run(1, batch=12)
    assert again["reference"] > 1.7 * launches["reference"]
    assert again["ours"] == launches["ours"] <= 175
    assert "nothing won" in time["case"]
    assert at_once["case"].startswith("NMS of 6 images at once, not used, against image by image")


def test_r12_refuses_another_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    real = loss_launches.batched_detection_loss
    monkeypatch.setattr(loss_launches, "batched_detection_loss", lambda *a: real(*a) * 1.00001)
    with pytest.raises(Unequal):
        loss_launches.run(1, batch=2)


def test_nms_of_a_batch_keeps_what_nms_of_each_image_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = nms.made_up(8, 300)
    kept = nms.image_by_image(images)
    # Some go and some stay, so that there is something to compare.
    assert all(20 < len(indices) < 280 for indices in kept)
    assert nms.at_once(images) == kept
    real = nms.at_once
    monkeypatch.setattr(nms, "at_once", lambda images: [one[::-1] for one in real(images)])
    with pytest.raises(Unequal):
        nms.row(1, 2)


def test_operations_are_counted_without_views() -> None:
    one = torch.ones(2, 3)
    with Operations() as operations:
        one.view(3, 2).transpose(0, 1)[0].add(1).mul(2)
    assert operations.count == 2
    # Each reads three floats and writes three.
    assert operations.bytes == 2 * (12 + 12)


# One image's dual training at 320 px and 21 classes, worked out apart from this code: GFLOP, and
# MB of unfused float32 traffic.
NEEDS = {"resnet18": (22.1, 442), "mobilenet_v3_large": (3.04, 707), "densenet121": (35.1, 2364)}


@pytest.mark.parametrize("backbone", NEEDS)
def test_what_a_step_needs_is_what_was_worked_out_elsewhere(backbone: str) -> None:
    found = demand(backbone, 21, 320)
    gflop, megabytes = NEEDS[backbone]
    assert found.flops / 1e9 == pytest.approx(gflop, rel=0.1)
    assert found.bytes / 1e6 == pytest.approx(megabytes, rel=0.1)


def test_the_roof_is_the_slower_of_arithmetic_and_traffic() -> None:
    roofs = Roofs(conv_float32=100.0, gemm_bfloat16=400.0, copy=10.0)
    assert roofs.step_s(Demand(flops=800.0, bytes=20.0), "float32") == 8.0
    assert roofs.step_s(Demand(flops=800.0, bytes=20.0), "bfloat16") == 2.0
    assert roofs.step_s(Demand(flops=800.0, bytes=200.0), "bfloat16") == 10.0


@pytest.mark.slow
def test_r6_takes_steps_with_one_loss_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = train_step.run(2, ("mobilenet_v3_large",), image_px=64, batch_size=2)
    assert set(row) >= KEYS
    assert row["case"].startswith("dual step of mobilenet_v3_large, batch 2 of ")
    assert row["limit_share"] > 0
    real = ReferenceTrainer.step
    monkeypatch.setattr(ReferenceTrainer, "step", lambda *a: 1.05 * real(*a))
    with pytest.raises(Unequal):
        train_step.run(1, ("mobilenet_v3_large",), image_px=64, batch_size=2)


def test_r15_takes_the_same_steps_with_and_without_kept_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.photos.SYNTHETIC_IMAGES", (4, 1, 1))
    rows = memory_kept.run(1, image_px=64, batch_size=2)
    assert "float32" in rows[0]["case"]
    for row in rows:
        assert set(row) >= KEYS
        assert (row["id"], row["unit"], row["check"]) == ("R15", "ms/image", "losses bit-equal")
        assert set(row["page_faults"]) == {"reference", "ours"}
    turns = iter([1.0, 2.0, 1.0, 2.5])
    monkeypatch.setattr(memory_kept.OurTrainer, "step", lambda *_: next(turns))
    with pytest.raises(Unequal):
        memory_kept.run(1, image_px=64, batch_size=2)
