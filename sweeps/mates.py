"""Which trials of a study could train together: those of one frozen encoder, as far as known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from sharedenc.spec import Trial
from sharedenc.training.fusion import fusion_key
from sweeps.fusion import Part, shared_part
from sweeps.proposals import START_TRIALS

if TYPE_CHECKING:
    from sweeps.facts import Facts
    from sweeps.graph import Node
    from sweeps.rows import Row

# Where a trial is asked for that is the same at every rate.
ANY_RATE = 1e-4


class Rates(Protocol):
    """What is asked of rates that are chosen late; `Resolver` answers."""

    def at_any_rate(self, node: Node, rows: Mapping[str, Row]) -> Trial | None:
        """The trial of a node that waits for nothing, whatever its rate; None: not known."""

    def proposals_now(self, node: Node, rows: Mapping[str, Row]) -> int | None:
        """How many trials of a node's search may start at once and yet try what they would try
        one after the other; None where its rate does not depend on that.
        """


class Mates:
    """Says who could train with whom.

    Args:
        rates: Of trials that are known late; None where all are known.
    """

    def __init__(self, rates: Rates | None = None) -> None:
        self._rates = rates
        self._keys: dict[str, str | None] = {}

    def key(self, node: Node, rows: Mapping[str, Row]) -> str | None:
        """Fusion key of a node that waits for nothing more; None when it trains alone."""
        if node.cell.freeze != "frozen":
            return None
        if node.id not in self._keys:
            trial = rows[node.id].trial or node.trial
            if trial is None and self._rates is not None:
                trial = self._rates.at_any_rate(node, rows)
            if trial is None:
                return None
            self._keys[node.id] = fusion_key(trial, trial.parent_key)
        return self._keys[node.id]

    def willing(
        self, starting: Iterable[Node], waiting: Iterable[Node], rows: Mapping[str, Row]
    ) -> list[Node]:
        """Those of ``waiting`` that lose nothing by starting together with ``starting``.

        A rate that would be proposed from results does not start beside the trials that give them:
        one slot tries the same rates, whoever trains together.
        """
        if self._rates is None:
            return list(waiting)
        taken: Counter[str | None] = Counter()
        for node in starting:
            if self._rates.proposals_now(node, rows) is not None:
                taken[node.search] += 1
        found = []
        for node in waiting:
            most = self._rates.proposals_now(node, rows)
            if most is not None:
                if taken[node.search] >= most:
                    continue
                taken[node.search] += 1
            found.append(node)
        return found


def likely_keys(nodes: Iterable[Node], facts: Facts) -> dict[str, str]:
    """Fusion keys of frozen trials before anything runs, by node id, rates and parents aside.

    Swaps of one source are taken to start from one network. Search trials whose rates will follow
    from results are left out.
    """
    keys = {}
    for node in nodes:
        late = node.search is not None and node.trial is None
        if node.cell.freeze != "frozen" or (late and (node.number or 0) >= START_TRIALS):
            continue
        parent = None
        if node.cell.source is not None:
            parent = facts.trial(node.cell.source, node.recipe, ANY_RATE, node.seed)
        trial = facts.trial(node.cell, node.recipe, ANY_RATE, node.seed, parent)
        key = fusion_key(trial, trial.parent_key)
        if key is not None:
            keys[node.id] = key
    return keys


def part(node: Node, *, work: float, tail: float, key: str | None) -> Part:
    """A node as the policy sees it."""
    return Part(id=node.id, work=work, tail=tail, key=key, shared=shared_part(node.cell.backbone))
