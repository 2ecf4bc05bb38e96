"""A recorded sweep run again on a virtual clock: would the policy start the same, in that order?

The real `SweepState` is driven with the recorded events: epochs, ends, faults, machines. Whenever
the record says that a trial started, the state is asked what it would start, and on which machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeps.order import Machine

if TYPE_CHECKING:
    from sweeps.faults import Rules
    from sweeps.graph import Node
    from sweeps.mates import Mates
    from sweeps.state import Estimates, Listener, Resolve, Row, Settled, SweepState

# Times in the record are rounded, and written a little after the decision.
LATER_S = 1e-3


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A start that the policy would not have chosen: trial and machine, recorded and chosen.

    Trials that start together are told as ``a + b``.
    """

    t: float
    recorded: tuple[str, str]
    chosen: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How many recorded starts were the ones that the policy chooses, and the first other one."""

    starts: int
    same: int
    difference: Difference | None = None

    @property
    def agrees(self) -> bool:
        """Whether every recorded start was the policy's."""
        return self.difference is None and self.same == self.starts


def replay(
    nodes: Sequence[Node],
    events: Sequence[Mapping[str, Any]],
    machines: Sequence[Machine] | None = None,
    *,
    resolve: Resolve | None = None,
    rules: Rules | None = None,
    estimates: Estimates | None = None,
    listener: Listener | None = None,
    mates: Mates | None = None,
) -> Replay:
    """Drive the real state with what happened.

    It stops at the first difference: what follows it would be another sweep.

    Args:
        nodes: Of the recorded study.
        events: Of one session of an `EventLog`, in order.
        machines: What there was to run on; by default the record's first `machines` event.
        resolve: Makes trials that are known late; needed where the study has such.
        rules, estimates, listener, mates: As in the recorded sweep, new ones.
    """
    starts = sum(1 for event in events if event["event"] == "start")
    state, clock = _state(nodes, events, machines, resolve, rules, estimates, listener, mates)
    same = 0
    started: set[str] = set()
    for event in events:
        clock.now = float(event["t"]) + LATER_S
        if event["event"] != "start":
            _apply(state, event)
            continue
        if event["trial"] in started:  # together with the one before
            started.remove(event["trial"])
            same += 1
            continue
        row = state.next()
        members = event.get("together") or [event["trial"]]
        recorded = (" + ".join(members), str(event.get("machine", "")))
        chosen = ("", "")
        if row is not None:
            chosen = (" + ".join(state.group(row.node.id).members), row.machine)
        if recorded != chosen:
            difference = Difference(t=float(event["t"]), recorded=recorded, chosen=chosen)
            return Replay(starts=starts, same=same, difference=difference)
        started = set(members[1:])
        same += 1
    return Replay(starts=starts, same=same)


class _Clock:
    """The recorded time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _state(
    nodes: Sequence[Node],
    events: Sequence[Mapping[str, Any]],
    machines: Sequence[Machine] | None,
    resolve: Resolve | None,
    rules: Rules | None,
    estimates: Estimates | None,
    listener: Listener | None,
    mates: Mates | None,
) -> tuple[SweepState, _Clock]:
    from sweeps.state import SweepState, as_given

    if machines is None:
        listed = [event["machines"] for event in events if event["event"] == "machines"]
        machines = [Machine(**values) for values in listed[0]] if listed else []
    clock = _Clock()
    elastic = any(event.get("elastic") for event in events if event["event"] == "machines")
    state = SweepState(
        nodes,
        machines,
        resolve=resolve or as_given,
        settled=_settled(events),
        rules=rules,
        listener=listener,
        estimates=estimates,
        clock=clock,
        elastic=elastic,
        mates=mates,
    )
    state.begin()
    return state, clock


def _settled(events: Sequence[Mapping[str, Any]]) -> Callable[[Row], Settled | None]:
    """What the ledger said then: rows that ended as reused."""
    from sweeps.state import Settled

    reused = {e["trial"]: e for e in events if e["event"] == "end" and e.get("reused")}

    def settled(row: Row) -> Settled | None:
        event = reused.get(row.node.id)
        if event is None:
            return None
        return Settled(
            state=event["state"],
            reason=event["reason"],
            score=_number(event.get("score")),
            run_id="",
            reused=event["reused"],
            attempts=int(event.get("attempts", 1)),
        )

    return settled


def _apply(state: SweepState, event: Mapping[str, Any]) -> None:
    kind = event["event"]
    if kind == "machines":
        state.set_machines([Machine(**values) for values in event["machines"]])
    elif kind == "withheld":
        state.withhold(event["trials"])
    elif kind == "epoch":
        report = {
            "epoch": event["epoch"],
            "score": _number(event.get("score")),
            "seconds": _number(event.get("seconds")),
            "members": event.get("members", 1),
        }
        if event.get("rank") is not None:
            report["rank"] = _number(event["rank"])
        state.epoch(event["trial"], report)
    elif kind in ("end", "again"):
        # Rows that were closed without having run (skipped, reused) close by themselves again, but
        # for what somebody outside had skipped.
        if state.rows[event["trial"]].state == "running":
            state.end(event["trial"], _outcome(event))
        elif event["state"] == "skipped":
            state.skip(event["trial"], event["reason"])


def _outcome(event: Mapping[str, Any]) -> dict[str, Any]:
    """What the worker said, as far as decisions depend on it."""
    state = event["state"]
    if event["event"] == "again":
        state = "failed" if event["kind"] else "preempted"
    return {
        "state": state,
        "kind": event["kind"] or None,
        "error": event.get("error", ""),
        "reason": event["reason"],
        "result": {"score": _number(event.get("score"))},
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
