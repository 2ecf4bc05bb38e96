"""Whole deployments: what serves both tasks on a board, what it scores, weighs and costs.

A deployment is named by what was trained for it: ``resnet18/baseline``, ``resnet18/share-frozen``,
``resnet18/swap-frozen/seg`` (the detector, with a segmentation head on its frozen encoder), ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sharedenc.errors import SharedencError
from sharedenc.report.boards import Board, Timings
from sharedenc.report.changes import HEADLINE, Figure, Method, relative_change
from sharedenc.report.collect import ExportRow
from sharedenc.report.front import on_front
from sharedenc.report.table_spec import ENCODER_BIASES, Facts

TASKS = ("seg", "det")
_NOT_TOLD = Figure.missing("not told")
UNSCORED = "INT8 accuracy not measured"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A registered model version."""

    model: str
    version: int


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What serves both tasks.

    Attributes:
        passes: Encoder passes for one picture.
        graphs: The graphs that run, one after the other: ``("seg", "det")`` or ``("dual",)``.
        cells: The cell that gives each task's score, by task.
        mIoU: Test score of the float network (0..1), over seeds.
        mAP: Likewise.
        parameters: Millions that are stored, shared ones once.
    """

    name: str
    backbone: str
    strategy: str
    freeze: str
    passes: int
    graphs: tuple[str, ...]
    cells: Mapping[str, str]
    mIoU: Figure
    mAP: Figure
    parameters: Figure


@dataclass(frozen=True, kw_only=True)
class Option:
    """A deployment in one setup at one precision: what may be chosen.

    Attributes:
        board: Device, power mode and tool, as `TimingRow.board`.
        stat: Which latency: ``p99-single``, ``p50-stream``, ...
        latency: Milliseconds for both tasks of one picture; missing with its reason.
        mIoU: Test score of the files that are timed; where INT8 was not scored, the float score
            with that mark.
        mAP: Likewise.
        drop_mIoU: Change of the INT8 file against the float file in percent; missing for float.
        drop_mAP: Likewise.
        memory: MiB of its engines and execution contexts on the device, where the tool tells it.
        models: The registered versions to deploy, empty where nothing is registered.
        on_front: Whether no other option of this backend, precision and statistic is at least as
            good in latency, mIoU and mAP and better in one.
    """

    deployment: Deployment
    device: str
    mode: str
    board: str
    precision: str
    stat: str
    latency: Figure
    mIoU: Figure
    mAP: Figure
    drop_mIoU: Figure
    drop_mAP: Figure
    memory: Figure = _NOT_TOLD
    models: tuple[Model, ...] = ()
    on_front: bool = False


def deployments(facts: Facts) -> list[Deployment]:
    """Every way to serve both tasks that the study trained a part of, by backbone and method.

    An encoder that trains in no part, or for both tasks at once, serves both in one pass. Every
    other freeze mode gives each task an encoder of its own, which needs a second pass. So does a
    frozen one whose running statistics moved (``bn_mode=train``).
    """
    found = []
    for backbone in facts.scores.backbones:
        for method in facts.scores.methods:
            for name, parts in _ways(method):
                trained = [task for task in TASKS if parts[task] == method]
                if any(facts.scores.rows(backbone, method, task) for task in trained):
                    found.append(_deployment(facts, backbone, name, method, parts))
    return found


def _ways(method: Method) -> list[tuple[str, dict[str, Method]]]:
    """Name, and the method of each task's cell."""
    if method.strategy != "swap":
        return [(method.name, dict.fromkeys(TASKS, method))]
    # A swapped head comes to the other task's baseline.
    return [
        (f"{method.name}/{task}", {**dict.fromkeys(TASKS, Method("baseline")), task: method})
        for task in TASKS
    ]


def _deployment(
    facts: Facts, backbone: str, name: str, method: Method, parts: Mapping[str, Method]
) -> Deployment:
    one = method.strategy == "dual" or _encoder_stays(facts, backbone, method)
    scores = {task: facts.scores.score(backbone, parts[task], HEADLINE[task]) for task in TASKS}
    return Deployment(
        name=f"{backbone}/{name}",
        backbone=backbone,
        strategy=method.strategy,
        freeze=method.freeze,
        passes=1 if one else 2,
        graphs=("dual",) if one else TASKS,
        cells={
            task: f"{backbone}/{part.name}" + ("" if part.strategy == "dual" else f"/{task}")
            for task, part in parts.items()
        },
        mIoU=scores["seg"],
        mAP=scores["det"],
        parameters=_parameters(facts, backbone, method, parts),
    )


def _encoder_stays(facts: Facts, backbone: str, method: Method) -> bool:
    """Whether training leaves the encoder as it was, running statistics included."""
    if method.freeze != "frozen":
        return False
    trials = [row for task in TASKS for row in facts.scores.rows(backbone, method, task)]
    return not any(row.recipe.get("recipe.bn_mode") == "train" for row in trials)


def _parameters(facts: Facts, backbone: str, method: Method, parts: Mapping[str, Method]) -> Figure:
    """Millions that are stored: what both tasks have in common once, what differs twice."""
    classes = facts.rows.num_classes

    def of(part: Method, task: str, which: str, graph: str) -> float:
        """From the study's own trials where there, else counted."""
        known = facts.scores.parameters(backbone, part, task, which).value
        return facts.count(backbone, graph, classes) / 1e6 if known is None else known

    try:
        if method.strategy == "dual":
            return Figure.of([of(method, "", "total", "dual")])
        totals = {task: of(part, task, "total", task) for task, part in parts.items()}
        encoder = of(parts["seg"], "seg", "encoder", "encoder")
        both = sum(totals.values())
        if method.freeze == "none":
            return Figure.of([round(both, 6)])
        trained = 0.0 if method.freeze == "frozen" else None
        for task in TASKS:
            if trained is None and parts[task] == method:
                own = facts.scores.parameters(backbone, method, task, "trainable").value
                if own is not None:
                    trained = own - (totals[task] - encoder)
        if trained is None and method.freeze == "bias":
            trained = facts.count(backbone, ENCODER_BIASES, classes) / 1e6
        if trained is None:
            unknown = f"two encoders: what {method.freeze!r} trains of one is not known"
            return Figure.of([round(both, 6)], mark=unknown)
        # To one parameter, so that equal counts are equal.
        return Figure.of([round(both - encoder + trained, 6)])
    except SharedencError as error:
        return Figure.missing(f"not counted: {error}")


def by_seed(facts: Facts, deployment: Deployment, metric: str) -> dict[int, float]:
    """Test score (0..1) of the float network by seed; ``metric`` is ``mIoU`` or ``mAP``."""
    task = next(task for task, headline in HEADLINE.items() if headline == metric)
    ways = dict(_ways(Method(deployment.strategy, deployment.freeze)))
    parts = ways[deployment.name.removeprefix(f"{deployment.backbone}/")]
    return facts.scores.by_seed(deployment.backbone, parts[task], metric)


def options(
    facts: Facts,
    *,
    precision: str | None = None,
    device: str | None = None,
    mode: str | None = None,
    stat: str | None = None,
) -> list[Option]:
    """Every deployment in every setup that was timed, or in those that are asked for.

    Args:
        precision: As the protocol has it (``int8``); None for each that was timed.
        device: The full name; likewise.
        mode: Power mode; likewise.
        stat: Which latency, such as ``p99-single``. None for that where it was timed, else
            ``p50-stream``, ``p50-single``, or what there is.

    Raises:
        SpecError: ``stat`` is no statistic.
    """
    timings, whole = Timings(facts), deployments(facts)
    exports = {(row.cell, row.graph): row for row in facts.rows.exports}
    found: list[Option] = []
    for board in timings.boards:
        asked = ((precision, board.precision), (device, board.device), (mode, board.mode))
        if any(want is not None and want != has for want, has in asked):
            continue
        shown = stat or timings.shown(board)
        found += _with_front(
            [_option(timings, exports, deployment, board, shown) for deployment in whole]
        )
    return found


def _option(
    timings: Timings,
    exports: Mapping[tuple[str, str], ExportRow],
    deployment: Deployment,
    board: Board,
    stat: str,
) -> Option:
    files = {
        task: exports.get(
            (deployment.name, "dual") if deployment.passes == 1 else (deployment.cells[task], task)
        )
        for task in TASKS
    }
    scored = {
        "seg": _scored(deployment.mIoU, files["seg"], "mIoU", board),
        "det": _scored(deployment.mAP, files["det"], "mAP", board),
    }
    registered = [Model(model=row.model, version=row.version) for row in files.values() if row]
    return Option(
        deployment=deployment,
        device=board.device,
        mode=board.mode,
        board=board.name,
        precision=board.precision,
        stat=stat,
        latency=timings.latency(deployment.backbone, deployment.graphs, board, stat),
        mIoU=scored["seg"][0],
        mAP=scored["det"][0],
        drop_mIoU=scored["seg"][1],
        drop_mAP=scored["det"][1],
        memory=timings.memory(deployment.backbone, deployment.graphs, board, stat),
        models=tuple(dict.fromkeys(registered)) if len(registered) == len(files) else (),
    )


def _scored(
    score: Figure, export: ExportRow | None, metric: str, board: Board
) -> tuple[Figure, Figure]:
    """Score of the file that is timed, and its change against the float file in percent.

    An INT8 file is scored once, in one seed's export, and perhaps on a part of the test photos. So
    what it keeps of its own float file's score scales the mean over seeds; with one seed and all
    photos that is the INT8 file's own score.
    """
    if board.precision == "fp32":
        return score, Figure.missing("no INT8 file")
    if not board.quantised:
        name = "INT8" if board.precision.startswith("int8") else board.precision.upper()
        why = f"{name} accuracy not measured"
        if name == "INT8":
            why += f": {board.precision} is timed for its speed alone"
        return _doubted(score, why), Figure.missing(why)
    why = _why_unscored(export, metric, board.int8_kind)
    if export is None or why:
        return _doubted(score, why), Figure.missing(why)
    exact, own = (export.scores[kind][metric] for kind in ("float", board.int8_kind))
    drop = Figure.of([relative_change(own, exact)])
    if score.value is None:
        return score, drop
    kept = own / exact
    spread = None if score.sd is None else score.sd * kept
    return replace(score, value=score.value * kept, sd=spread), drop


def _why_unscored(export: ExportRow | None, metric: str, kind: str) -> str:
    """Why nothing says what INT8 costs; empty where something does."""
    if export is None:
        return f"{UNSCORED}: not exported"
    own, exact = (export.scores.get(which, {}).get(metric) for which in (kind, "float"))
    # COCO's scorer says -1 where a score is undefined.
    if own is not None and not own >= 0.0:
        return f"{UNSCORED}: the INT8 file scores {own:g}"
    if own is None or exact is None:
        reason = export.int8_reason or f"{export.model} version {export.version} is not scored"
        return f"{UNSCORED}: {reason}"
    return "" if exact > 0 else f"{UNSCORED}: the float file scores {exact:g}"


def _doubted(score: Figure, mark: str) -> Figure:
    if score.value is None:
        return score
    return replace(score, mark=f"{mark}; {score.mark}" if score.mark else mark)


def _with_front(found: Sequence[Option]) -> list[Option]:
    """The options of one board, precision and statistic, with `Option.on_front` set."""
    best = _best([(option.latency, option.mIoU, option.mAP) for option in found])
    return [replace(option, on_front=at in best) for at, option in enumerate(found)]


def memory_front(found: Sequence[Option]) -> list[Option]:
    """As `parameter_front`, in memory on the device; of one board and precision."""
    best = _best([(option.memory, option.mIoU, option.mAP) for option in found])
    return [option for at, option in enumerate(found) if at in best]


def parameter_front(found: Sequence[Deployment]) -> list[Deployment]:
    """Those that no other is at least as good as in parameters, mIoU and mAP, and better in one.

    One that lacks any of the three is left out.
    """
    best = _best([(whole.parameters, whole.mIoU, whole.mAP) for whole in found])
    return [whole for at, whole in enumerate(found) if at in best]


def _best(figures: Sequence[tuple[Figure, Figure, Figure]]) -> set[int]:
    """Which of (cost, score, score) no other is better than; one that lacks a number is none."""
    costs = {}
    for at, row in enumerate(figures):
        cost, first, second = (figure.value for figure in row)
        if cost is not None and first is not None and second is not None:
            costs[at] = (cost, -first, -second)
    chosen = on_front(list(costs.values()))
    return {at for at, best in zip(costs, chosen, strict=True) if best}
