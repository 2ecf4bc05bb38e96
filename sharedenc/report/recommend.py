"""What to deploy: the best whole deployment within limits, the next one, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, get_args

from sharedenc.errors import SharedencError, SpecError, check_choice
from sharedenc.report.boards import Timings
from sharedenc.report.changes import HEADLINE, Figure, relative_change
from sharedenc.report.choose_board import Chosen, choose_board
from sharedenc.report.collect import TimingRow
from sharedenc.report.confidence import Confidence, how_sure, run_spread
from sharedenc.report.deployments import Option, by_seed, options
from sharedenc.report.table_spec import Facts

Prefer = Literal["both", "mAP", "mIoU"]
AIMS: dict[Prefer, str] = {
    "both": "the mean of mIoU and mAP, each as a share of the board's best",
    "mAP": "mAP",
    "mIoU": "mIoU",
}
METRICS = tuple(HEADLINE.values())


class NoDeploymentFits(SharedencError):
    """No deployment keeps all limits; the message says what comes nearest."""

    exit_code = 10


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; None leaves a limit out, or a choice to what there is only one of.

    Attributes:
        device: Name of the timed device, or a part of it that no other has.
        mode: Power mode, likewise.
        precision: As the protocol has it: ``fp32``, ``int8``, ...
        max_latency_ms: Most milliseconds for both tasks of one picture.
        stat: Which latency. None for ``p99-single``; of the published numbers, which have no such,
            for what they have.
        min_mIoU: Least test score (0..1).
        min_mAP: Likewise.
        max_parameters_m: Most millions of stored parameters.
        max_memory_mib: Most MiB of engines and execution contexts on the device.
        prefer: What is to be high. ``both``: the mean over the tasks of score / best score of that
            task among all that was timed there. Else that task's score, then the other's.

    Raises:
        SpecError: a limit that is no such number.
    """

    device: str | None = None
    mode: str | None = None
    precision: str | None = None
    max_latency_ms: float | None = None
    stat: str | None = None
    min_mIoU: float | None = None
    min_mAP: float | None = None
    max_parameters_m: float | None = None
    max_memory_mib: float | None = None
    prefer: Prefer = "both"

    def __post_init__(self) -> None:
        check_choice("prefer", self.prefer, get_args(Prefer))
        for name in ("min_mIoU", "min_mAP"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                hint = f"; {value:g} % is {value / 100:g}" if 1.0 < value <= 100.0 else ""
                raise SpecError(f"{name}={value:g} is no score between 0 and 1{hint}")
        for name in ("max_latency_ms", "max_parameters_m", "max_memory_mib"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise SpecError(f"{name}={value:g} is no positive number")

    @property
    def least(self) -> dict[str, float]:
        """The scores to reach, by metric."""
        limits = {"mIoU": self.min_mIoU, "mAP": self.min_mAP}
        return {metric: limit for metric, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class Cost:
    """What a choice gives up against the best of the board, whatever that one's latency.

    ``mIoU`` and ``mAP`` are changes in percent of the best one's scores, None where it scores 0.
    """

    best: Option
    mIoU: float | None
    mAP: float | None


@dataclass(frozen=True)
class Rejected:
    """A deployment that was not chosen, and why."""

    deployment: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer.

    Attributes:
        why: What the choice is the best in, and among how many.
        constraints: What was asked for, with what was found for it: the device's full name, ...
        rejected: All others that could be judged, apart from the runner-up.
        unmeasured: Those that could not be judged.
        notes: What was taken that was not asked for, and what barely misses the latency.
    """

    study: str
    choice: Option
    runner_up: Option | None
    why: str
    cost_against_best: Cost
    constraints: dict[str, Any]
    confidence: Confidence
    rejected: tuple[Rejected, ...]
    unmeasured: tuple[Rejected, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for ``--json``."""
        cost = self.cost_against_best
        return {
            "study": self.study,
            "choice": _told(self.choice),
            "runner_up": None if self.runner_up is None else _told(self.runner_up),
            "constraints": self.constraints,
            "confidence": asdict(self.confidence),
            "why": self.why,
            "cost_against_best": {
                "best": _told(cost.best),
                "mIoU_percent": cost.mIoU,
                "mAP_percent": cost.mAP,
            },
            "rejected": [asdict(row) for row in self.rejected],
            "unmeasured": [asdict(row) for row in self.unmeasured],
            "notes": list(self.notes),
        }


def recommend(facts: Facts, request: Request) -> Recommendation:
    """The best deployment of a study within the limits, on one board at one precision.

    Of equals the one with less latency goes before, then the one with fewer parameters.

    Raises:
        SpecError: device, mode, precision or statistic is unknown or not the only one.
        NoDeploymentFits: the limits leave nothing.
        SharedencError: nothing was timed, or nothing that was timed has both scores.
    """
    timings = Timings(facts)
    chosen = choose_board(
        facts,
        timings,
        device=request.device,
        mode=request.mode,
        precision=request.precision,
        stat=request.stat,
    )
    board, stat = chosen.board, chosen.stat
    where = f"{board.name}, {board.precision}, {stat}"
    judged, unmeasured = _judged(facts, chosen, request, where)
    ranking = _Ranking(judged, request.prefer)
    fitting = [option for option in ranking.ordered if not _misses(option, request)]
    if not fitting:
        raise NoDeploymentFits(_nearest_miss(ranking.ordered, request, where))
    choice, runner_up = fitting[0], fitting[1] if len(fitting) > 1 else None

    def rows_of(option: Option) -> tuple[TimingRow, ...]:
        whole = option.deployment
        return timings.rows(whole.backbone, whole.graphs, board, stat)

    return Recommendation(
        study=facts.rows.study,
        choice=choice,
        runner_up=runner_up,
        why=_why(request, len(fitting), len(judged)),
        cost_against_best=_cost(choice, ranking.ordered[0]),
        constraints={
            **asdict(request),
            "device": board.device,
            "mode": board.mode,
            "board": board.name,
            "precision": board.precision,
            "stat": stat,
        },
        confidence=how_sure(
            choice,
            runner_up,
            rows_of(choice),
            request.max_latency_ms,
            request.least,
            lambda option: ranking.by_seed(facts, option),
            AIMS[request.prefer],
        ),
        rejected=tuple(
            Rejected(option.deployment.name, _why_not(option, request, ranking, choice))
            for option in ranking.ordered
            if option not in (choice, runner_up)
        ),
        unmeasured=unmeasured,
        notes=(*chosen.notes, *_barely_out(ranking, request, rows_of)),
    )


def _judged(
    facts: Facts, chosen: Chosen, request: Request, where: str
) -> tuple[list[Option], tuple[Rejected, ...]]:
    """The deployments that can be judged on a board, at least one, and those that cannot."""
    board = chosen.board
    every = [
        option
        for option in options(
            facts,
            precision=board.precision,
            device=board.device,
            mode=board.mode,
            stat=chosen.stat,
        )
        if option.board == board.name
    ]
    lacking = [(option, _lacks(option, request)) for option in every]
    unmeasured = tuple(Rejected(o.deployment.name, why) for o, why in lacking if why)
    judged = [option for option, why in lacking if not why]
    if not judged:
        told = "; ".join(f"{row.deployment}: {row.why}" for row in unmeasured[:3])
        raise SharedencError(
            f"no deployment of study {facts.rows.study!r} can be judged on {where}. "
            f"{told or 'The study has no cell that serves a task.'}"
        )
    return judged, unmeasured


class _Ranking:
    """Options that can be judged, the best first."""

    def __init__(self, judged: Sequence[Option], prefer: Prefer) -> None:
        self._prefer = prefer
        self._best = {
            metric: max(_value(getattr(option, metric)) for option in judged) for metric in METRICS
        }
        self.ordered = sorted(judged, key=self._place)

    def aim(self, miou: float, ap: float) -> float:
        """What is to be high."""
        if self._prefer != "both":
            return ap if self._prefer == "mAP" else miou
        scores = {"mIoU": miou, "mAP": ap}
        return fmean(scores[m] / best if best else 0.0 for m, best in self._best.items())

    def of(self, option: Option) -> float:
        return self.aim(_value(option.mIoU), _value(option.mAP))

    def by_seed(self, facts: Facts, option: Option) -> dict[int, float]:
        """The aim by seed, of those that its tasks have, scaled as the option's own scores are."""
        scores = {}
        for metric in METRICS:
            raw = by_seed(facts, option.deployment, metric)
            exact = _value(getattr(option.deployment, metric))
            kept = _value(getattr(option, metric)) / exact if exact else 1.0
            scores[metric] = {seed: value * kept for seed, value in raw.items()}
        if self._prefer != "both":
            return scores[self._prefer]
        common = sorted(scores["mIoU"].keys() & scores["mAP"].keys())
        return {seed: self.aim(scores["mIoU"][seed], scores["mAP"][seed]) for seed in common}

    def _place(self, option: Option) -> tuple[float, float, float, float, str]:
        miou, ap = _value(option.mIoU), _value(option.mAP)
        other = {"both": 0.0, "mAP": miou, "mIoU": ap}[self._prefer]
        size = option.deployment.parameters.value
        return (
            -self.aim(miou, ap),
            -other,
            _value(option.latency),
            float("inf") if size is None else size,
            option.deployment.name,
        )


def _lacks(option: Option, request: Request) -> str:
    """What keeps a deployment from being judged; empty for nothing."""
    figures = {"latency": option.latency, "mIoU": option.mIoU, "mAP": option.mAP}
    if request.max_parameters_m is not None:
        figures["parameters"] = option.deployment.parameters
    if request.max_memory_mib is not None:
        figures["memory"] = option.memory
    return "; ".join(f"{n}: {figure.why}" for n, figure in figures.items() if figure.value is None)


def _misses(option: Option, request: Request, *, latency: bool = True) -> list[str]:
    """The limits that a deployment does not keep."""
    found = []
    ms, limit = _value(option.latency), request.max_latency_ms
    if latency and limit is not None and ms > limit:
        found.append(f"{ms:.3f} ms is over {limit:g} ms")
    for metric, least in request.least.items():
        score = _value(getattr(option, metric))
        if score < least:
            found.append(f"{metric} {score:.4f} is below {least:g}")
    most = request.max_parameters_m
    if most is not None and _value(option.deployment.parameters) > most:
        size = _value(option.deployment.parameters)
        found.append(f"{size:.2f} million parameters are over {most:g}")
    most = request.max_memory_mib
    if most is not None and _value(option.memory) > most:
        found.append(f"{_value(option.memory):.1f} MiB are over {most:g}")
    return found


def _why_not(option: Option, request: Request, ranking: _Ranking, choice: Option) -> str:
    misses = _misses(option, request)
    if misses:
        return "; ".join(misses)
    mine, best = ranking.of(option), ranking.of(choice)
    return f"fits, but has {mine:.4f} where the choice has {best:.4f} ({AIMS[request.prefer]})"


def _barely_out(
    ranking: _Ranking, request: Request, rows_of: Callable[[Option], Sequence[TimingRow]]
) -> Iterator[str]:
    """What is better than the choice and misses the latency by less than runs lie apart."""
    limit = request.max_latency_ms
    for option in ranking.ordered:
        if limit is None or not _misses(option, request):
            return
        ms, share = _value(option.latency), run_spread(rows_of(option))
        if share is None or _misses(option, request, latency=False):
            continue
        if ms - limit < share * ms:
            yield (
                f"{option.deployment.name} is better and misses the limit by {ms - limit:.3g} ms, "
                f"less than its runs lie apart ({share * ms:.3g} ms)"
            )


def _why(request: Request, fitting: int, judged: int) -> str:
    limits, aim = _limits(request), AIMS[request.prefer]
    if not limits:
        return f"of {judged} deployments the highest in {aim}"
    if fitting == 1:
        return f"the only one of {judged} deployments with {limits}"
    return f"of the {fitting} deployments with {limits} ({judged} in all) the highest in {aim}"


def _limits(request: Request) -> str:
    parts = []
    if request.max_latency_ms is not None:
        parts.append(f"at most {request.max_latency_ms:g} ms")
    parts += [f"{metric} of at least {least:g}" for metric, least in request.least.items()]
    if request.max_parameters_m is not None:
        parts.append(f"at most {request.max_parameters_m:g} million parameters")
    if request.max_memory_mib is not None:
        parts.append(f"at most {request.max_memory_mib:g} MiB")
    return ", ".join(parts)


def _nearest_miss(judged: Sequence[Option], request: Request, where: str) -> str:
    """Say what comes nearest where nothing fits; ``judged`` has the best first."""
    told = [f"no deployment on {where} has {_limits(request)}."]
    limit = request.max_latency_ms
    others = [option for option in judged if not _misses(option, request, latency=False)]
    if limit is not None and all(_value(option.latency) > limit for option in judged):
        first = min(judged, key=lambda option: _value(option.latency))
        told.append(f"The fastest is {first.deployment.name} at {_value(first.latency):.3f} ms.")
    if others and len(others) < len(judged):
        first = min(others, key=lambda option: _value(option.latency))
        told.append(
            f"Within the other limits the fastest is {first.deployment.name}, which needs "
            f"{_value(first.latency):.3f} ms."
        )
    for metric, least in request.least.items():
        top = max(judged, key=lambda option: _value(getattr(option, metric)))
        score = _value(getattr(top, metric))
        if score < least:
            told.append(f"The highest {metric} is {score:.4f} ({top.deployment.name}).")
    most = request.max_parameters_m
    if most is not None:
        small = min(judged, key=lambda option: _value(option.deployment.parameters))
        size = _value(small.deployment.parameters)
        if size > most:
            told.append(f"The smallest is {small.deployment.name} with {size:.2f} million.")
    most = request.max_memory_mib
    if most is not None:
        small = min(judged, key=lambda option: _value(option.memory))
        if _value(small.memory) > most:
            told.append(f"{small.deployment.name} needs least: {_value(small.memory):.1f} MiB.")
    if len(told) == 1:
        told.append("Each limit can be kept, but not all at once.")
    return " ".join(told)


def _cost(choice: Option, best: Option) -> Cost:
    changes = []
    for metric in METRICS:
        top = _value(getattr(best, metric))
        changes.append(relative_change(_value(getattr(choice, metric)), top) if top else None)
    return Cost(best, *changes)


def _told(option: Option) -> dict[str, Any]:
    whole = option.deployment
    return {
        "deployment": whole.name,
        "backbone": whole.backbone,
        "strategy": whole.strategy,
        "freeze": whole.freeze,
        "latency_ms": option.latency.value,
        "mIoU": option.mIoU.value,
        "mAP": option.mAP.value,
        "passes": whole.passes,
        "models": [asdict(model) for model in option.models],
        "parameters_m": whole.parameters.value,
        "memory_mib": option.memory.value,
        "seeds": min(option.mIoU.runs, option.mAP.runs),
        "marks": {
            name: figure.mark
            for name, figure in (
                ("latency_ms", option.latency),
                ("mIoU", option.mIoU),
                ("mAP", option.mAP),
                ("parameters_m", whole.parameters),
            )
            if figure.mark
        },
    }


def _value(figure: Figure) -> float:
    assert figure.value is not None, figure.why
    return figure.value
