"""What the page shows, in the order and the words in which it shows it; no markup."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sharedenc.report.cells import NOT_A_NUMBER, Cell, Head, cells, heads, number_cell
from sharedenc.report.changes import METHODS, Figure, Method
from sharedenc.report.collect import StudyRows, TrialRow
from sharedenc.report.deployments import Option
from sharedenc.report.evidence import Photo
from sharedenc.report.pictures import Picture
from sharedenc.report.table_spec import Table, Unit

# A last label of this name becomes a line above the rows that share it.
_GROUP_LABEL = "timed on"
TASKS = {"seg": "segmentation", "det": "detection"}
_MOST_DECIMALS = 4
# Characters of a finding that are shown at once.
_FOLDED = 150


@dataclass(frozen=True)
class Body:
    """Rows under one line of their own, or under none."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Grid:
    """A table for the page.

    Attributes:
        labels: How many of a row's first cells name the row.
        groups: Upper heads: text and how many columns each spans; empty where one line of heads
            says it all.
        heads: Lower heads, one per column, labels included.
    """

    labels: int
    groups: tuple[tuple[str, int], ...]
    heads: tuple[Head, ...]
    bodies: tuple[Body, ...]

    @property
    def size(self) -> int:
        """How many rows there are."""
        return sum(len(body.rows) for body in self.bodies)


def grid(table: Table) -> Grid:
    """Lay a table out: heads in one or two lines, rows under what they share."""
    top = heads(table)
    labels = len(table.spec.heads)
    grouped = labels > 1 and table.spec.heads[-1] == _GROUP_LABEL
    titles = [row.labels[-1] if grouped else "" for row in table.rows]
    bodies: dict[str, list[tuple[Cell, ...]]] = {}
    for title, row in zip(titles, table.rows, strict=True):
        found = cells(table, row)
        if grouped:
            del found[labels - 1]
        bodies.setdefault(title, []).append(tuple(found))
    if grouped:
        del top[labels - 1]
        labels -= 1
    return Grid(
        labels,
        _spans(top[labels:]),
        tuple(top),
        tuple(
            Body(f"{_GROUP_LABEL}: {title}" if grouped else "", tuple(rows))
            for title, rows in bodies.items()
        ),
    )


def _spans(top: Sequence[Head]) -> tuple[tuple[str, int], ...]:
    spans: list[tuple[str, int]] = []
    for head in top:
        # Columns of one name side by side are groups of their own: each begins with ours.
        if spans and head.kind != "ours" and spans[-1][0] == head.group:
            spans[-1] = (head.group, spans[-1][1] + 1)
        else:
            spans.append((head.group, 1))
    return tuple(spans) if any(span > 1 for _, span in spans) else ()


@dataclass(frozen=True)
class Choice:
    """An option, and what it is the first of in its setup: ``("fastest", "highest mAP")``."""

    option: Option
    first_in: tuple[str, ...] = ()

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be known of its numbers, each once, instead of in every cell."""
        one = self.option
        known = [figure.mark for figure in (one.latency, one.mIoU, one.mAP)]
        if self.is_int8:
            known += [drop.why for drop in (one.drop_mIoU, one.drop_mAP)]
        return tuple(dict.fromkeys(text for text in known if text))

    @property
    def is_int8(self) -> bool:
        """Whether there is a change by INT8 to speak of."""
        return self.option.precision.startswith("int8")


@dataclass(frozen=True)
class Setup:
    """Options that may be compared: of one board, one precision and one statistic."""

    title: str
    front: tuple[Choice, ...]
    others: tuple[Choice, ...]
    command: str
    answer: str = ""

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be known of every one of them, and is said once."""
        found = [choice.caveats for choice in (*self.front, *self.others)]
        if len(found) < 2:
            return ()
        return tuple(text for text in found[0] if all(text in other for other in found))


def setups(options: Sequence[Option], study: str) -> list[Setup]:
    """The options by what was timed how, fastest first; those without a time come last."""
    groups: dict[tuple[str, ...], list[Option]] = {}
    for option in options:
        key = (option.device, option.mode, option.board, option.precision, option.stat)
        groups.setdefault(key, []).append(option)
    return [_setup(found, study) for found in groups.values()]


def _setup(options: Sequence[Option], study: str) -> Setup:
    ordered = sorted(options, key=lambda option: _or_last(option.latency.value))
    front = [option for option in ordered if option.on_front]
    first: dict[int, list[str]] = {}
    if len(front) == 1 < len(ordered):
        first[id(front[0])] = ["best or level in all three"]
    elif len(front) > 1:
        for what, best in (
            ("fastest", front[0] if front[0].latency.value != front[1].latency.value else None),
            ("highest mIoU", _highest(front, "mIoU")),
            ("highest mAP", _highest(front, "mAP")),
            ("fewest parameters", _lightest(front, ordered)),
        ):
            if best is not None:
                first.setdefault(id(best), []).append(what)
    one = ordered[0]
    return Setup(
        f"{one.board} · {one.precision} · {one.stat}",
        tuple(Choice(option, tuple(first.get(id(option), ()))) for option in front),
        tuple(Choice(option) for option in ordered if not option.on_front),
        _command(study, one, front),
        _answer(front, len(ordered)),
    )


def _answer(front: Sequence[Option], timed: int) -> str:
    """Which to deploy, and what the others of the front give and cost against it."""
    if not front:
        return ""
    first = front[0]
    if timed == 1:
        return f"{_described(first)} is the only deployment here; nothing is there to compare."
    if len(front) == 1:
        return f"deploy {_described(first)}: no other is faster or scores higher."
    tops = [option for m in ("mIoU", "mAP") if (option := _highest(front, m)) is not None]
    names = {metric: _highest(front, metric) for metric in ("mIoU", "mAP")}
    said = [f"where latency decides, deploy {_described(first)}"]
    for top in dict.fromkeys(option.deployment.name for option in tops if option is not first):
        option = next(found for found in tops if found.deployment.name == top)
        mine = [name for name, found in names.items() if found is option]
        what = mine[0] if len(mine) == 1 else "accuracy"
        said.append(f"where {what} decides, {_described(option)}: {_against(option, first)}")
    return "; ".join(said) + "."


def _described(option: Option) -> str:
    found = {"mIoU": option.mIoU.value, "mAP": option.mAP.value}
    scores = [f"{name} {value:.4f}" for name, value in found.items() if value is not None]
    time = [] if option.latency.value is None else [f"{option.latency.value:.2f} ms"]
    return f"{option.deployment.name} ({', '.join([*time, *scores])})"


def _against(option: Option, first: Option) -> str:
    """What an option of the front gives and costs against the fastest."""
    scores = []
    for name in ("mIoU", "mAP"):
        ours, theirs = getattr(option, name).value, getattr(first, name).value
        if ours is not None and theirs is not None:
            scores.append(f"{100 * (ours - theirs):+.2f} pp {name}")
    gives = " and ".join(scores)
    ours, theirs = option.latency.value, first.latency.value
    if ours is None or theirs is None:
        return gives
    more = f"{ours - theirs:.2f}"
    return f"{gives} at the same latency" if float(more) == 0 else f"{gives} for {more} ms more"


def bare(figure: Figure, unit: Unit) -> Cell:
    """A number without its caveat and its number of seeds, which stand elsewhere in its row."""
    if figure.value is None or not math.isfinite(figure.value):
        return Cell("ours", "none", None, figure.why or NOT_A_NUMBER, missing=True, absent=True)
    return number_cell(replace(figure, mark=""), unit, seeds=figure.runs)


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value


def _highest(options: Sequence[Option], metric: str) -> Option | None:
    """The one option whose score is above that of every other."""
    found = [(getattr(option, metric).value, option) for option in options]
    scored = sorted(((v, i) for i, (v, _) in enumerate(found) if v is not None), reverse=True)
    if not scored or (len(scored) > 1 and scored[0][0] == scored[1][0]):
        return None
    return options[scored[0][1]]


def _lightest(front: Sequence[Option], every: Sequence[Option]) -> Option | None:
    """The one of the front that stores as little as any, on the front or behind it."""
    least = min(_or_last(option.deployment.parameters.value) for option in every)
    found = [option for option in front if option.deployment.parameters.value == least]
    return found[0] if len(found) == 1 else None


def _command(study: str, one: Option, front: Sequence[Option]) -> str:
    """What asks for a choice within limits; the limit is one that some of the front keep."""
    words = ["sharedenc", "recommend", study, "--device", one.device]
    if one.mode:
        words += ["--mode", one.mode]
    words += ["--precision", one.precision, "--stat", one.stat]
    timed = [option.latency.value for option in front if option.latency.value is not None]
    if timed:
        middle = timed[len(timed) // 2]
        words += ["--max-latency-ms", f"{math.ceil(middle * 10) / 10:g}"]
    return shlex.join(words)


@dataclass(frozen=True)
class Shot:
    """One JPEG in a table of predictions; ``rows`` is over how many of them it stands."""

    alt: str
    jpeg: bytes | None
    rows: int = 1


@dataclass(frozen=True)
class ShotRow:
    """One photo and task; ``shots`` has None where the one above stands here too."""

    image_id: str
    task: str
    shots: tuple[Shot | None, ...]


@dataclass(frozen=True)
class Plate:
    """The predictions of one backbone: a column for the truth and one per method."""

    backbone: str
    methods: tuple[str, ...]
    rows: tuple[ShotRow, ...]


def plates(photos: Sequence[Photo], rows: StudyRows) -> list[Plate]:
    """What each method predicts on the same photos, by backbone."""
    places = {row.cell: _place(row) for row in rows.final}
    names = dict.fromkeys(cell for photo in photos for cell in photo.predictions)
    found: dict[str, dict[tuple[str, str], str]] = {}
    for cell in names:
        backbone, method, task = places.get(cell) or _named(cell)
        found.setdefault(backbone, {})[method, task] = cell
    return [_plate(backbone, mine, photos) for backbone, mine in found.items()]


def _place(row: TrialRow) -> tuple[str, str, str]:
    return row.backbone, Method(row.strategy, row.freeze).name, row.task


def _named(cell: str) -> tuple[str, str, str]:
    """Backbone, method and task of a cell that no trial of the study has."""
    words = cell.split("/")
    task = words.pop() if words[-1] in TASKS else ""
    return "/".join(words[:-1]), words[-1], task


def _plate(backbone: str, found: Mapping[tuple[str, str], str], photos: Sequence[Photo]) -> Plate:
    order = [method.name for method in METHODS]
    methods = dict.fromkeys(method for method, _ in found)
    ordered = sorted(methods, key=lambda m: order.index(m) if m in order else len(order))
    tasks = [task for task in TASKS if any(of in (task, "") for _, of in found)]
    rows: list[ShotRow] = []
    for photo in photos:
        for at, task in enumerate(tasks):
            shots: list[Shot | None] = [_truth(photo, task, tasks, at)]
            for method in ordered:
                joint = found.get((method, ""))
                cell = joint or found.get((method, task))
                if joint and at:
                    shots.append(None)
                    continue
                what = "both tasks" if joint else TASKS[task]
                shots.append(
                    Shot(
                        f"{what} by {cell} on test photo {photo.image_id}" if cell else "",
                        photo.predictions.get(cell) if cell else None,
                        len(tasks) if joint else 1,
                    )
                )
            rows.append(ShotRow(photo.image_id, TASKS[task], tuple(shots)))
    return Plate(backbone, tuple(ordered), tuple(rows))


def _truth(photo: Photo, task: str, tasks: Sequence[str], at: int) -> Shot | None:
    alone = photo.truth.get(task)
    if alone is None:
        joint = next((jpeg for of, jpeg in photo.truth.items() if of not in TASKS), None)
        if joint is not None:
            return None if at else Shot(f"truth of test photo {photo.image_id}", joint, len(tasks))
    return Shot(f"true {TASKS[task]} of test photo {photo.image_id}", alone)


def picture_rows(picture: Picture) -> list[list[Cell]]:
    """The cells of the table behind a figure.

    Numbers of a column have the same decimals: as many as they need, at most four.
    """
    columns = range(len(picture.columns))
    decimals = [max((_decimals(row[at]) for row in picture.rows), default=0) for at in columns]
    return [[_picture_cell(row[at], decimals[at]) for at in columns] for row in picture.rows]


def _decimals(value: str | float | None) -> int:
    if value is None or isinstance(value, str):
        return 0
    return len(f"{value:.{_MOST_DECIMALS}f}".rstrip("0").partition(".")[2])


def _picture_cell(value: str | float | None, decimals: int) -> Cell:
    if isinstance(value, str):
        return Cell("label", value, value)
    if value is None or not math.isfinite(value):
        return Cell("ours", "none", None, "no number: the notes say why", missing=True)
    return Cell("ours", f"{value:.{decimals}f}", value)


@dataclass(frozen=True)
class TrialLine:
    """One trial of the study that fills a table or waits to."""

    row: TrialRow
    first_line: str
    more: str


def unfinished(rows: Sequence[TrialRow]) -> list[TrialLine]:
    """The trials that are not done, with the first line of their reason and the rest of it."""
    found = []
    for row in rows:
        if row.state != "done":
            first, _, more = row.reason.strip().partition("\n")
            found.append(TrialLine(row, first or "no reason was recorded", more))
    return found


def fold(text: str) -> tuple[str, str]:
    """The start of a long text, up to the end of one of its parts, and the rest of it."""
    if len(text) <= _FOLDED + _FOLDED // 3:
        return text, ""
    # The blank that ends a mark stays with neither part.
    end = max(text.rfind(mark, 0, _FOLDED) + len(mark) - 1 for mark in ("; ", "), ", " %, "))
    if end < _FOLDED // 3:
        end = text.rfind(" ", 0, _FOLDED)
    return (text, "") if end < 0 else (text[:end], text[end + 1 :])
