"""What each trial of a sweep occupies: what its node asks for, fitted to the machines there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sharedenc.errors import SpecError
from sweeps.faults import whole
from sweeps.order import Demand, Machine
from sweeps.resources import MEMBER_BYTES, fit

if TYPE_CHECKING:
    from sweeps.graph import Node


class Demands:
    """Demands by trial; those that ran out of memory ask for a whole device from then on."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._asked = {node.id: node.demand for node in nodes}
        self._fitted = dict(self._asked)
        self._whole: set[str] = set()
        self._width = {node.id: node.width for node in nodes}

    def __getitem__(self, name: str) -> Demand:
        return self._fitted[name]

    def together(self, names: Sequence[str]) -> Demand:
        """What trials occupy that train together: the largest of them, and a little for each."""
        asked = max(self._asked[name].memory for name in names)
        return together([self._fitted[name] for name in names], asked)

    def width(self, names: Iterable[str]) -> int:
        """How many trials may train together where all of these do."""
        return min(self._width[name] for name in names)

    def fit(self, names: Sequence[str], machines: Sequence[Machine], *, strict: bool) -> None:
        """Fit the demands of trials that have not started.

        Raises:
            SpecError: ``strict``, and no machine has the cores or GPUs of a trial.
        """
        if not names or not machines:
            return
        asked = [self._asked[name] for name in names]
        try:
            fitted = fit(asked, machines)
        except SpecError:
            if strict:
                raise
            fitted = asked
        self._fitted.update(zip(names, fitted, strict=True))
        for name in self._whole.intersection(names):
            self._fitted[name] = whole(self._fitted[name], list(machines))

    def enlarge(self, name: str, machines: Sequence[Machine]) -> None:
        """Ask for a whole device, or without GPUs for a whole machine."""
        self._whole.add(name)
        self._fitted[name] = whole(self._fitted[name], list(machines))


def together(fitted: Sequence[Demand], asked: int) -> Demand:
    """What trials of these demands occupy together, of which one asks for ``asked`` bytes alone."""
    return Demand(
        cpus=max(demand.cpus for demand in fitted),
        gpus=max(demand.gpus for demand in fitted),
        memory=max(
            max(demand.memory for demand in fitted), asked + (len(fitted) - 1) * MEMBER_BYTES
        ),
    )


def words(demand: Demand) -> str:
    """``2 CPU cores, 1 GPUs, 2.4 GiB``."""
    parts = [f"{demand.cpus:g} CPU cores"]
    if demand.gpus:
        parts.append(f"{demand.gpus:g} GPUs")
    return ", ".join([*parts, f"{demand.memory / 2**30:.1f} GiB"])
