"""Loader processes by measurement: the fewest that keep a step from waiting."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest

from sharedenc.data import batch as batches_module
from sharedenc.data.batch import Batch, eval_batches, train_batches
from sharedenc.data.loaders import PROBES, Loaders, processes_needed
from sharedenc.spec import Recipe
from tests.data.test_batch import RECIPE, assert_equal, split_of


@pytest.mark.parametrize(
    ("made_s", "kept_s", "most", "expected"),
    [
        (0.10, 0.200, 8, 1),  # made in half the time of a step
        (0.10, 0.100, 8, 1),
        (0.10, 0.099, 8, 1),  # one hundredth of waiting is no reason for another process
        (0.10, 0.090, 8, 2),
        (0.10, 0.034, 8, 3),
        (0.10, 0.034, 2, 2),  # not more than the trial's share of cores
        (0.10, 0.034, 0, 0),
        (0.10, 8.000, 8, 0),  # an hour of steps waits for less than a minute
        (0.10, 0.000, 5, 5),
    ],
)
def test_the_fewest_processes_that_keep_up(
    made_s: float, kept_s: float, most: int, expected: int
) -> None:
    assert processes_needed(made_s, kept_s, batches=1000, most=most) == expected


def test_few_batches_are_not_worth_a_process() -> None:
    assert processes_needed(0.01, 0.01, batches=10, most=4) == 0
    assert processes_needed(0.01, 0.01, batches=1000, most=4) == 1


@pytest.mark.parametrize("kept_s", [0.5, 0.05, 0.02, 0.01])
@pytest.mark.parametrize("most", [1, 3, 16])
def test_one_process_less_would_make_steps_wait(kept_s: float, most: int) -> None:
    count = processes_needed(0.07, kept_s, batches=500, most=most)
    assert 1 <= count <= most
    waiting = 0.07 / count - kept_s
    assert waiting <= 0.02 * kept_s + 1e-9 or count == most
    if count > 1:
        assert 0.07 / (count - 1) > 1.02 * kept_s


def test_later_epochs_go_by_what_was_measured_since() -> None:
    loaders = Loaders(4)
    assert loaders.probes == PROBES
    loaders.note(9.0, 9.0)  # warm-up: the disk was slow, kernels were chosen
    for _ in range(3):
        loaders.note(0.1, 0.04)
    assert loaders.probes == 0
    assert loaders.count(100) == 3
    for _ in range(100):
        loaders.note(0.05, 0.04)  # the disk's pages are in memory now
    assert loaders.count(100) == 2
    assert loaders.probes == 0


def test_a_trial_without_a_core_to_spare_measures_nothing() -> None:
    loaders = Loaders(0)
    assert (loaders.probes, loaders.count(100)) == (0, 0)


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of processes that batches are made by, in the order of use."""
    asked: list[int] = []
    real = batches_module._flats

    def flats(source: Any, chunks: Any, workers: int, pin: bool) -> Iterator[Any]:
        asked.append(workers)
        return real(source, chunks, workers, pin)

    monkeypatch.setattr(batches_module, "_flats", flats)
    return asked


class Known(Loaders):
    """Makes up what was measured: a batch takes ``made_s``, a step nothing."""

    made_s = 10.0

    def note(self, made_s: float, kept_s: float) -> None:
        super().note(self.made_s, 0.0)


def test_batches_are_the_same_whatever_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(40)
    expected = [list(train_batches(split, RECIPE, seed=3, epoch=e)) for e in (1, 2)]
    asked = asked_for(monkeypatch)
    loaders = Known(2)
    for epoch in (1, 2):
        found = list(train_batches(split, RECIPE, seed=3, epoch=epoch, workers=loaders))
        assert_equal(found, expected[epoch - 1])
    # The first batches in this process, the others of that epoch in two, then all in two.
    assert asked == [0, 2, 0, 2]
    assert multiprocessing.active_children() == []
    assert_equal(
        list(eval_batches(split, RECIPE, workers=Known(2))), list(eval_batches(split, RECIPE))
    )


def test_a_short_epoch_and_a_resumed_one_have_all_their_batches() -> None:
    short = list(train_batches(split_of(8), RECIPE, seed=3, epoch=1, workers=Known(2)))
    assert_equal(short, list(train_batches(split_of(8), RECIPE, seed=3, epoch=1)))
    whole: list[Batch] = list(train_batches(split_of(40), RECIPE, seed=3, epoch=1))
    rest = train_batches(split_of(40), RECIPE, seed=3, epoch=1, workers=Known(2), skip=9)
    assert_equal(list(rest), whole[9:])


def test_it_is_the_time_of_the_step_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(batches_module.time, "perf_counter", lambda: now[0])
    loaders = Loaders(4)
    recipe = Recipe(batch_size=4, image_px=32)
    for _ in train_batches(split_of(32), recipe, seed=0, epoch=1, workers=loaders):
        now[0] += 2.5
    assert loaders._kept_s == [2.5] * len(loaders._kept_s)
    assert set(loaders._made_s) == {0.0}
