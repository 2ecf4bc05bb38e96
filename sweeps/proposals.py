"""Learning rates to try: Optuna's TPE, seeded, asked only when a trial starts.

A proposal is a function of the search, the trial's number and what is known of the other trials
at that moment, and of nothing else. So a search that runs one trial at a time proposes the same
values again, and an interrupted one goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sharedenc.spec import Scheduler

# TPE models good and bad rates from so many results on; before, rates are spread evenly.
START_TRIALS = 4
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Proposal:
    """What a search trial tries."""

    lr: float
    scheduler: Scheduler = "plateau"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of a rate that was proposed.

    ``value`` (higher is better) is None while it trains; ``cut_at`` is the epoch at which its
    bracket stopped it.
    """

    lr: float
    value: float | None = None
    cut_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Proposer:
    """Proposes the rates of one search, log-uniform in ``low`` to ``high``.

    ``search`` and ``seed`` seed it; ``likely`` is tried first, so that a search never ends below
    the rate that was known before, and brackets have a good trial to compare with.
    """

    search: str
    seed: int
    low: float
    high: float
    likely: float | None = None

    @property
    def first(self) -> float:
        """The rate of trial 0, whatever is known by then."""
        if self.likely is not None and self.low <= self.likely <= self.high:
            return self.likely
        return self._apart(self._spread(0), ())

    def propose(self, number: int, told: Sequence[Told]) -> float:
        """The rate of a trial: three significant digits, and not a rate that another one has.

        Args:
            told: The other trials of the search by number; those that say nothing are left out.
        """
        if number == 0:
            return self.first
        if sum(item.value is not None for item in told) < START_TRIALS:
            lr = self._spread(number)
        else:
            lr = self._tpe(number, told)
        return self._apart(lr, {self.first, *(item.lr for item in told)})

    def _spread(self, number: int) -> float:
        """Points of a golden-ratio sequence: evenly spread however many of them are taken."""
        start = self._seed("start") / 2**32
        part = (start + number * GOLDEN) % 1.0
        return math.exp(math.log(self.low) + part * math.log(self.high / self.low))

    def _tpe(self, number: int, told: Sequence[Told]) -> float:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = optuna.distributions.FloatDistribution(self.low, self.high, log=True)
        sampler = optuna.samplers.TPESampler(seed=self._seed(number), n_startup_trials=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for item in told:
            if self.low <= item.lr <= self.high:
                study.add_trial(_frozen(item, {"lr": space}))
        return float(study.ask({"lr": space}).params["lr"])

    def _apart(self, lr: float, taken: Collection[float]) -> float:
        """Rounded, within the range, and moved up (then down) until nobody has it."""
        first = min(max(_rounded(lr), self.low), self.high)
        lr = first
        while lr in taken and lr < self.high:
            lr = min(_rounded(lr * 1.02), self.high)
        while lr in taken:
            lr = _rounded(lr * 0.98)
        return lr

    def _seed(self, what: object) -> int:
        text = f"{self.seed}/{self.search}/{what}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _frozen(item: Told, space: dict[str, Any]) -> Any:
    """A trial as Optuna keeps it: running, pruned at an epoch, or complete."""
    from optuna.trial import TrialState, create_trial

    state = TrialState.COMPLETE
    if item.value is None:
        state = TrialState.RUNNING
    elif item.cut_at is not None:
        state = TrialState.PRUNED
    values = {} if item.cut_at is None else {item.cut_at: item.value}
    return create_trial(
        state=state,
        value=item.value,
        params={"lr": item.lr},
        distributions=space,
        intermediate_values=values,
    )


def _rounded(lr: float) -> float:
    return float(f"{lr:.2e}")
