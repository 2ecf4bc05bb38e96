"""The brackets of a sweep: search trials of one group, judged at their rungs."""

from __future__ import annotations

from sweeps.brackets import Bracket
from sweeps.rows import Row


class Cuts:
    """Brackets by group; final trials belong to none and are never cut."""

    def __init__(self) -> None:
        self.brackets: dict[str, Bracket] = {}
        self._replayed: set[str] = set()

    def epoch(self, row: Row, epoch: int, rank: float) -> str:
        """Enter an epoch's rank; the reason when the trial's bracket cuts it here.

        A trial that goes on from an older checkpoint says epochs again; they are known already.
        """
        bracket = self._bracket(row)
        if bracket is None or (row.history and epoch <= row.history[-1][0]):
            return ""
        row.history.append((epoch, rank))
        return bracket.report(row.node.id, epoch, rank) or ""

    def remember(self, row: Row, *, finished: bool = False) -> None:
        """Enter epochs of an earlier invocation, once; they cut nothing any more."""
        bracket = self._bracket(row)
        if bracket is not None and row.history and row.node.id not in self._replayed:
            self._replayed.add(row.node.id)
            bracket.replay(row.node.id, row.history, finished=finished)

    def finish(self, row: Row) -> None:
        """A trial ended by itself: it stands in all higher rungs."""
        bracket = self._bracket(row)
        if bracket is not None and row.epoch:
            bracket.finish(row.node.id, row.epoch)

    def _bracket(self, row: Row) -> Bracket | None:
        node = row.node
        if node.group is None or node.ladder is None:
            return None
        return self.brackets.setdefault(node.group, Bracket(node.ladder))
