"""R4 and R5 at small sizes: bit-equal to the plain loop, and anything else is no result."""

from __future__ import annotations

import pytest
import torch

from benchmarks import shared_encoder
from benchmarks.protocol import Unequal
from benchmarks.shared_encoder import PAIR, Head, flops_ratio
from benchmarks.shared_encoder_rates import HEADS
from sharedenc.training.loop import train_epoch
from tests.benchmarks.test_protocol import KEYS

SMALL = "mobilenet_v3_large"


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.photos.SYNTHETIC_IMAGES", (4, 2, 2))


def test_one_pass_for_all_is_bit_equal_to_a_plain_loop() -> None:
    # Two rates of one task, and one of the other.
    heads = HEADS[1:6:2]
    (row,) = shared_encoder.rows("R5", "rates", heads, 2, [SMALL], image_px=64, batch_size=2)
    assert set(row) >= KEYS
    assert (row["id"], row["unit"], row["rounds"]) == ("R5", "ms/image", 2)
    assert "float32" in row["case"]
    assert 0 < row["limit"] < row["reference"]


def test_heads_of_other_values_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(learners: list[object], *parts: object, **more: object) -> None:
        train_epoch(learners, *parts, **more)  # type: ignore[arg-type]
        with torch.no_grad():
            parameter = next(learners[-1].network.seg_head.parameters())  # type: ignore[attr-defined]
            parameter.view(-1)[0].nextafter_(torch.tensor(torch.inf))

    monkeypatch.setattr(shared_encoder, "train_epoch", shifted)
    with pytest.raises(Unequal):
        shared_encoder.rows("R4", "a pair", PAIR, 1, [SMALL], image_px=64, batch_size=2)


# GFLOP per image at 320 px and 21 classes, of the encoder and of each head's forward pass, worked
# out apart from this code; a head's step is three of its passes, less the gradient of its maps.
FLOPS = {"resnet18": (7.40, 0.095, 0.030), "mobilenet_v3_large": (0.871, 0.189, 0.036)}


@pytest.mark.parametrize("backbone", FLOPS)
@pytest.mark.parametrize("heads", [PAIR, HEADS], ids=["R4", "R5"])
def test_the_limit_counts_the_encoder_once_instead_of_for_each(
    backbone: str, heads: list[Head]
) -> None:
    encoder, det, seg = FLOPS[backbone]
    steps = sum(2.7 * {"det": det, "seg": seg}[head.task] for head in heads)
    expected = (len(heads) * encoder + steps) / (encoder + steps)
    assert flops_ratio(backbone, heads, 21, 320) == pytest.approx(expected, rel=0.06)
