"""Claims where the ledger holds nonsense, the clock they go by, and signs of life as tags."""

from __future__ import annotations

import json
import threading

import pytest

from jetson_agent.claims import Claims, MemoryLedger, held
from jetson_agent.errors import ServerError
from jetson_agent.protocol import ProtocolError, Seen, seen_agents
from jetson_agent.server_clock import EVERY_S, ServerClock

KEY = "ab" * 32
SHORT = KEY[:40]


@pytest.mark.parametrize(
    "value",
    ["", "nonsense", "[]", "null", "{}", '{"agent": "x", "until": "soon"}', '{"until": null}'],
)
def test_a_claim_that_nobody_can_read_holds_nobody_up(value: str) -> None:
    ledger = MemoryLedger(clock=lambda: 1000.0, entries={f"claim.{SHORT}.1": value})
    claim = Claims(ledger).take(KEY, "me", 60.0)
    assert claim is not None
    assert claim.epoch == 2


def test_a_lease_that_nobody_can_read_leaves_the_first_one_in_force() -> None:
    ledger = MemoryLedger(clock=lambda: 1000.0)
    assert Claims(ledger).take(KEY, "one", 60.0) is not None
    ledger.note(f"lease.{SHORT}.1", "nonsense")
    assert Claims(ledger).take(KEY, "two", 60.0) is None


def test_entries_of_other_kinds_and_keys_are_no_epochs() -> None:
    entries = {f"claim.{SHORT}.x": "{}", f"run.{KEY}.7": "r", f"claim.{'cd' * 20}.9": "{}"}
    claim = Claims(MemoryLedger(entries=entries)).take(KEY, "me", 60.0)
    assert claim is not None
    assert claim.epoch == 1


def test_the_highest_epoch_is_by_number_and_not_by_letter() -> None:
    gone = json.dumps({"agent": "gone", "until": 0})
    held = json.dumps({"agent": "one", "until": 2000})
    entries = {f"claim.{SHORT}.{epoch}": gone for epoch in range(1, 10)}
    ledger = MemoryLedger(clock=lambda: 1000.0, entries={**entries, f"claim.{SHORT}.10": held})
    assert Claims(ledger).take(KEY, "two", 60.0) is None


def test_a_claim_that_lost_the_race_for_its_epoch_is_none() -> None:
    class Slow(MemoryLedger):
        """Another agent writes between this one's look and its claim."""

        def write_once(self, name: str, value: str) -> bool:
            super().write_once(name, json.dumps({"agent": "faster", "until": 5000}))
            return super().write_once(name, value)

    ledger = Slow(clock=lambda: 1000.0)
    assert Claims(ledger).take(KEY, "me", 60.0) is None
    assert json.loads(ledger.entries[f"claim.{SHORT}.1"])["agent"] == "faster"


def test_a_claim_is_renewed_while_a_job_lasts_whatever_the_server_says_meanwhile() -> None:
    now = [1000.0]
    ledger = MemoryLedger(clock=lambda: now[0])
    claim = Claims(ledger).take(KEY, "me", 60.0)
    assert claim is not None
    asked = threading.Semaphore(0)
    answers = iter([ServerError("away")] * 2)

    def also() -> None:
        asked.release()
        for error in answers:
            raise error

    now[0] += 50.0
    with held(claim, 0.001, also):
        # The third question is answered, and the fourth comes after its renewal.
        assert all(asked.acquire(timeout=60) for _ in range(4))
    # By its first lease alone it would be free by now.
    now[0] += 50.0
    assert Claims(ledger, skew_s=0.0).take(KEY, "another", 60.0) is None
    now[0] += 11.0
    assert Claims(ledger, skew_s=0.0).take(KEY, "another", 60.0) is not None


class Clocks:
    """A server's clock, this machine's steady one, and its own that is wrong."""

    def __init__(self) -> None:
        self.server: float | None = 1_800_000_000.0
        self.steady = 50.0
        self.local = 86_400.0
        self.answer_takes_s = 0.2
        self.asked = 0

    def ask(self) -> float | None:
        self.asked += 1
        self.steady += self.answer_takes_s
        return None if self.server is None else float(int(self.server))

    def clock(self) -> ServerClock:
        return ServerClock(self.ask, steady=lambda: self.steady, local=lambda: self.local)


def test_the_time_is_the_servers_and_is_counted_on_without_asking() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    assert abs(clock.now() - 1_800_000_000.0) < 1
    clocks.steady += 300
    clocks.local = 1_900_000_000.0
    assert abs(clock.now() - 1_800_000_300.0) < 1
    assert clocks.asked == 1
    clocks.steady += EVERY_S
    clock.now()
    assert clocks.asked == 2


def test_a_server_that_went_away_leaves_the_time_that_it_told() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    clock.now()
    clocks.server = None
    clocks.steady += 4000
    assert abs(clock.now() - 1_800_004_000.0) < 1


def test_an_answer_that_took_long_does_not_spoil_what_is_known() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    clock.now()
    clocks.steady += EVERY_S
    clocks.answer_takes_s = 9.0
    assert abs(clock.now() - (1_800_000_000.0 + EVERY_S + 9)) < 1


def test_a_server_that_never_told_the_time_leaves_this_machines_own() -> None:
    clocks = Clocks()
    clocks.server = None
    clock = clocks.clock()
    assert clock.now() == 86_400.0
    assert clock.ahead_s() is None
    # Not for ever: it may have been away.
    clocks.server = 1_800_000_000.0
    clocks.steady += EVERY_S
    assert abs(clock.now() - 1_800_000_000.0) < 1


def test_signs_of_life_survive_their_tag_and_nonsense_is_left_out() -> None:
    one = Seen(agent="a-1", at=1_800_000_000.25, facts={"version": "1"})
    name, value = one.to_tag()
    assert name == "sharedenc.seen.a-1"
    tags = {
        name: value,
        "sharedenc.seen.b": '{"at": 1800000001, "facts": 7}',
        "sharedenc.seen.c": '{"at": "late"}',
        "sharedenc.seen.d": "[1]",
        "sharedenc.seen.e": "{}",
        "sharedenc.seen.f": "nonsense",
        "mlflow.note.content": '{"at": 9e9}',
    }
    found = [(seen.agent, seen.at, seen.facts) for seen in seen_agents(tags)]
    assert found == [("b", 1_800_000_001.0, {}), ("a-1", 1_800_000_000.2, {"version": "1"})]
    with pytest.raises(ProtocolError, match="facts take"):
        Seen(agent="x", at=0.0, facts={"long": "x" * 5000}).to_tag()
