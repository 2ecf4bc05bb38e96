"""The file of a user's own tables: read safely, checked whole, each error with file and line."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from sharedenc.errors import SpecError, nearest

Show = Literal["mean ± sd", "mean", "median", "min..max", "n"]
Change = Literal["percent", "absolute"]
Best = Literal["none", "max", "min", "any max", "any min"]
Trials = Literal["all", "tables"]

# What trials are told apart by; `recipe.<name>` is one more, for every training setting.
TRIAL_AXES = ("backbone", "method", "strategy", "freeze", "task", "cell", "seed", "lr")
# What timings are told apart by.
TIMING_AXES = ("backbone", "graph", "device", "mode", "tool", "precision", "load")
AXES = tuple(dict.fromkeys(TRIAL_AXES + TIMING_AXES))
_RECIPE = re.compile(r"recipe\.\w+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST_DECIMALS = 12
_DASH = "\N{EN DASH}"

_Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class MetricColumn:
    """One metric and how it is shown; ``where`` is added to the table's own."""

    metric: str
    name: str = ""
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    show: Show = "mean ± sd"
    decimals: int = 3
    scale: float = 1.0
    best: Best = "none"


@dataclass(frozen=True, kw_only=True)
class UserTable:
    """One table as its file asks for it.

    Attributes:
        name: Stem of the files that are written.
        rows: One axis or several, the outer one first.
        columns: An axis across; empty where each of ``metrics`` is a column.
        metrics: One where ``columns`` is an axis.
        where: By axis, the values that count, in the order in which they are shown.
        baseline: The value whose row or column the others are compared with; empty: none.
        compare: The axis along which there is a baseline and a best; empty: found by `build`.
        labels: What to call values and axes.
        source: ``file:line`` where the table begins.
    """

    title: str
    name: str
    rows: tuple[str, ...]
    columns: str
    metrics: tuple[MetricColumn, ...]
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trials: Trials = "all"
    baseline: str = ""
    change: Change = "percent"
    compare: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    missing: str = _DASH
    source: str = ""

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of rows and columns."""
        return (*self.rows, *((self.columns,) if self.columns else ()))


_SHOWN_KEYS = ("show", "decimals", "scale", "best")
_METRIC_KEYS = ("metric", "name", "where", *_SHOWN_KEYS)
_TABLE_KEYS = (
    *("title", "name", "rows", "columns", "metric", "where", "trials", *_SHOWN_KEYS),
    *("baseline", "change", "compare", "labels", "missing"),
)


def load(path: Path | str) -> list[UserTable]:
    """Read the tables of a file: one, or several under ``tables``.

    Raises:
        SpecError: it cannot be read, or something in it is not as it must be; with file and line.
    """
    path = Path(path)
    value, reader = _parse(path)
    if not isinstance(value, Mapping):
        raise reader.error(
            (), f"a table is a mapping of {', '.join(_TABLE_KEYS)}; this is {value!r}"
        )
    if "tables" not in value:
        return [_table(reader, (), value, path.stem)]
    reader.known((), value, ("tables",))
    items = value["tables"]
    if not isinstance(items, list) or not items:
        raise reader.error(("tables",), f"tables={items!r} must be a list of tables")
    tables = [
        _table(reader, ("tables", at), item, f"{path.stem}-{at + 1}")
        for at, item in enumerate(items)
    ]
    for at, table in enumerate(tables):
        if table.name in [other.name for other in tables[:at]]:
            raise reader.error(
                ("tables", at, "name"),
                f"two tables are named {table.name!r}; the second would replace the first. "
                "Give each its own name",
            )
    return tables


def _parse(path: Path) -> tuple[Any, _Reader]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"table file {path} cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        reader = _Reader(path, _lines(path, node))
        return yaml.safe_load(text), reader
    except yaml.YAMLError as error:
        raise SpecError(f"table file {path} is not YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError) as error:
        raise SpecError(f"table file {path} cannot be used: {error}") from error


def _lines(path: Path, root: yaml.Node | None) -> dict[_Path, int]:
    """The line of everything in a file by its place: ``("tables", 0, "metric")``."""
    found: dict[_Path, int] = {}
    seen: set[int] = set()

    def walk(node: yaml.Node, place: _Path, line: int) -> None:
        found.setdefault(place, line)
        # A node that several places refer to is walked once; one that holds itself has no end.
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = str(key.value)
                inner = (*place, name)
                if inner in found and name != "<<":
                    raise SpecError(
                        f"{path}:{key.start_mark.line + 1}: {name!r} is there twice, first in line "
                        f"{found[inner]}; keep one"
                    )
                walk(value, inner, key.start_mark.line + 1)
        elif isinstance(node, yaml.SequenceNode):
            for at, value in enumerate(node.value):
                walk(value, (*place, at), value.start_mark.line + 1)

    if root is not None:
        walk(root, (), root.start_mark.line + 1)
    return found


@dataclass(frozen=True)
class _Reader:
    """Takes values out of a parsed file; whatever is wrong is told with its line."""

    path: Path
    lines: Mapping[_Path, int]

    def at(self, place: _Path) -> str:
        """``file:line`` of a place, or of the nearest thing around it."""
        while place not in self.lines and place:
            place = place[:-1]
        return f"{self.path}:{self.lines.get(place, 1)}"

    def error(self, place: _Path, text: str) -> SpecError:
        return SpecError(f"{self.at(place)}: {text}")

    def known(self, place: _Path, value: Mapping[Any, Any], allowed: Collection[str]) -> None:
        """Refuse keys that mean nothing."""
        for key in value:
            if key not in allowed:
                raise self.error(
                    (*place, str(key)),
                    f"{key!r} is no setting here; there are {', '.join(allowed)}."
                    f"{nearest(str(key), allowed)}",
                )

    def choice(
        self, place: _Path, value: Mapping[str, Any], key: str, allowed: Any, default: Any
    ) -> Any:
        names = get_args(allowed)
        # YAML reads `none` as text, but an empty value or `null` as nothing.
        given = value.get(key, default)
        if given not in names:
            hint = nearest(str(given), names)
            raise self.error(
                (*place, key), f"{key}={given!r} is not one of {', '.join(names)}.{hint}"
            )
        return given

    def text(self, place: _Path, value: Mapping[str, Any], key: str, default: str = "") -> str:
        given = value.get(key, default)
        if not isinstance(given, str | int | float) or isinstance(given, bool):
            raise self.error((*place, key), f"{key}={given!r} must be text")
        return str(given)

    def axis(self, place: _Path, name: Any) -> str:
        if isinstance(name, str) and (name in AXES or _RECIPE.fullmatch(name)):
            return name
        raise self.error(
            place,
            f"{name!r} is no axis; there are {', '.join(AXES)} and recipe.<name>."
            f"{nearest(str(name), AXES)}",
        )

    def where(self, place: _Path, value: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        place = (*place, "where")
        given = value.get("where", {})
        if not isinstance(given, Mapping):
            raise self.error(
                place, f"where={given!r} must name values by axis, such as {{task: seg}}"
            )
        found = {}
        for axis, values in given.items():
            listed = values if isinstance(values, list) else [values]
            if not listed or not all(isinstance(one, str | int | float) for one in listed):
                raise self.error(
                    (*place, str(axis)), f"{axis}: {values!r} must be a value or a list of values"
                )
            found[self.axis((*place, str(axis)), axis)] = tuple(value_text(one) for one in listed)
        return found

    def shown(self, place: _Path, value: Mapping[str, Any]) -> dict[str, Any]:
        """How a metric is shown: the settings that are given."""
        found: dict[str, Any] = {}
        if "show" in value:
            found["show"] = self.choice(place, value, "show", Show, None)
        if "best" in value:
            best = "any max" if value["best"] == "any" else value["best"]
            found["best"] = self.choice(place, {"best": best}, "best", Best, None)
        if "decimals" in value:
            decimals = value["decimals"]
            whole = isinstance(decimals, int) and not isinstance(decimals, bool)
            if not whole or not 0 <= decimals <= _MOST_DECIMALS:
                raise self.error(
                    (*place, "decimals"),
                    f"decimals={decimals!r} must be a whole number from 0 to {_MOST_DECIMALS}",
                )
            found["decimals"] = decimals
        if "scale" in value:
            scale = _number(value["scale"])
            if scale is None or scale <= 0:
                raise self.error(
                    (*place, "scale"), f"scale={value['scale']!r} must be a number above 0"
                )
            found["scale"] = scale
        return found


def _number(value: Any) -> float | None:
    """A finite number; YAML reads ``1e-6``, without a dot, as text."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def value_text(value: Any) -> str:
    """A value of an axis in one form: ``6`` for 6, 6.0 and "6.0"."""
    number = _number(value)
    return f"{number:.12g}" if number is not None else str(value)


def _table(reader: _Reader, place: _Path, value: Any, stem: str) -> UserTable:
    if not isinstance(value, Mapping):
        raise reader.error(place, f"a table is a mapping of settings; this is {value!r}")
    reader.known(place, value, _TABLE_KEYS)
    for key in ("title", "rows", "columns"):
        if value.get(key) in (None, "", []):
            raise reader.error(place, f"a table needs {key!r}")
    name = reader.text(place, value, "name", stem)
    if not _NAME.fullmatch(name):
        raise reader.error(
            (*place, "name"),
            f"name={name!r} names files: letters, digits, dot, dash and underscore alone, "
            "beginning with a letter or digit",
        )
    rows = value["rows"] if isinstance(value["rows"], list) else [value["rows"]]
    axes = tuple(reader.axis((*place, "rows"), axis) for axis in rows)
    columns, metrics = _columns(reader, place, value)
    table = UserTable(
        title=reader.text(place, value, "title"),
        name=name,
        rows=axes,
        columns=columns,
        metrics=metrics,
        where=reader.where(place, value),
        trials=reader.choice(place, value, "trials", Trials, "all"),
        baseline=value_text(reader.text(place, value, "baseline")),
        change=reader.choice(place, value, "change", Change, "percent"),
        compare=reader.text(place, value, "compare"),
        labels=_labels(reader, place, value),
        missing=reader.text(place, value, "missing", _DASH),
        source=reader.at(place),
    )
    _check(reader, place, value, table)
    return table


def _columns(
    reader: _Reader, place: _Path, value: Mapping[str, Any]
) -> tuple[str, tuple[MetricColumn, ...]]:
    """The axis across and its one metric, or no axis and a metric per column."""
    given, shown = value["columns"], reader.shown(place, value)
    here = (*place, "columns")
    if not isinstance(given, list):
        axis = reader.axis(here, given)
        if not value.get("metric"):
            raise reader.error(place, f"columns: {axis} needs 'metric', such as metric: test/mIoU")
        return axis, (MetricColumn(metric=reader.text(place, value, "metric"), **shown),)
    if "metric" in value:
        raise reader.error(
            (*place, "metric"), "columns names the metrics already; leave 'metric' out"
        )
    found = []
    for at, item in enumerate(given):
        if isinstance(item, str):
            item = {"metric": item}
        if not isinstance(item, Mapping) or not item.get("metric"):
            raise reader.error(
                (*here, at),
                "a column is a metric, such as {metric: test/mIoU, name: mIoU}; "
                f"this is {item!r}",
            )
        reader.known((*here, at), item, _METRIC_KEYS)
        metric = reader.text((*here, at), item, "metric")
        found.append(
            MetricColumn(
                metric=metric,
                name=reader.text((*here, at), item, "name", metric),
                where=reader.where((*here, at), item),
                **{**shown, **reader.shown((*here, at), item)},
            )
        )
    for at, column in enumerate(found):
        if column.name in [other.name for other in found[:at]]:
            raise reader.error(
                (*here, at), f"two columns are named {column.name!r}; give each its own name"
            )
    return "", tuple(found)


def _labels(reader: _Reader, place: _Path, value: Mapping[str, Any]) -> dict[str, str]:
    given = value.get("labels", {})
    if not isinstance(given, Mapping):
        raise reader.error(
            (*place, "labels"),
            f"labels={given!r} must say what to call a value, such as {{resnet18: ResNet-18}}",
        )
    here = (*place, "labels")
    return {value_text(key): reader.text(here, given, key) for key in given}


def _check(reader: _Reader, place: _Path, value: Mapping[str, Any], table: UserTable) -> None:
    """What settings say together."""
    doubled = _doubled(table.axes)
    if doubled:
        raise reader.error(
            (*place, "rows"), f"{doubled!r} is on two axes; rows and columns must differ"
        )
    if table.compare and table.compare not in table.axes:
        raise reader.error(
            (*place, "compare"),
            f"compare={table.compare!r} is no axis of this table; "
            f"there are {', '.join(table.axes)}",
        )
    if "change" in value and not table.baseline:
        raise reader.error((*place, "change"), "change is against a baseline; name one: baseline")
    for column in table.metrics:
        if column.show == "n" and (column.best != "none" or table.baseline):
            raise reader.error(
                (*place, "show"),
                "show: n counts seeds; it has no best and no baseline. Leave them out",
            )


def _doubled(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
