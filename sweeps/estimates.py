"""How long trials take: a model first, then what earlier runs and this sweep's epochs say.

Two things are not known beforehand: the seconds of an epoch and, with early stopping, the number
of epochs. Both are positive and vary by factors, so both are learned as means of logarithms, per
kind of trial (cell without seed and rate), drawn towards those of its backbone and these towards
those of all, the more so the fewer were seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol, TypeVar

from sharedenc.spec import Cell, Recipe, resolve_numerics
from sweeps.flops import seconds_per_image

if TYPE_CHECKING:
    from sweeps.brackets import Ladder
    from sweeps.facts import Facts
    from sweeps.state import Row

# Seconds of a trial outside its epochs, the test aside: start, checkpoints, pictures, upload.
OVERHEAD_S = 3.0

# Epochs of the reference recipe until early stopping: an assumption until trials have ended.
TYPICAL_EPOCHS = 60.0
TYPICAL_PATIENCE = 25
SPREAD_EPOCHS = 0.5

# How far an expected epoch may be off, as the standard deviation of its logarithm: by a factor of
# two for assumed speeds, by a quarter where another kind of the same backbone was measured, by a
# tenth where the kind itself was, unless enough was measured to say.
MODEL_SIGMA = math.log(2.0)
RELATED_SIGMA = 0.25
MEASURED_SIGMA = 0.10
ENOUGH = 3

_NORMAL = NormalDist()
_QUANTILES = tuple(_NORMAL.inv_cdf((i + 0.5) / 15) for i in range(15))


class Planned(Protocol):
    """What of a node is asked here; `Node` has it."""

    @property
    def id(self) -> str: ...
    @property
    def cell(self) -> Cell: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def ladder(self) -> Ladder | None: ...


class Measurement(Protocol):
    """A finished trial of an earlier study on the same data; the ledger's `Measured` has it."""

    @property
    def cell(self) -> Cell: ...
    @property
    def image_px(self) -> int: ...
    @property
    def seconds_per_epoch(self) -> float: ...


class Recorded(Protocol):
    """Where and how a measurement was made; the ledger's `Measured` has it."""

    @property
    def cell(self) -> Cell: ...
    @property
    def device(self) -> str: ...
    @property
    def numerics(self) -> Mapping[str, str]: ...


Record = TypeVar("Record", bound=Recorded)


def comparable(
    rows: Iterable[Record], facts: Facts, recipe: Recipe, device: str = ""
) -> list[Record]:
    """The measurements made on the same device and in the same way as the trials to come.

    Args:
        recipe: Of the trials to come; precision, memory format and threads decide the speed.
        device: The device's name, as trials record it; empty for any of its kind.
    """
    same = ("device", "precision", "memory_format", "cpu_threads")

    def fits(row: Record) -> bool:
        kind, torch = facts.device_kind, facts.torch_version
        numerics = asdict(resolve_numerics(recipe, row.cell.backbone, kind, torch))
        return device in ("", row.device) and all(
            row.numerics.get(name, str(numerics[name])) == str(numerics[name]) for name in same
        )

    return [row for row in rows if fits(row)]


@dataclass
class Learned:
    """Logarithms of a positive quantity by kind, seen so far.

    Each level's mean is drawn to the level above as if it had seen that ``weight`` times.
    """

    weight: float = 1.0
    _values: dict[str, tuple[tuple[str, ...], float]] = field(default_factory=dict)
    _sums: dict[tuple[str, ...], tuple[int, float]] = field(default_factory=dict)

    def set(self, name: str, kind: tuple[str, ...], value: float) -> None:
        """What one trial says; a later value of the same trial replaces its earlier one."""
        old = self._values.get(name)
        self._values[name] = (kind, value)
        for level in range(len(kind) + 1):
            count, total = self._sums.get(kind[:level], (0, 0.0))
            if old is None:
                self._sums[kind[:level]] = (count + 1, total + value)
            else:
                self._sums[kind[:level]] = (count, total + value - old[1])

    def mean(self, kind: tuple[str, ...], prior: float = 0.0) -> float:
        """Expected logarithm for a kind; ``prior`` where nothing was seen."""
        value = prior
        for level in range(len(kind) + 1):
            count, total = self._sums.get(kind[:level], (0, 0.0))
            # The first thing seen at all outweighs an assumption.
            weight = self.weight if level else 0.1 * self.weight
            value = (weight * value + total) / (weight + count)
        return value

    def within(self) -> tuple[float, int]:
        """Standard deviation of values around the means of their kinds; degrees of freedom."""
        kinds = {kind for kind, _ in self._values.values()}
        freedom = len(self._values) - len(kinds)
        if freedom < 1:
            return math.nan, 0
        means = {kind: self._sums[kind][1] / self._sums[kind][0] for kind in kinds}
        squares = sum((value - means[kind]) ** 2 for kind, value in self._values.values())
        return math.sqrt(squares / freedom), freedom

    def count(self, kind: tuple[str, ...] = ()) -> int:
        """How many trials of a kind (or a backbone, or all) have said something."""
        return self._sums.get(kind, (0, 0.0))[0]


def kind_of(cell: Cell) -> tuple[str, str]:
    """Trials that train alike: the backbone, and the rest of the cell's name."""
    backbone, _, rest = cell.name.partition("/")
    return backbone, rest


def stops_early(recipe: Recipe) -> bool:
    """Whether the number of epochs is open; it is not for cosine schedules and short budgets."""
    patience = recipe.early_stop_patience
    return recipe.scheduler != "cosine" and 0 < patience < recipe.epochs


def prior_epochs(recipe: Recipe) -> float:
    """Typical number of epochs until early stopping, longer or shorter with the patience."""
    return TYPICAL_EPOCHS * recipe.early_stop_patience / TYPICAL_PATIENCE


def epochs_at(recipe: Recipe, log_typical: float, z: float) -> float:
    """Epochs of a trial that lies ``z`` standard deviations above the typical one."""
    if not stops_early(recipe):
        return float(recipe.epochs)
    free = math.exp(log_typical + SPREAD_EPOCHS * z)
    return min(max(free, recipe.early_stop_patience + 1.0), float(recipe.epochs))


def under_ladder(epochs: float, ladder: Ladder | None) -> float:
    """Mean epochs of a search trial that its bracket may cut: a share goes on past each rung."""
    if ladder is None:
        return epochs
    total, going, last = 0.0, 1.0, 0.0
    for rung in ladder.rungs:
        if rung >= epochs:
            break
        total += going * (rung - last)
        going, last = going / ladder.factor, float(rung)
    return total + going * (epochs - last)


@dataclass(eq=False)
class _Group:
    """Trials of one cell, recipe and ladder: they are expected to last equally long."""

    cell: Cell
    recipe: Recipe
    ladder: Ladder | None
    kind: tuple[str, str]
    model_s: float
    image_s: float
    log_prior: float
    members: list[str] = field(default_factory=list)
    told_s: float = 0.0

    @property
    def open_ended(self) -> bool:
        return self.log_prior > -math.inf


class Estimates:
    """Durations of a study's trials, better with every epoch.

    Args:
        nodes: The trials.
        images: Counts of training, validation and test images.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of a trial.
        measured: Finished trials of earlier runs on this data and this kind of device.
        probe: Measured seconds of one training step, per image, and of one image's evaluation, by
            cell: what a preflight of a few steps gives.
    """

    def __init__(
        self,
        nodes: Iterable[Planned],
        images: tuple[int, int, int],
        *,
        device: str = "cpu",
        threads: int = 1,
        measured: Sequence[Measurement] = (),
        probe: Mapping[Cell, tuple[float, float]] | None = None,
    ) -> None:
        self._images, self._device, self._threads = images, device, max(threads, 1)
        self._paces = Learned(weight=0.5)
        self._epochs = Learned(weight=4.0)
        # Of each running trial: its epoch, and of how many epochs the seconds are known.
        self._running: dict[str, tuple[int, int, float]] = {}
        self._ended: set[str] = set()
        self._dirty = True
        self._groups: dict[tuple[Cell, Recipe, Ladder | None], _Group] = {}
        self._group_of: dict[str, _Group] = {}
        recipes: dict[int, Recipe] = {}
        groups: dict[tuple[Cell, int, Ladder | None], _Group] = {}
        for node in nodes:
            recipes[id(node.recipe)] = node.recipe  # keeps it alive, so that its id stays its own
            key = (node.cell, id(node.recipe), node.ladder)
            if key not in groups:
                groups[key] = self._group(node.cell, node.recipe, node.ladder)
            groups[key].members.append(node.id)
            self._group_of[node.id] = groups[key]
        for cell, (step_s, image_s) in (probe or {}).items():
            self._probed(cell, step_s, image_s)
        for number, row in enumerate(measured):
            self._earlier(f"earlier {number}", row)

    def seconds_per_epoch(self, cell: Cell, recipe: Recipe) -> float:
        """Expected duration of an epoch, its validation included."""
        return self._epoch_s(self._group(cell, recipe))

    def epochs(self, cell: Cell, recipe: Recipe, ladder: Ladder | None = None) -> float:
        """Expected number of epochs, early stopping and brackets taken into account."""
        return self._mean_epochs(self._group(cell, recipe, ladder))

    def expected(self) -> dict[str, float]:
        """Expected duration of every trial in seconds, by id."""
        return {
            name: seconds
            for group in self._groups.values()
            for seconds in [self._seconds(group)]
            for name in group.members
        }

    def seconds(self, node: Planned) -> float:
        """Expected duration of a whole trial."""
        return self._seconds(self._group(node.cell, node.recipe, node.ladder))

    def draw_epochs(self, node: Planned, z_common: float, z_own: float) -> float:
        """Epochs of one trial, given how far all and how far this one lie from the typical.

        Args:
            z_common: Standard normal: the error of the typical number itself.
            z_own: Standard normal: this trial's distance from the typical one.
        """
        group = self._group(node.cell, node.recipe, node.ladder)
        if not group.open_ended:
            return under_ladder(float(group.recipe.epochs), group.ladder)
        seen = self._epochs.count()
        typical = self._typical(group) + z_common * SPREAD_EPOCHS / math.sqrt(1 + seen)
        return under_ladder(epochs_at(group.recipe, typical, z_own), group.ladder)

    def pace_sigma(self, cell: Cell) -> float:
        """How far an expected epoch may be off: standard deviation of its logarithm."""
        kind = kind_of(cell)
        if self._paces.count(kind):
            spread, freedom = self._paces.within()
            return max(spread, 0.01) if freedom >= ENOUGH else MEASURED_SIGMA
        return RELATED_SIGMA if self._paces.count(kind[:1]) else MODEL_SIGMA

    def outside_epochs(self, node: Planned) -> float:
        """Seconds of a trial's start and end; the test of final trials is in it."""
        return self._outside(self._group(node.cell, node.recipe, node.ladder))

    def observe(self, name: str, epoch: int, seconds: float) -> None:
        """A trial's epoch ended after so many seconds; ``epoch`` counts from 1."""
        if name in self._ended or not (math.isfinite(seconds) and seconds > 0):
            return
        group = self._group_of[name]
        _, count, total = self._running.get(name, (0, 0, 0.0))
        self._running[name] = (epoch, count + 1, total + seconds)
        mean = (total + seconds) / (count + 1)
        self._paces.set(name, group.kind, math.log(mean / group.model_s))
        self._dirty = True

    def finished(self, name: str, epochs: int, *, by_itself: bool = True) -> None:
        """A trial ended after so many epochs; ``by_itself``: neither cut nor stopped nor failed."""
        group = self._group_of[name]
        self._running.pop(name, None)
        self._ended.add(name)
        if by_itself and epochs > 0 and group.open_ended and epochs < group.recipe.epochs:
            self._epochs.set(name, group.kind, math.log(epochs) - group.log_prior)
        self._dirty = True

    def epoch(self, row: Row, seconds: float) -> None:
        """As `observe`, for the state of a sweep."""
        self.observe(row.node.id, row.epoch, seconds)

    def hear(self, event: str, row: Row) -> None:
        """Listen to a sweep's state: an end tells the number of epochs."""
        if event == "end":
            by_itself = row.state == "done" and not row.reused
            self.finished(row.node.id, row.epoch, by_itself=by_itself)

    def works(self) -> dict[str, float]:
        """New estimates by id since the last call, where they moved by more than a twentieth.

        The first call gives all of them.
        """
        if not self._dirty:
            return {}
        self._dirty = False
        self._learn_from_running()
        moved: dict[str, float] = {}
        for group in self._groups.values():
            seconds = self._seconds(group)
            if abs(seconds - group.told_s) > 0.05 * group.told_s:
                group.told_s = seconds
                moved |= {
                    name: seconds
                    for name in group.members
                    if name not in self._ended and name not in self._running
                }
        return moved

    def _group(self, cell: Cell, recipe: Recipe, ladder: Ladder | None = None) -> _Group:
        key = (cell, recipe, ladder)
        if key not in self._groups:
            step_s, image_s = seconds_per_image(cell, recipe, self._device)
            train, val, _ = self._images
            self._groups[key] = _Group(
                cell=cell,
                recipe=recipe,
                ladder=ladder,
                kind=kind_of(cell),
                model_s=max(train * step_s + val * image_s, 1e-9) / self._threads,
                image_s=image_s / self._threads,
                log_prior=math.log(prior_epochs(recipe)) if stops_early(recipe) else -math.inf,
            )
        return self._groups[key]

    def _seconds(self, group: _Group) -> float:
        return self._mean_epochs(group) * self._epoch_s(group) + self._outside(group)

    def _epoch_s(self, group: _Group) -> float:
        return group.model_s * math.exp(self._paces.mean(group.kind))

    def _outside(self, group: _Group) -> float:
        if group.ladder is not None:
            return OVERHEAD_S
        pace = math.exp(self._paces.mean(group.kind))
        return OVERHEAD_S + pace * group.image_s * self._images[2]

    def _typical(self, group: _Group) -> float:
        """Logarithm of the typical number of epochs until early stopping, budget aside."""
        return group.log_prior + self._epochs.mean(group.kind)

    def _mean_epochs(self, group: _Group) -> float:
        if not group.open_ended:
            return under_ladder(float(group.recipe.epochs), group.ladder)
        typical = self._typical(group)
        drawn = (
            under_ladder(epochs_at(group.recipe, typical, z), group.ladder) for z in _QUANTILES
        )
        return sum(drawn) / len(_QUANTILES)

    def _probed(self, cell: Cell, step_s: float, image_s: float) -> None:
        recipe = next((g.recipe for g in self._groups.values() if g.cell == cell), Recipe())
        train, val, _ = self._images
        real = train * step_s + val * image_s
        if real > 0:
            pace = math.log(real / self._group(cell, recipe).model_s)
            self._paces.set(f"probe {cell}", kind_of(cell), pace)

    def _earlier(self, name: str, row: Measurement) -> None:
        if row.seconds_per_epoch > 0:
            group = self._group(row.cell, Recipe(image_px=row.image_px))
            self._paces.set(name, group.kind, math.log(row.seconds_per_epoch / group.model_s))

    def _learn_from_running(self) -> None:
        """Count what runs at the epochs that it may be expected to end with.

        The short ones end first: to learn from ended trials alone would be to learn from those.
        """
        if self._epochs.count() == 0:
            return
        for name, (epoch, _, _) in self._running.items():
            group = self._group_of[name]
            if group.open_ended and group.ladder is None:
                expected = _expected_log_beyond(epoch, self._typical(group), SPREAD_EPOCHS)
                self._epochs.set(name, group.kind, expected - group.log_prior)


def _expected_log_beyond(epoch: int, mean: float, sigma: float) -> float:
    """E[log N | N > epoch] of a lognormal number of epochs N."""
    z = (math.log(max(epoch, 1)) - mean) / sigma
    if z > 6:
        return math.log(epoch) + 0.1 * sigma
    return mean + sigma * _NORMAL.pdf(z) / (1.0 - _NORMAL.cdf(z))
