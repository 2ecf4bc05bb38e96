"""Losses read at once on a CPU, and late elsewhere, with nothing lost."""

from __future__ import annotations

import pytest
import torch

from sharedenc.training.loss_reader import LossReader, StepLosses


def put(reader: LossReader, step: int) -> None:
    seg = torch.tensor(step / 7, requires_grad=True)
    reader.put(step, 4, {"loss": 6 * seg, "loss_seg": seg})


def row(step: int) -> StepLosses:
    seg = torch.tensor(step / 7)
    return StepLosses(step, 4, {"loss": float(6 * seg), "loss_seg": float(seg)})


def test_on_a_cpu_every_step_is_read_at_once_with_the_bits_of_float() -> None:
    reader = LossReader("cpu")
    for step in (1, 2, 3):
        put(reader, step)
        assert reader.take() == [row(step)]
    assert reader.take(all=True) == []


def test_late_reading_gives_the_same_rows_one_step_later_and_the_last_at_the_end() -> None:
    reader = LossReader("cpu", late=1)
    seen = []
    for step in (1, 2, 3):
        put(reader, step)
        found = reader.take()
        assert found == ([row(step - 1)] if step > 1 else [])
        seen += found
    assert seen + reader.take(all=True) == [row(1), row(2), row(3)]
    assert reader.take(all=True) == []


def test_a_loss_that_is_not_finite_is_read_as_it_is() -> None:
    reader = LossReader("cpu")
    reader.put(1, 2, {"loss": torch.tensor(torch.nan)})
    (found,) = reader.take()
    assert found.values["loss"] != found.values["loss"]


@pytest.mark.gpu
def test_a_gpu_gives_the_same_rows() -> None:
    reader = LossReader("cuda")
    rows = []
    for step in range(1, 4):
        seg = torch.tensor(step / 7, device="cuda")
        reader.put(step, 4, {"loss": 6 * seg, "loss_seg": seg})
        rows += reader.take()
    assert rows + reader.take(all=True) == [row(1), row(2), row(3)]
