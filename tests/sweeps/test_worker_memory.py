"""What a worker does between two trials."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from sweeps.worker import _give_back_memory


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
