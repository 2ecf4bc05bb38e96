"""A study's price in words."""

from __future__ import annotations

from sweeps.price import CellPrice, Price

# Of what trains together: groups and members that are named.
GROUPS_NAMED, NAMES = 6, 4


def plan_text(plan: Price) -> str:
    """The plan for people: totals, stages, cells."""
    new = plan.trials - plan.reused - plan.blocked
    unit = "GPU hours" if plan.on_gpus else "trial hours"
    lines = [
        f"{plan.study}: {_count(plan.trials, 'trial')} of {_count(len(plan.cells), 'cell')}, "
        f"{plan.reused} reused, {new} to run"
        + (f", {plan.blocked} that cannot run" if plan.blocked else "")
    ]
    if new:
        hours = plan.gpu_hours
        lines += [
            "",
            f"{unit:12} {hours_of(hours.expected)} ({hours_of(hours.low)} to "
            f"{hours_of(hours.high)})",
            f"{'wall time':12} {hours_of(plan.wall_hours)}, at most {plan.devices} at once",
            *_together(plan),
            f"{'disk':12} {plan.disk_gib:.1f} GiB",
            f"{'board':12} {hours_of(plan.board_hours)} for {plan.exports} exports",
            f"{'rests on':12} {plan.rests_on}",
        ]
    lines += ["", f"{'stage':12} {'trials':>6} {'reused':>6} {unit:>12}"]
    lines += [
        f"{row.stage:12} {row.trials:>6} {row.reused:>6} {hours_of(row.gpu_hours):>12}"
        for row in plan.stages
    ]
    width = max([len(row.cell) for row in plan.cells] + [4])
    lines += ["", f"{'cell':{width}} {'trials':>6}  {'state':8} why it is not reused"]
    lines += [
        f"{row.cell:{width}} {row.trials:>6}  {row.state:8} {_why(row)}".rstrip()
        for row in plan.cells
    ]
    return "\n".join(lines)


def _together(plan: Price) -> list[str]:
    """What trains over one encoder, largest groups first."""
    found = plan.together
    if not found.groups:
        return []
    lines = [
        f"{'together':12} {found.trials} frozen trials in {_count(len(found.groups), 'group')}: "
        f"saves {hours_of(found.saved_hours)}, {hours_of(found.saved_wall_hours)} of wall time"
    ]
    ranked = sorted(found.groups, key=len, reverse=True)
    for group in ranked[:GROUPS_NAMED]:
        names = ", ".join(group[:NAMES])
        more = f" and {len(group) - NAMES} more" if len(group) > NAMES else ""
        lines.append(f"{'':12} {names}{more}")
    if len(ranked) > GROUPS_NAMED:
        lines.append(f"{'':12} and {len(ranked) - GROUPS_NAMED} more groups")
    return lines


def _why(row: CellPrice) -> str:
    if row.reused:
        return "reused"
    some = f"{row.reused_trials} reused; " if row.reused_trials else ""
    return some + row.why_not


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def hours_of(hours: float) -> str:
    """Hours in words that fit their size: ``40 s``, ``12 min``, ``3.4 h``, ``120 h``."""
    if hours * 3600 < 90:
        return f"{hours * 3600:.0f} s"
    if hours * 60 < 90:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 24 else f"{hours:.0f} h"
