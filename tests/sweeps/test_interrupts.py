"""The first signal drains, the second one stops, and the caller's handlers come back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from sweeps.interrupts import Interrupts


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Handlers that are there whoever started the tests, in the background or not."""
    kept = {
        n: signal.signal(n, signal.default_int_handler) for n in (signal.SIGINT, signal.SIGTERM)
    }
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def say(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_outside_a_drain_the_first_one_stops(number: signal.Signals) -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            say(number)
        # What swallowed the exception is asked again.
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.check()


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGINT, "stopped by Ctrl-C"), (signal.SIGTERM, "stopped by SIGTERM")],
)
def test_inside_the_first_one_drains_and_the_second_one_stops(
    number: signal.Signals, reason: str
) -> None:
    drained: list[str] = []
    with Interrupts() as interrupts, interrupts.draining(drained.append):
        say(number)
        assert drained == [], "a signal handler only takes note"
        interrupts.check()
        interrupts.check()
        assert drained == [reason]
        with pytest.raises(KeyboardInterrupt):
            say(number)


def test_a_drain_has_a_time_limit() -> None:
    now, drained = [0.0], []
    with Interrupts(grace_s=30, clock=lambda: now[0]) as interrupts:
        with interrupts.draining(drained.append):
            say(signal.SIGINT)
            interrupts.check()
            now[0] = 29.9
            interrupts.check()
            now[0] = 30.0
            with pytest.raises(KeyboardInterrupt):
                interrupts.check()
        interrupts.check()


def test_handlers_come_back_and_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
