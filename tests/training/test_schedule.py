"""Plateau, cosine and early stopping against the timing that methods 6.1 derives."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from sharedenc.spec import Recipe
from sharedenc.training.schedule import EarlyStopper, Schedule


def make(recipe: Recipe) -> tuple[Schedule, EarlyStopper]:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return Schedule(optimizer, recipe), EarlyStopper(recipe.early_stop_patience)


def run(recipe: Recipe, losses: list[float], interrupt_after: int = 0) -> tuple[list[float], int]:
    """Return the rate after each epoch, and the epoch at which training stops (0: it does not)."""
    schedule, stopper = make(recipe)
    rates = []
    for epoch, loss in enumerate(losses, start=1):
        schedule._optimizer.step()
        schedule.step(loss)
        stopper.update(loss)
        rates.append(schedule.lr)
        if stopper.should_stop:
            return rates, epoch
        if epoch == interrupt_after:
            kept, rate = (schedule.state_dict(), stopper.state_dict()), schedule.lr
            schedule, stopper = make(recipe)
            schedule._optimizer.param_groups[0]["lr"] = rate
            schedule.load_state_dict(kept[0])
            stopper.load_state_dict(kept[1])
    return rates, 0


@pytest.mark.parametrize("interrupt_after", [0, 5, 12, 20])
def test_a_flat_loss_cuts_after_12_and_23_and_stops_after_26(interrupt_after: int) -> None:
    rates, stop = run(Recipe(), [1.0] * 40, interrupt_after)
    assert rates == [1.0] * 11 + [0.5] * 11 + [0.25] * 4
    assert stop == 26


def test_the_last_improvement_sets_the_clock() -> None:
    last = 7
    losses = [1.0 - 0.1 * epoch for epoch in range(last)] + [0.9] * 40
    rates, stop = run(Recipe(), losses)
    assert stop == last + 25
    assert [epoch + 1 for epoch in range(1, stop) if rates[epoch] < rates[epoch - 1]] == [18, 29]


def test_an_equal_loss_is_no_improvement() -> None:
    stopper = EarlyStopper(patience=2)
    assert [stopper.update(loss) for loss in (1.0, 1.0, 0.5, 0.5, 0.6)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert stopper.should_stop


def test_patience_zero_never_stops() -> None:
    assert run(Recipe(early_stop_patience=0), [1.0] * 60)[1] == 0


def test_cosine_falls_to_zero_at_the_last_epoch_and_constant_stays() -> None:
    rates, _ = run(Recipe(scheduler="cosine", epochs=8, early_stop_patience=0), [1.0] * 8)
    assert rates[3] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert run(Recipe(scheduler="constant", early_stop_patience=0), [1.0] * 40)[0] == [1.0] * 40
