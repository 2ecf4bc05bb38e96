"""What the machines of a sweep have left, start by start."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.order import Demand, Machine


class Room:
    """Machines and who occupies them; a machine is known by its id, without one by its place."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._taken: dict[int, tuple[str, Demand]] = {}
        self.set(machines)

    def set(self, machines: Sequence[Machine]) -> None:
        """Machines came or went; trials on those that stay go on occupying them."""
        self.machines = list(machines)
        self.free = list(machines)
        self._index = {_key(i, m): i for i, m in enumerate(machines)}
        for key, demand in self._taken.values():
            if key in self._index:
                self._less(key, demand)

    def take(self, start: int, place: int, demand: Demand) -> Machine:
        """Put what starts on the machine at ``place``; ``start`` is its number in the sweep."""
        key = _key(place, self.machines[place])
        self._taken[start] = (key, demand)
        self._less(key, demand)
        return self.machines[place]

    def give(self, start: int) -> None:
        """All of a start have left their machine, which may be gone by now."""
        if start in self._taken:
            key, demand = self._taken.pop(start)
            if key in self._index:
                back = Demand(cpus=-demand.cpus, gpus=-demand.gpus, memory=-demand.memory)
                self._less(key, back)

    def could_hold(self, demand: Demand) -> bool:
        """Whether some machine could hold the demand if it were empty."""
        return any(machine.holds(demand) for machine in self.machines)

    def _less(self, key: str, demand: Demand) -> None:
        place = self._index[key]
        self.free[place] = self.free[place].without(demand)


def _key(place: int, machine: Machine) -> str:
    return machine.id or str(place)
