"""What a worker does between two trials."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator

import pytest

from sweeps.worker import _give_back_memory, gpu_answers


class Part:
    """Holds itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
def test_every_trials_garbage_goes_and_the_libraries_are_looked_through_once() -> None:
    before = weakref.ref(Part())
    _give_back_memory()
    assert before() is None
    libraries = gc.get_freeze_count()
    assert libraries > 10_000
    for _ in range(2):
        trial = weakref.ref(Part())
        _give_back_memory()
        assert trial() is None
        # None of a later trial's is kept for ever; some of the first ones' ended by themselves.
        assert 0 < gc.get_freeze_count() <= libraries


class Gpu:
    """A torch whose GPU may be lost."""

    def __init__(self, *, used: bool = True, lost: bool = False) -> None:
        self.cuda = self
        self.used, self.lost = used, lost
        self.emptied = 0

    def is_initialized(self) -> bool:
        return self.used

    def synchronize(self) -> None:
        assert self.used
        if self.lost:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def empty_cache(self) -> None:
        self.synchronize()
        self.emptied += 1


@pytest.mark.parametrize(
    ("gpu", "answers"),
    [(Gpu(), True), (Gpu(lost=True), False), (Gpu(used=False), True)],
)
def test_a_process_whose_gpu_is_lost_takes_no_further_trial(
    gpu: Gpu, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", gpu)
    assert gpu_answers() == answers
    _give_back_memory()
    assert gpu.emptied == int(gpu.used and answers)
