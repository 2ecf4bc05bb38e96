"""What learning-rate searches tried, what was stopped where and against what, and who won.

All functions are pure: rows to trials, trials to a report (plain values, kept as JSON with the
study), a report to Markdown. With full curves of the stopped trials (the same search run without
rungs) the report says whether stopping them cost anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeps.brackets import Cut
from sweeps.rates import choose, rank

if TYPE_CHECKING:
    from sweeps.state import Row

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """One trial of a search. ``budget`` is its recipe's epochs, ``score`` its best rank (NaN:
    none), ``curve`` its (epoch, rank); ``lr`` is None when it never started.
    """

    name: str
    group: str
    cell: str
    scheduler: str
    number: int
    lr: float | None
    budget: int
    rungs: tuple[int, ...]
    factor: int
    state: str
    reason: str = ""
    key: str = ""
    score: float = math.nan
    epochs: int = 0
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def cut(self) -> Cut | None:
        """How its bracket stopped it; None when it did not."""
        return Cut.parse(self.reason) if self.state == "stopped" else None

    @property
    def counts(self) -> bool:
        """Whether it can win."""
        return (self.state == "done" or self.cut is not None) and math.isfinite(self.score)


def search_trials(rows: Iterable[Row]) -> list[SearchTrial]:
    """The search trials among the rows of a sweep."""
    return [_trial(row) for row in rows if row.node.search is not None]


def _trial(row: Row) -> SearchTrial:
    node = row.node
    return SearchTrial(
        name=node.id,
        group=node.group or node.id,
        cell=node.cell.name,
        scheduler=node.recipe.scheduler,
        number=node.number or 0,
        lr=None if row.trial is None else row.trial.lr,
        budget=node.recipe.epochs,
        rungs=() if node.ladder is None else node.ladder.rungs,
        factor=0 if node.ladder is None else node.ladder.factor,
        state=row.state,
        reason=row.reason,
        key="" if row.trial is None else row.trial.key,
        score=rank(row),
        epochs=max((epoch for epoch, _ in row.history), default=row.epoch),
        curve=tuple(row.history),
    )


def report(
    trials: Iterable[SearchTrial],
    full: Mapping[str, Curve] | None = None,
    rates: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The report of a study's searches, one entry for each bracket.

    Args:
        full: Curves up to the end of trials that were stopped, by content key or name.
        rates: What final trials were given, by cell (`chosen_rates`).
    """
    groups: dict[str, list[SearchTrial]] = {}
    for trial in trials:
        groups.setdefault(trial.group, []).append(trial)
    return {
        "searches": [_bracket(group, full or {}) for group in groups.values()],
        "rates": dict(rates or {}),
    }


def chosen_rates(rows: Mapping[str, Row]) -> dict[str, str]:
    """The rate (and schedule) that each final trial takes from the searches it waited for."""
    rates = {}
    for name, row in rows.items():
        searched = [rows[n] for n in row.node.after if rows[n].node.search is not None]
        found = choose(searched) if row.node.search is None and searched else None
        if found is not None:
            rates[name] = f"{found.lr:.3g}, {found.scheduler}"
    return rates


def _bracket(trials: list[SearchTrial], full: Mapping[str, Curve]) -> dict[str, Any]:
    first, winner = trials[0], _best({t.name: (t.score, t.lr) for t in trials if t.counts})
    stopped = [trial for trial in trials if trial.cut is not None]
    return {
        "search": first.group,
        "cell": first.cell,
        "scheduler": first.scheduler,
        "epochs": first.budget,
        "rungs": list(first.rungs),
        "factor": first.factor,
        "trials": [_line(trial) for trial in trials],
        "winner": winner,
        "stopped": len(stopped),
        "epochs_trained": sum(trial.epochs for trial in trials),
        "epochs_saved": sum(trial.budget - trial.epochs for trial in stopped),
        "verdict": _verdict(trials, winner, full) if stopped and winner else None,
    }


def _line(trial: SearchTrial) -> dict[str, Any]:
    cut = trial.cut
    best = -math.inf
    at_rungs = {}
    for epoch, score in sorted(trial.curve):
        best = max(best, score) if math.isfinite(score) else best
        if epoch in trial.rungs:
            at_rungs[str(epoch)] = _number(best)
    return {
        "name": trial.name,
        "number": trial.number,
        "lr": trial.lr,
        "state": trial.state,
        "reason": trial.reason,
        "key": trial.key,
        "epochs": trial.epochs,
        "score": _number(trial.score),
        "at_rungs": at_rungs,
        "stopped": None
        if cut is None
        else {
            "epoch": cut.epoch,
            "score": _number(cut.score),
            "better": list(cut.better),
            "of": cut.trials,
        },
        "curve": [[epoch, _number(score)] for epoch, score in trial.curve],
    }


def _best(scores: Mapping[str, tuple[float, float | None]]) -> dict[str, Any] | None:
    """Name, rate and score of the best trial; of equal ones that with the lower rate."""
    known = {name: (score, lr) for name, (score, lr) in scores.items() if lr is not None}
    if not known:
        return None
    name = max(known, key=lambda n: (known[n][0], -known[n][1]))
    return {"name": name, "lr": known[name][1], "score": known[name][0]}


def _verdict(
    trials: list[SearchTrial], winner: Mapping[str, Any], full: Mapping[str, Curve]
) -> dict[str, Any] | None:
    """Whether the winner is the best trial when all run to the end; None without their curves."""
    scores = {}
    for trial in trials:
        curve = full.get(trial.key) or full.get(trial.name)
        if trial.cut is not None and not curve:
            return None
        if trial.counts:
            ranks = [score for _, score in curve or () if math.isfinite(score)]
            scores[trial.name] = (max([trial.score, *ranks]), trial.lr)
    best = _best(scores)
    assert best is not None
    lost = best["score"] - scores[winner["name"]][0]
    return {
        "best": best,
        "right": lost == 0,
        "lost": lost,
        "lost_relative": lost / best["score"] if best["score"] > 0 else None,
        "full_scores": {name: score for name, (score, _) in scores.items()},
    }


def read(values: Mapping[str, Any]) -> list[SearchTrial]:
    """The trials of a report that was stored as JSON."""
    return [
        SearchTrial(
            name=line["name"],
            group=search["search"],
            cell=search["cell"],
            scheduler=search["scheduler"],
            number=line["number"],
            lr=line["lr"],
            budget=search["epochs"],
            rungs=tuple(search["rungs"]),
            factor=search["factor"],
            state=line["state"],
            reason=line["reason"],
            key=line["key"],
            score=_nan(line["score"]),
            epochs=line["epochs"],
            curve=tuple((epoch, _nan(score)) for epoch, score in line["curve"]),
        )
        for search in values["searches"]
        for line in search["trials"]
    ]


def curves(values: Mapping[str, Any]) -> dict[str, Curve]:
    """Full curves by content key, from the report of a search that stopped nothing early."""
    return {t.key: t.curve for t in read(values) if t.state == "done" and t.key and t.curve}


def markdown(values: Mapping[str, Any]) -> str:
    """A report as text: a table for each bracket, and what it means."""
    parts = ["# Learning-rate searches\n"]
    for search in values["searches"]:
        parts += [f"## {search['search']}\n", _table(search), _words(search)]
    if values["rates"]:
        parts.append("## Rates of the final trials\n")
        parts.append("".join(f"- {cell}: {rate}\n" for cell, rate in values["rates"].items()))
    return "\n".join(parts)


def _table(search: Mapping[str, Any]) -> str:
    heads = ["#", "rate", *(f"epoch {rung}" for rung in search["rungs"]), "best", "epochs", "end"]
    lines = [heads, ["---"] * len(heads)]
    full = (search["verdict"] or {}).get("full_scores", {})
    if full:
        heads.append("best, run to the end")
        lines[1].append("---")
    for line in search["trials"]:
        rate = "" if line["lr"] is None else f"{line['lr']:.3g}"
        cells = [str(line["number"]), rate]
        cells += [_text(line["at_rungs"].get(str(rung))) for rung in search["rungs"]]
        cells += [_text(line["score"]), str(line["epochs"]), _end(line, search["winner"])]
        lines.append(cells + ([_text(full.get(line["name"]))] if full else []))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _end(line: Mapping[str, Any], winner: Mapping[str, Any] | None) -> str:
    if winner is not None and winner["name"] == line["name"]:
        return "**winner**" if line["state"] == "done" else f"**winner**, {line['state']}"
    cut = line["stopped"]
    if cut is None:
        text = line["state"] if line["state"] == "done" else f"{line['state']}: {line['reason']}"
        return text.replace("|", "/").rstrip(": ")
    own = _text(cut["score"]) or "no score"
    against = ", ".join(_text(score) for score in cut["better"])
    return (
        f"stopped at epoch {cut['epoch']} with {own} against {against} "
        f"({len(cut['better'])} of {cut['of']} were better)"
    )


def _words(search: Mapping[str, Any]) -> str:
    winner, verdict = search["winner"], search["verdict"]
    if winner is None:
        return "No trial gave a score.\n"
    text = f"Winner: {winner['lr']:.3g} with {_text(winner['score'])}. "
    text += f"{search['stopped']} of {len(search['trials'])} trials were stopped early"
    if not search["stopped"]:
        return f"{text}.\n"
    whole = search["epochs_trained"] + search["epochs_saved"]
    text += f", after {search['epochs_trained']} of at most {whole} epochs together."
    if verdict is None:
        return f"{text} Whether one of them would have won is not known: none ran to the end.\n"
    if verdict["right"]:
        return f"{text} Run to the end, none of them beats the winner.\n"
    best, part = verdict["best"], verdict["lost_relative"]
    relative = "" if part is None else f" ({100 * part:.1f} % of the best)"
    return (
        f"{text} Run to the end, {best['lr']:.3g} is best with {_text(best['score'])}: stopping it "
        f"lost {_text(verdict['lost'])}{relative}.\n"
    )


def _text(score: float | None) -> str:
    return "" if score is None else f"{score:.4g}"


def _number(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _nan(score: float | None) -> float:
    return math.nan if score is None else score
