"""What occupies the machines of a sweep now: trials that started together, mostly one alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps import fusion
from sweeps.fusion import Part
from sweeps.order import Demand, Machine
from sweeps.room import Room


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trials in one process: ``members`` started together, ``running`` have not ended.

    ``key`` numbers the groups of a sweep: a trial that is tried again starts in a new one, maybe
    while its mates go on in the old one. ``started`` is a time of the sweep's clock; ``ends`` are
    the expected seconds from there to the end of each, ``tails`` those of the longest chain that
    waits for it.
    """

    key: int
    members: tuple[str, ...]
    running: list[str]
    machine: Machine
    demand: Demand
    started: float
    ends: Mapping[str, float] = field(default_factory=dict)
    tails: Mapping[str, float] = field(default_factory=dict)

    def left(self, now: float) -> tuple[float, float]:
        """Expected seconds to the end of the last member, and of the longest chain behind one."""
        spent = now - self.started
        left = [(max(self.ends[name] - spent, 0.0), self.tails[name]) for name in self.running]
        return max(own for own, _ in left), max(own + tail for own, tail in left)


class Groups:
    """The groups that run and the room that they leave; counts device time, once for a group."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.room = Room(machines)
        self._of: dict[str, Group] = {}
        self._starts = 0
        self._ended_s = 0.0

    def __getitem__(self, name: str) -> Group:
        """The group in which a trial runs."""
        return self._of[name]

    def __len__(self) -> int:
        return len(self.all)

    @property
    def all(self) -> list[Group]:
        """The groups that run, in the order of their starts."""
        return list({id(group): group for group in self._of.values()}.values())

    def start(self, parts: Sequence[Part], place: int, demand: Demand, now: float) -> Group:
        """Put trials on the machine at ``place``."""
        names = [part.id for part in parts]
        self._starts += 1
        group = Group(
            key=self._starts,
            members=tuple(names),
            running=names,
            machine=self.room.take(self._starts, place, demand),
            demand=demand,
            started=now,
            ends=dict(zip(names, fusion.ends(parts), strict=True)),
            tails={part.id: part.tail for part in parts},
        )
        self._of.update(dict.fromkeys(names, group))
        return group

    def leave(self, name: str, now: float) -> Group:
        """A trial has ended; with the last one of its group, which is returned, a place is free."""
        group = self._of.pop(name)
        group.running.remove(name)
        if not group.running:
            self.room.give(group.key)
            self._ended_s += _device_s(group, now)
        return group

    def device_s(self, now: float) -> float:
        """Seconds of devices so far; on machines without GPUs, of processes."""
        return self._ended_s + sum(_device_s(group, now) for group in self.all)

    def left(self, now: float) -> list[tuple[float, float]]:
        """Of each group, expected seconds to its end and to that of its longest chain."""
        return [group.left(now) for group in self.all]


def slots(machines: Iterable[Machine], demands: Iterable[Demand], most: int | None) -> int:
    """How many trials run at once: of the smallest demand, and ``most`` at most."""
    machines = list(machines)
    held = max((sum(m.times(d) for m in machines) for d in demands), default=0)
    return held if most is None else min(held, most)


def _device_s(group: Group, now: float) -> float:
    return (now - group.started) * (group.demand.gpus or 1.0)
