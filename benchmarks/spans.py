"""Where the time of a running program goes, by part, without a change to the program."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from unittest import mock

Item = TypeVar("Item")


class Spans:
    """Seconds by part; a part's time is without that of the parts that it calls."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self._open: list[str] = []
        self._since = clock()
        self._begun = self._since
        self.seconds: dict[str, float] = defaultdict(float)

    def restart(self) -> None:
        """Forget what was measured; a part that is running counts from here."""
        self.seconds.clear()
        self._since = self._begun = self._clock()

    def total(self) -> float:
        """Seconds since the start, in parts or not."""
        return self._clock() - self._begun

    def close(self) -> dict[str, float]:
        """Seconds by part, with ``rest`` for what belongs to none."""
        self._charge()
        return dict(self.seconds)

    def _charge(self) -> None:
        now = self._clock()
        self.seconds[self._open[-1] if self._open else "rest"] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside is of this part."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, charged to a part."""

        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return charged

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with the making of each charged to a part."""
        iterator = iter(items)
        while True:
            with self.part(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def watch(self, name: str, owner: Any, attribute: str) -> Any:
        """A context in which the owner's function is charged to a part."""
        return mock.patch.object(owner, attribute, self.of(name, getattr(owner, attribute)))
