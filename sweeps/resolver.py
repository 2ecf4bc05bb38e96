"""Nodes become trials when what they depend on is known: a rate from a search, a parent's key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sharedenc.spec import Recipe, Task, Trial
from sweeps.facts import Facts
from sweeps.mates import ANY_RATE
from sweeps.proposals import START_TRIALS, Proposal, Proposer, Told
from sweeps.rates import choose, told
from sweeps.rows import ENDED, Unresolvable
from sweeps.searches import under
from sweeps.study import Study

if TYPE_CHECKING:
    from sweeps.graph import Node
    from sweeps.state import Row


def nothing(search: str, number: int) -> Proposal | None:
    """What is known of earlier proposals where there is no ledger."""
    return None


class Resolver:
    """Makes a node's trial once what it depends on is known.

    ``known`` gives what an earlier invocation proposed for a search's trial: it is proposed
    again, whatever is known by now.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        study: Study,
        facts: Facts,
        known: Callable[[str, int], Proposal | None] = nothing,
    ) -> None:
        self._study, self._facts, self._known = study, facts, known
        self._nodes = {node.id: node for node in nodes}
        self._lrs = {search.cell: search.lrs for search in study.searches}
        self._proposed: dict[tuple[str, int], float] = {}
        self._members: dict[str, list[Node]] = {}
        for node in nodes:
            if node.search is not None:
                self._members.setdefault(node.search, []).append(node)

    def trial(self, node: Node, rows: Mapping[str, Row]) -> Trial:
        """The trial of a node that is about to start; everything that it waits for has ended.

        Raises:
            Unresolvable: no trial of the search that it waits for gave a score.
        """
        if node.trial is not None:
            return node.trial
        recipe, lr = self._settings(node, rows)
        parent = None if node.cell.source is None else rows[node.needs[0]].trial
        if node.cell.source is not None and parent is None:
            raise Unresolvable(f"{node.needs[0]}, which it starts from, has no trial")
        return self._facts.trial(node.cell, recipe, lr, node.seed, parent)

    def preview(self, node: Node, rows: Mapping[str, Row] | None = None) -> Trial | None:
        """The trial of a node as far as it is known before anything runs.

        Args:
            rows: What an earlier invocation left: searches that have ended, and the trials that
                were really trained where a swap starts from one that is only compatible.
        """
        rows = rows or {}
        parent = None
        if node.cell.source is not None:
            parent = self._known_parent(node.needs[0], rows)
            if parent is None:
                return node.trial
        if node.trial is not None:
            if parent is None or parent.key == node.trial.parent_key:
                return node.trial
            return replace(
                node.trial, parent_key=parent.key, parent_compatible=parent.compatible_key
            )
        settings = self._known_settings(node, rows)
        if settings is None:
            return None
        recipe, lr = settings
        return self._facts.trial(node.cell, recipe, lr, node.seed, parent)

    def at_any_rate(self, node: Node, rows: Mapping[str, Row]) -> Trial | None:
        """The trial of a node that waits for nothing, whatever its rate; None: not known."""
        parent = None if node.cell.source is None else rows[node.needs[0]].trial
        if node.cell.source is not None and parent is None:
            return None
        return self._facts.trial(node.cell, node.recipe, ANY_RATE, node.seed, parent)

    def proposals_now(self, node: Node, rows: Mapping[str, Row]) -> int | None:
        """How many trials of a node's search may start at once and yet try what they would try
        one after the other; None where its rate does not depend on that.

        The first rates are spread without regard to results; each later one follows from those of
        all before it.
        """
        if node.search is None or self._early(node) is not None:
            return None
        answers = self._told(node, rows)
        spread = START_TRIALS - len(answers)
        if spread > 0:
            return spread
        return 0 if any(item.value is None for item in answers) else 1

    def _known_parent(self, name: str, rows: Mapping[str, Row]) -> Trial | None:
        trial = rows[name].trial if name in rows else None
        return trial or self.preview(self._nodes[name], rows)

    def _known_settings(self, node: Node, rows: Mapping[str, Row]) -> tuple[Recipe, float] | None:
        deciding = self._deciding(node)
        if deciding and all(name in rows and rows[name].state in ENDED for name in deciding):
            try:
                return self._settings(node, rows)
            except Unresolvable:
                return None
        lr = self._early(node)
        return None if lr is None else (node.recipe, lr)

    def _settings(self, node: Node, rows: Mapping[str, Row]) -> tuple[Recipe, float]:
        if node.search is not None:
            return node.recipe, self._proposal(node, rows)
        trials = self._deciding(node)
        if not trials:
            return node.recipe, self._study.rate(node.cell.backbone)
        found = choose([rows[name] for name in trials])
        if found is None:
            first = rows[trials[0]]
            raise Unresolvable(
                f"no trial of its learning-rate search gave a score ({first.node.id}: "
                f"{first.reason or first.state})"
            )
        return under(node.recipe, found.scheduler, self._study.search_epochs), found.lr

    def _deciding(self, node: Node) -> list[str]:
        """The search trials that decide a final trial's rate."""
        return [name for name in node.after if self._nodes[name].search is not None]

    def _early(self, node: Node) -> float | None:
        if node.search is None:
            return None if self._deciding(node) else self._study.rate(node.cell.backbone)
        assert node.number is not None
        if self._lrs[node.cell]:
            return self._lrs[node.cell][node.number]
        if (node.search, node.number) in self._proposed:
            return self._proposed[node.search, node.number]
        known = self._known(node.search, node.number)
        if known is not None:
            return known.lr
        return self._proposer(node).first if node.number == 0 else None

    def _proposal(self, node: Node, rows: Mapping[str, Row]) -> float:
        assert node.search is not None
        assert node.number is not None
        lr = self._early(node)
        if lr is None:
            lr = self._proposer(node).propose(node.number, self._told(node, rows))
        self._proposed[node.search, node.number] = lr
        return lr

    def _told(self, node: Node, rows: Mapping[str, Row]) -> list[Told]:
        """What is known of the search's other numbers; those that did not start may be known."""
        assert node.search is not None
        members = self._members[node.search]
        answers = told([rows[member.id] for member in members])
        have = {item.lr for item in answers}
        for member in members:
            lr = None if rows[member.id].trial is not None else self._early(member)
            if lr is not None and lr not in have and member.number != node.number:
                have.add(lr)
                answers.append(Told(lr=lr))
        return answers

    def _proposer(self, node: Node) -> Proposer:
        low, high = self._study.search_range
        return Proposer(
            search=node.search or "",
            seed=self._study.seeds[0],
            low=low,
            high=high,
            likely=self._study.likely(node.cell.backbone),
        )


def baseline_scores(node: Node, rows: Mapping[str, Row]) -> dict[Task, float]:
    """Best validation scores of the baselines that a searched dual is compared with, by task."""
    scores: dict[Task, float] = {}
    for name in node.after if node.search is not None else ():
        row = rows[name]
        if row.state == "done" and row.node.cell.task is not None:
            scores[row.node.cell.task] = row.score
    return scores
