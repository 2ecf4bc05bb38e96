"""Early stopping that only ever compares trials of one cell and one recipe.

Asynchronous successive halving: at each rung (an epoch) a trial goes on if its best score so
far is among the best 1/factor of all that were recorded there up to now, at least one. Equal
scores do not cut each other. A trial that ends by itself is entered in all higher rungs, so
that a good fast trial is not forgotten. Final trials belong to no bracket and are never cut.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020,
arXiv 1810.05934.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

CUT = "cut at epoch"


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Rungs in epochs (rising) and the factor by which each one thins out."""

    rungs: tuple[int, ...]
    factor: int = 2


@dataclass
class Bracket:
    """The trials of one cell and recipe, which differ in the learning rate alone."""

    ladder: Ladder
    _recorded: dict[int, dict[str, float]] = field(default_factory=dict)
    _best: dict[str, float] = field(default_factory=dict)

    def report(self, trial: str, epoch: int, score: float) -> str | None:
        """Record ``score`` (higher is better) after ``epoch``; a reason when the trial is cut."""
        best = max(self._best.get(trial, -math.inf), score if math.isfinite(score) else -math.inf)
        self._best[trial] = best
        if epoch not in self.ladder.rungs:
            return None
        rung = self._recorded.setdefault(epoch, {})
        rung[trial] = best
        better = sum(1 for other in rung.values() if other > best)
        if better < max(len(rung) // self.ladder.factor, 1):
            return None
        return f"{CUT} {epoch}: {better} of {len(rung)} trials had a better score"

    def finish(self, trial: str, epoch: int) -> None:
        """A trial ended by itself after ``epoch``: its best score stands in all later rungs."""
        if trial in self._best:
            for rung in self.ladder.rungs:
                if rung > epoch:
                    self._recorded.setdefault(rung, {})[trial] = self._best[trial]
