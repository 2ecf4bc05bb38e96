"""A study's tables and figures as pandas DataFrames.

Of a quantity ``mIoU``, a table or figure has these columns, as far as there is something in them:

- ``mIoU``: ours, the mean over seeds;
- ``mIoU sd``: the standard deviation over seeds;
- ``mIoU low``, ``mIoU high``: ends of the 95 % interval of a change, paired by seed;
- ``mIoU seeds``: the number of seeds, where any number has several;
- ``mIoU published``: the published number; `DataFrame.attrs` says whether it may be compared;
- ``mIoU difference``: ours minus the published number, where it may be compared.

Labels (``backbone``, ``method``, ...) come first, and ``note`` last: why a number is missing (NaN)
or doubtful. ``attrs`` has ``title``, ``notes``, ``units``, ``published`` (what the published
numbers are; empty where there are none), ``study``, ``data``, ``data_digest`` and ``synthetic``
(drawn shapes, never a result).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from sharedenc.errors import SpecError, nearest
from sharedenc.report.changes import Figure
from sharedenc.report.collect import TrialRow, collect
from sharedenc.report.deployments import Deployment, Option, deployments, options
from sharedenc.report.evidence import Curve
from sharedenc.report.findings import findings
from sharedenc.report.pictures import Plan, plans
from sharedenc.report.published import PUBLISHED
from sharedenc.report.table_spec import Count, Facts, Table
from sharedenc.report.tables import build_tables, is_synthetic
from sharedenc.report.thesis import published_facts

if TYPE_CHECKING:
    from pandas import DataFrame

_Row = dict[str, Any]


def load(study: str, uri: str | None = None, *, curves: bool = False) -> Study:
    """As `sharedenc.report.load`."""
    count = _count()
    reference = published_facts(count)
    if study == PUBLISHED:
        return Study(facts=reference, reference=reference)
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise SpecError(
            f"study {study!r} is on an MLflow server, and none is named: give uri=..., or set "
            "MLFLOW_TRACKING_URI. `sharedenc ui` serves a runs folder and prints its address; "
            f"the study {PUBLISHED!r} needs no server"
        )
    rows = collect(uri, study)
    found: tuple[Curve, ...] = ()
    if curves:
        from sharedenc.report.evidence import gather

        found = gather(uri, rows, predictions=False).curves
    return Study(facts=Facts.of(rows, count), reference=reference, curves=found)


def _count() -> Count:
    """The package's own counter, which needs torch, once something is counted."""

    @cache
    def counter() -> Count:
        from sharedenc.report.write import count_parameters

        return count_parameters()

    return lambda backbone, graph, num_classes: counter()(backbone, graph, num_classes)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study that was read; ``reference`` is the published numbers as a study."""

    facts: Facts
    reference: Facts
    curves: Sequence[Curve] = field(default=(), repr=False)

    @cached_property
    def _tables(self) -> dict[str, Table]:
        tables = build_tables(self.facts, published=self.facts.printed)
        return {table.spec.number: table for table in tables}

    @cached_property
    def _options(self) -> list[Option]:
        return options(self.facts)

    @cached_property
    def _plans(self) -> dict[str, Plan]:
        alone = self.facts.printed or is_synthetic(self.facts.rows)
        beside = None if alone else self.reference
        found = plans(self.facts, self._options, beside, self.curves)
        return {plan.number: plan for plan in found}

    @property
    def tables(self) -> tuple[str, ...]:
        """Names for `table`."""
        return tuple(self._tables)

    @property
    def figures(self) -> tuple[str, ...]:
        """Names for `figure`."""
        return tuple(self._plans)

    def table(self, number: str) -> DataFrame:
        """A table of the report, such as ``4.6``.

        Raises:
            SpecError: there is no such table.
        """
        table = _named("table", number, self._tables)
        rows = []
        for row in table.rows:
            line: _Row = dict(zip(table.spec.heads, row.labels, strict=True))
            notes = []
            for column, entry in zip(table.spec.columns, row.entries, strict=True):
                line |= _number(column.name, entry.ours)
                if table.shows_published(column):
                    line[f"{column.name} published"] = entry.published
                if table.shows_difference(column):
                    gap = entry.difference
                    line[f"{column.name} difference"] = gap.value if gap is not None else None
                notes += _note(column.name, entry.ours)
            rows.append({**line, "note": "; ".join(notes)})
        frame = _frame(rows, table.spec.heads)
        frame.attrs |= {
            "title": table.spec.title,
            "notes": table.notes,
            "published": table.published_head,
            "units": {column.name: column.unit for column in table.spec.columns},
        }
        return self._marked(frame)

    def figure(self, number: str) -> DataFrame:
        """The table behind a figure, such as ``5.4``.

        Raises:
            SpecError: there is no such figure.
        """
        plan = _named("figure", number, self._plans)
        sheet = plan.sheet
        rows = []
        for row in sheet.rows:
            line: _Row = dict(zip(sheet.heads, row.labels, strict=True))
            notes = []
            for name, value in zip(sheet.columns, row.values, strict=True):
                line |= _number(name, value.ours)
                if sheet.beside:
                    line[f"{name} published"] = value.published
                    if not sheet.is_reference:
                        line[f"{name} difference"] = value.difference
                text = value.told
                notes += [f"{name}: {text}"] if text else []
            rows.append({**line, "note": "; ".join(notes)})
        frame = _frame(rows, sheet.heads)
        frame.attrs |= {"title": plan.title, "notes": plan.notes, "published": sheet.beside}
        return self._marked(frame)

    def trials(self) -> DataFrame:
        """One row per trial, of searches and of those that the tables leave out too.

        Columns: ``cell``, ``backbone``, ``strategy``, ``freeze``, ``task`` (``both`` of a dual
        network), ``seed``, ``lr``, ``stage``, ``state``, ``reason``, ``in_tables`` (whether the
        tables count it), ``left_out`` (why not), ``run_id``, the settings as ``recipe.<name>`` and
        every metric by its name.
        """
        rows = self.facts.rows
        found = [
            *((row, "") for row in rows.final),
            *((row, "a trial of a learning-rate search") for row in rows.search),
            *rows.left_out,
        ]
        lines = [_trial(row, why) for row, why in found]
        numbers = {"seed", "lr", *(name for row, _ in found for name in row.metrics)}
        names = {name: None for line in lines for name in line}
        return self._marked(_frame(lines, [name for name in names if name not in numbers]))

    def timings(self) -> DataFrame:
        """One row per timing: what was timed where and how, the verdict, and every metric."""
        rows = self.facts.rows.timings
        fields = (
            *("backbone", "graph", "device", "mode", "backend", "runtime", "load", "precision"),
            *("verdict", "reason", "stale", "architecture"),
        )
        lines = [{**{name: getattr(row, name) for name in fields}, **row.metrics} for row in rows]
        return self._marked(_frame(lines, fields))

    def deployments(self) -> DataFrame:
        """One row per deployment and setup that it was timed in, one where it never was.

        Columns: ``deployment``, ``backbone``, ``strategy``, ``freeze``, ``passes`` (of the
        encoder), ``graphs``, ``device``, ``mode``, ``board``, ``precision``, ``stat`` (which
        latency), ``latency (ms)``, ``mIoU``, ``mAP``, ``mIoU drop (%)`` and ``mAP drop (%)`` (INT8
        against the float file), ``memory (MiB)``, ``parameters (M)``, ``on_front``, ``models`` and
        ``note``.
        """
        timed = {option.deployment.name for option in self._options}
        lines = [
            *(_option(option.deployment, option) for option in self._options),
            *(_option(d, None) for d in deployments(self.facts) if d.name not in timed),
        ]
        return self._marked(_frame(lines, _DEPLOYMENT_TEXTS))

    def findings(self) -> DataFrame:
        """One row per claim of the reference study.

        Columns: ``id``, ``claim``, ``where``, ``published`` and ``ours`` (what was found, in
        words), ``published_holds`` and ``ours_holds`` (True, False or None), ``clear`` (whether
        ours is more than the noise between seeds), ``verdict``, ``why`` and ``note``.
        """
        lines: list[_Row] = [
            {
                "id": finding.id,
                "claim": finding.claim,
                "where": finding.where,
                "published": finding.published.text,
                "published_holds": finding.published.holds,
                "ours": finding.ours.text,
                "ours_holds": finding.ours.holds,
                "clear": finding.ours.clear,
                "verdict": finding.verdict,
                "why": finding.why,
                "note": finding.note,
            }
            for finding in findings(self.facts, self.reference)
        ]
        return self._marked(_frame(lines, lines[0]))

    def _marked(self, frame: DataFrame) -> DataFrame:
        """Say on a frame what it was measured on."""
        rows = self.facts.rows
        frame.attrs |= {
            "study": rows.study,
            "data": rows.data,
            "data_digest": rows.data_digest,
            "synthetic": is_synthetic(rows),
        }
        return frame


T = TypeVar("T")
# Columns that stand beside a number where there is something in them.
_BESIDE = (" sd", " low", " high", " seeds", " published", " difference")


def _named(kind: str, name: str, there: Mapping[str, T]) -> T:
    if name in there:
        return there[name]
    raise SpecError(
        f"this study has no {kind} {name!r}; there are {', '.join(there)}."
        f"{nearest(str(name), there)}"
    )


def _frame(lines: Sequence[_Row], texts: Collection[str]) -> DataFrame:
    """Rows as a DataFrame; all columns but ``texts`` and notes are numbers, NaN where missing."""
    from pandas import DataFrame

    names = list(dict.fromkeys(name for line in lines for name in line))
    columns: dict[str, Any] = {}
    for name in names or texts:
        values = [line.get(name) for line in lines]
        if name.endswith(_BESIDE) and _is_bare(name, values):
            continue
        columns[name] = values
    frame = DataFrame(columns)
    whole = {name for name in columns if name == "seed" or name.endswith(" seeds")}
    numbers = set(columns) - set(texts) - {"note"} - whole
    types = {**dict.fromkeys(numbers, "float64"), **dict.fromkeys(whole, "Int64")}
    return frame.astype(types)


def _is_bare(name: str, values: Sequence[Any]) -> bool:
    if name.endswith(" seeds"):
        return all(value is None or value < 2 for value in values)
    return all(value is None for value in values)


_DEPLOYMENT_TEXTS = (
    *("deployment", "backbone", "strategy", "freeze", "passes", "graphs", "device", "mode"),
    *("board", "precision", "stat", "on_front", "models", "note"),
)


def _option(deployment: Deployment, option: Option | None) -> _Row:
    """A deployment in one setup, or one that was never timed with its float scores."""
    untimed = Figure.missing("not timed yet")
    figures = {
        "latency (ms)": option.latency if option else untimed,
        "mIoU": option.mIoU if option else deployment.mIoU,
        "mAP": option.mAP if option else deployment.mAP,
        "mIoU drop (%)": option.drop_mIoU if option else untimed,
        "mAP drop (%)": option.drop_mAP if option else untimed,
        "memory (MiB)": option.memory if option else untimed,
        "parameters (M)": deployment.parameters,
    }
    # That a float file has no INT8 drop needs no note.
    noted = {name: figure for name, figure in figures.items() if "drop" not in name}
    return {
        "deployment": deployment.name,
        "backbone": deployment.backbone,
        "strategy": deployment.strategy,
        "freeze": deployment.freeze,
        "passes": deployment.passes,
        "graphs": " ".join(deployment.graphs),
        "device": option.device if option else "",
        "mode": option.mode if option else "",
        "board": option.board if option else "",
        "precision": option.precision if option else "",
        "stat": option.stat if option else "",
        **{name: figure.value for name, figure in figures.items()},
        "on_front": option.on_front if option else False,
        "models": " ".join(f"{m.model}/{m.version}" for m in option.models) if option else "",
        "note": "; ".join(text for name, f in noted.items() for text in _note(name, f)),
    }


def _trial(row: TrialRow, left_out: str) -> _Row:
    return {
        "cell": row.cell,
        "backbone": row.backbone,
        "strategy": row.strategy,
        "freeze": row.freeze,
        "task": row.task or "both",
        "seed": row.seed,
        "lr": row.lr,
        "stage": row.stage,
        "state": row.state,
        "reason": row.reason,
        "in_tables": not left_out,
        "left_out": left_out,
        "run_id": row.run_id,
        **row.recipe,
        **row.metrics,
    }


def _number(name: str, figure: Figure) -> _Row:
    """The columns of one number of ours; `_frame` drops those with nothing in them."""
    return {
        name: figure.value,
        f"{name} sd": figure.sd,
        f"{name} low": figure.low,
        f"{name} high": figure.high,
        f"{name} seeds": figure.runs,
    }


def _note(name: str, figure: Figure) -> list[str]:
    return [f"{name}: {figure.told}"] if figure.told else []
