"""The report's figures: each with the table behind it, as SVG for the page and PNG for print."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jetson_agent.protocol import slug
from sharedenc.report.deployments import (
    Option,
    deployments,
    memory_front,
    options,
    parameter_front,
)
from sharedenc.report.evidence import Curve
from sharedenc.report.figures.canvas import drawing
from sharedenc.report.figures.changes import changes_sheet, draw_changes, recovery_sheet
from sharedenc.report.figures.curves import curves_sheet, draw_curves, lines
from sharedenc.report.figures.dual_cost import draw_dual_cost, dual_cost_sheet, timed_setups
from sharedenc.report.figures.file import png_of, svg_of
from sharedenc.report.figures.front import (
    PUBLISHED_STAT,
    draw_front,
    front_sheet,
    memory_sheet,
    weight_sheet,
)
from sharedenc.report.figures.parameters import draw_parameters, parameters_sheet
from sharedenc.report.figures.radar import draw_radar, radar_sheet
from sharedenc.report.figures.scores import draw_scores, scores_sheet
from sharedenc.report.figures.table import Sheet, head_beside, named, strictest_head
from sharedenc.report.published import PUBLISHED
from sharedenc.report.table_spec import Facts

# Panels of the figures of changes, in the order of `HEADLINE`.
_PANELS = ("Segmentation: mIoU", "Detection: mAP")
# Setups that get a figure of their own; the tables have all of them.
MOST_SETUPS = 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure.

    Attributes:
        number: ``5.3`` for a figure of the thesis, else a word: ``front``, ``curves``; a second
            setup's is ``front-`` and its name.
        columns: Heads of the table behind it.
        rows: Its rows: text, numbers, or None where a number is missing.
        notes: What is missing, and why.
        svg: Text as text; colours by CSS variables; its ids are its own.
        png: 300 dots per inch, dark on white.
    """

    number: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    notes: tuple[str, ...]
    svg: str
    png: bytes


@dataclass(frozen=True)
class Plan:
    """A figure that is not drawn yet: its table, and what draws it."""

    number: str
    title: str
    caption: str
    sheet: Sheet
    draw: Callable[[Sheet], Any]
    notes: tuple[str, ...]


def pictures(
    facts: Facts,
    found: Sequence[Option],
    beside: Facts | None,
    curves: Sequence[Curve] = (),
) -> list[Picture]:
    """Every figure that the facts fill.

    Args:
        found: All options of the facts.
        beside: The published facts, or None where they are left out; never beside themselves.
        curves: Of the trials, where they could be read.
    """
    with drawing():
        return [_drawn(plan) for plan in plans(facts, found, beside, curves)]


def plans(
    facts: Facts,
    found: Sequence[Option],
    beside: Facts | None,
    curves: Sequence[Curve] = (),
) -> Iterator[Plan]:
    """What every figure shows, before it is drawn; the arguments are those of `pictures`."""
    is_published = facts.rows.study == PUBLISHED
    if is_published:
        beside = None
    yield from _of_scores(facts, found, beside, is_published)
    yield from _of_costs(facts, found, beside)
    yield from _of_curves(facts, curves)


def _of_scores(
    facts: Facts, found: Sequence[Option], beside: Facts | None, is_published: bool
) -> Iterator[Plan]:
    theirs = options(beside) if beside is not None else []
    lead = _lead(facts, found)
    yield _plan(
        "4.1",
        "Baselines of each backbone, as shares of the best",
        "The rim is the best backbone of each quantity. Speed is 1 / latency and compactness "
        "1 / parameters, both of the two baselines together.",
        radar_sheet(facts, lead, beside, theirs, is_published=is_published),
        draw_radar,
    )
    yield _plan(
        "5.1",
        "Scores of all methods, backbones side by side",
        "Test scores; whiskers are the standard deviation over seeds.",
        scores_sheet(facts, beside),
        draw_scores,
    )
    setups = timed_setups(facts) or [""]
    for at, setup in enumerate(setups[:MOST_SETUPS]):
        yield _plan(
            "5.2" if at == 0 else f"5.2-{slug(setup)}",
            f"Latency and parameters of the dual networks: {setup or 'not timed yet'}",
            "Median latency of one picture against stored parameters, a panel per precision.",
            dual_cost_sheet(facts, beside, setup),
            draw_dual_cost,
            _left_out(setups) if at == 0 else (),
        )
    yield _plan(
        "5.3",
        "What each method changes against the same backbone's baseline",
        "Relative change of the test score in percent, paired by seed.",
        changes_sheet(facts, beside),
        lambda sheet: draw_changes(sheet, _PANELS, "change against the baseline (%)"),
    )
    yield _plan(
        "5.4",
        "What trained biases recover of what freezing costs",
        "Score with trained biases less score with a frozen encoder, in percentage points of the "
        "same backbone's baseline, paired by seed.",
        recovery_sheet(facts, beside),
        lambda sheet: draw_changes(sheet, _PANELS, "percentage points of the baseline"),
    )
    yield _plan(
        "5.5",
        "Parameters of two networks and of one dual network",
        "Heads of 3 classes, as in the published Table 5.1; the percentage is what one dual "
        "network has less than two networks.",
        parameters_sheet(facts, beside, is_published=is_published),
        draw_parameters,
    )


def _of_costs(facts: Facts, found: Sequence[Option], beside: Facts | None) -> Iterator[Plan]:
    theirs = options(beside, stat=PUBLISHED_STAT) if beside is not None else []
    groups = _by_setup(found)
    for at, ((board, precision, stat), group) in enumerate(groups.items()):
        if at == MOST_SETUPS:
            break
        head = strictest_head(facts, beside)
        left_out = [f"{b}, {p}, {s}" for b, p, s in groups] if at == 0 else []
        yield _plan(
            "front" if at == 0 else f"front-{slug(f'{board} {precision} {stat}')}",
            f"Accuracy and latency of whole deployments: {board}, {precision}, {stat}",
            "A deployment serves both tasks; its latency is that of all its passes for one "
            "picture. Up and to the left is better; the line is the front of each panel.",
            front_sheet(group, theirs, head),
            draw_front,
            _left_out(left_out),
        )
    yield from _of_memory(groups)
    whole = deployments(facts)
    if whole:
        yield _plan(
            "front-parameters",
            "Accuracy and parameters of whole deployments",
            "Parameters that are stored to serve both tasks, shared ones once, against the test "
            "scores of the float networks. Up and to the left is better.",
            weight_sheet(
                whole,
                [] if beside is None else deployments(beside),
                [deployment.name for deployment in parameter_front(whole)],
                head_beside(facts, beside, "data"),
            ),
            draw_front,
        )


def _of_memory(groups: Mapping[tuple[str, str, str], Sequence[Option]]) -> Iterator[Plan]:
    """What deployments take on each board that tells it, once per precision."""
    told = {
        (board, precision): group
        for (board, precision, _), group in groups.items()
        if any(option.memory.value is not None for option in group)
    }
    for at, ((board, precision), group) in enumerate(list(told.items())[:MOST_SETUPS]):
        yield _plan(
            "front-memory" if at == 0 else f"front-memory-{slug(f'{board} {precision}')}",
            f"Accuracy and memory of whole deployments: {board}, {precision}",
            "MiB of the engines and their execution contexts, all of which stay loaded. Up and to "
            "the left is better.",
            memory_sheet(group, [option.deployment.name for option in memory_front(group)]),
            draw_front,
            _left_out([f"{b}, {p}" for b, p in told]) if at == 0 else (),
        )


def _lead(facts: Facts, found: Sequence[Option]) -> list[Option]:
    """The options of one setup for the baselines' speed: as published where timed like that."""
    alike = [o for o in options(facts, stat=PUBLISHED_STAT) if o.latency.value is not None]
    groups = list(_by_setup(alike or found).values())
    return next((g for g in groups if g[0].precision == "fp32"), groups[0] if groups else [])


def _left_out(setups: Sequence[str]) -> tuple[str, ...]:
    names = setups[MOST_SETUPS:]
    return (f"In the tables, without a figure of their own: {named(names)}.",) if names else ()


def _by_setup(found: Sequence[Option]) -> dict[tuple[str, str, str], list[Option]]:
    groups: dict[tuple[str, str, str], list[Option]] = {}
    for option in found:
        groups.setdefault((option.board, option.precision, option.stat), []).append(option)
    return groups


def _of_curves(facts: Facts, curves: Sequence[Curve]) -> Iterator[Plan]:
    drawn, _ = lines(facts, curves)
    if drawn:
        yield _plan(
            "curves",
            "Training curves",
            "Validation scores and losses after each epoch, a row of panels per method; the losses "
            "of its segmentation and detection trials share a panel.",
            curves_sheet(facts, curves),
            lambda sheet: draw_curves(facts, drawn),
        )


def _plan(
    number: str,
    title: str,
    caption: str,
    sheet: Sheet,
    draw: Callable[[Sheet], Any],
    more: tuple[str, ...] = (),
) -> Plan:
    if sheet.is_beside:
        head = sheet.beside.removeprefix("reference ").strip("()")
        pale = f", pale because they cannot be compared: {head}" if sheet.is_reference else ""
        caption = f"{caption} Outlined or as a thin line: the published numbers{pale}."
    return Plan(number, title, caption, sheet, draw, (*sheet.all_notes(), *more))


def _drawn(plan: Plan) -> Picture:
    figure = plan.draw(plan.sheet)
    columns, rows = plan.sheet.flat()
    return Picture(
        number=plan.number,
        title=plan.title,
        caption=plan.caption,
        columns=columns,
        rows=rows,
        notes=plan.notes,
        svg=svg_of(figure, plan.number, plan.title, plan.caption),
        png=png_of(figure),
    )
