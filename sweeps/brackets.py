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
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sharedenc.spec import Scheduler

CUT = "cut at epoch"


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Rungs in epochs (rising) and the factor by which each one thins out."""

    rungs: tuple[int, ...]
    factor: int = 2


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a bracket decided on a trial at a rung.

    ``against`` has the scores of all other trials recorded there by then, best first; the trial
    was cut (``cut``) because of those that are better than its own ``score``.
    """

    trial: str
    epoch: int
    score: float
    against: tuple[float, ...] = ()
    cut: bool = False

    @property
    def better(self) -> tuple[float, ...]:
        """The scores that beat this trial's."""
        return tuple(score for score in self.against if score > self.score)

    @property
    def reason(self) -> str:
        """The decision in words, which `Cut.parse` reads again; empty when the trial goes on."""
        if not self.cut:
            return ""
        scores = ", ".join(f"{score:.6g}" for score in self.better)
        return (
            f"{CUT} {self.epoch}: {len(self.better)} of {len(self.against) + 1} trials had a "
            f"better score: {scores} against {self.score:.6g}"
        )


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A cut as its reason tells it: ``better`` of ``trials`` had more than ``score``."""

    epoch: int
    trials: int
    score: float
    better: tuple[float, ...]

    @classmethod
    def parse(cls, reason: str) -> Cut | None:
        """Read a reason; None when it is not that of a cut."""
        found = re.fullmatch(
            rf"{CUT} (\d+): \d+ of (\d+) trials had a better score: (.+) against (\S+)", reason
        )
        if found is None:
            return None
        epoch, trials, better, score = found.groups()
        return cls(
            epoch=int(epoch),
            trials=int(trials),
            score=float(score),
            better=tuple(float(text) for text in better.split(", ")),
        )


@dataclass
class Bracket:
    """The trials of one cell and recipe, which differ in the learning rate alone.

    ``decisions`` holds everything that was decided, in that order.
    """

    ladder: Ladder
    decisions: list[Decision] = field(default_factory=list)
    _recorded: dict[int, dict[str, float]] = field(default_factory=dict)
    _best: dict[str, float] = field(default_factory=dict)

    def report(self, trial: str, epoch: int, score: float) -> str | None:
        """Record ``score`` (higher is better) after ``epoch``; a reason when the trial is cut.

        A trial that reports an epoch again, since it was resumed, is not judged anew.
        """
        best = self._note(trial, score)
        if epoch not in self.ladder.rungs:
            return None
        rung = self._recorded.setdefault(epoch, {})
        if trial in rung:
            earlier = [d for d in self.decisions if (d.trial, d.epoch) == (trial, epoch)]
            return (earlier[0].reason or None) if earlier else None
        rung[trial] = best
        against = sorted((s for other, s in rung.items() if other != trial), reverse=True)
        better = sum(score > best for score in against)
        cut = better >= max(len(rung) // self.ladder.factor, 1)
        decision = Decision(trial=trial, epoch=epoch, score=best, against=tuple(against), cut=cut)
        self.decisions.append(decision)
        return decision.reason or None

    def finish(self, trial: str, epoch: int) -> None:
        """A trial ended by itself after ``epoch``: its best score stands in all later rungs."""
        if trial in self._best:
            for rung in self.ladder.rungs:
                if rung > epoch:
                    self._recorded.setdefault(rung, {})[trial] = self._best[trial]

    def replay(self, trial: str, history: Iterable[tuple[int, float]], *, finished: bool) -> None:
        """Enter (epoch, score) of an earlier invocation; nothing is cut by it or for it.

        ``finished`` says that the trial ended by itself, as opposed to being cut or interrupted.
        """
        epoch = 0
        for epoch, score in sorted(history):
            best = self._note(trial, score)
            if epoch in self.ladder.rungs:
                self._recorded.setdefault(epoch, {}).setdefault(trial, best)
        if finished:
            self.finish(trial, epoch)

    def _note(self, trial: str, score: float) -> float:
        score = score if math.isfinite(score) else -math.inf
        best = self._best[trial] = max(self._best.get(trial, -math.inf), score)
        return best


def default_rungs(
    epochs: int, factor: int, patience: int = 10, scheduler: Scheduler = "plateau"
) -> tuple[int, ...]:
    """Rungs for a budget: as early as ranks mean something, then each ``factor`` times later.

    Before a plateau schedule has lowered its rate, trials rank by the noise of a constant one,
    which favours low rates. Its first cut comes after epoch ``patience + 2`` at the earliest and
    its second one after ``2 * patience + 3``: long budgets begin behind the second, shorter ones
    behind the first; one in which no cut can come begins at ``epochs / factor**2``. A cosine has
    one rung, where its rate has fallen to the half.

    Source: methods 6.2.
    """
    rung = max(1, epochs // factor**2)
    if scheduler == "cosine":
        rung = max(math.ceil(epochs / 2), 1)
    elif scheduler == "constant":
        rung = min(24, rung)
    elif epochs >= factor * (2 * patience + 4):
        rung = 2 * patience + 4
    elif epochs > patience + 3:
        rung = max(patience + 3, rung)
    rungs = []
    while rung < epochs:
        rungs.append(rung)
        rung *= factor
    return tuple(rungs)
