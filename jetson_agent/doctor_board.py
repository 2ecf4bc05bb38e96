"""The rows of `doctor` about the board: what it is, how it runs, what of it can be read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from jetson_agent.board import power
from jetson_agent.board.files import matching
from jetson_agent.doctor import JETPACK_PACKAGES, Row
from jetson_agent.identity import Device
from jetson_agent.preflight import DEFAULT_LIMITS

# What CUDA opens on a Jetson; a pattern that a release does not have matches nothing.
# JetPack 6: nvmap, nvhost-*, nvgpu/*; JetPack 5 has nvhost-gpu in place of nvgpu.
NODES = (
    ("dev", "nvmap"),
    ("dev", "nvhost-*gpu"),
    ("dev/nvgpu", "igpu*/*"),
    ("dev/dri", "renderD*"),
)
PIN = (
    "sudo jetson_clocks (until the next start), or at every start: sudo systemctl enable --now "
    "jetson-clocks-lock.service (install.sh --lock-clocks)"
)


def board_rows(
    here: Device, facts: dict[str, Any], measured: Collection[str] | None, root: Path
) -> Iterator[Row]:
    """All rows about the board.

    Args:
        facts: As `jetson_agent.board.facts.describe` gives them.
        measured: Modes that have figures on the server; None if it was not asked.
    """
    yield _board(here)
    yield _mode(here, facts)
    if measured is not None:
        yield _without_figures(facts, measured)
    yield _clocks(here, facts)
    yield _power(here, facts, root)
    yield _throttle(facts)
    yield _temperature(facts)
    if here.is_board:
        yield _gpu(root)


def _board(here: Device) -> Row:
    if not here.is_board:
        detail = f"{here.name}: no Jetson, {here.cpu}, {here.cpus} CPUs"
        return Row(check="board", state="ok", detail=detail)
    parts = [
        here.name,
        here.module or here.model,
        f"{here.memory_gib:.0f} GiB",
        f"L4T {here.l4t or 'unknown'}",
        f"JetPack {here.jetpack or 'unknown'}",
        f"TensorRT {here.tensorrt or 'missing'}",
        f"CUDA {here.cuda or 'missing'}",
    ]
    detail = ", ".join(parts)
    if not here.tensorrt or not here.cuda:
        return Row(check="board", state="missing", detail=detail, mend=JETPACK_PACKAGES)
    if not here.l4t or not here.module:
        mend = "in a container, see docs/jetson.md: figures name board and release by these files"
        return Row(check="board", state="warn", detail=detail, mend=mend)
    return Row(check="board", state="ok", detail=detail)


def _mode(here: Device, facts: dict[str, Any]) -> Row:
    names = [mode["name"] for mode in facts["power_modes"]]
    if not here.is_board:
        return Row(check="power mode", state="ok", detail=here.power_mode)
    if not facts["power_mode"]:
        return Row(
            check="power mode",
            state="warn",
            detail="unknown: nothing in /var/lib/nvpmodel/status",
            mend="choose one with sudo nvpmodel -m NUMBER (/etc/nvpmodel.conf has them)",
        )
    detail = f"{facts['power_mode']} (has {', '.join(names)})"
    if facts["power_mode"] not in names:
        mend = "see that /etc/nvpmodel.conf is the one of this board"
        return Row(check="power mode", state="warn", detail=detail, mend=mend)
    return Row(check="power mode", state="ok", detail=detail)


def _without_figures(facts: dict[str, Any], measured: Collection[str]) -> Row:
    missing = facts["modes_without_figures"]
    found = ", ".join(sorted(measured)) or "none"
    if not missing:
        return Row(check="figures by mode", state="ok", detail=f"there are some in {found}")
    return Row(
        check="figures by mode",
        state="warn",
        detail=f"none yet in {', '.join(missing)} (there are some in {found})",
        mend="set the mode if you want its figures (sudo systemctl stop jetson-clocks-lock; "
        "sudo nvpmodel -m NUMBER; start it again): the agent times in the mode that it finds",
    )


def _clocks(here: Device, facts: dict[str, Any]) -> Row:
    if facts["clock_policy"] == "pinned":
        mhz = facts["clocks"]["gpu"]["mhz"]
        return Row(check="clocks", state="ok", detail=f"pinned, GPU at {mhz:g} MHz")
    if facts["clock_policy"] == "floating":
        which = " and ".join(facts["floating"])
        detail = f"floating ({which}): figures will be suspect"
        return Row(check="clocks", state="warn", detail=detail, mend=PIN)
    if here.is_board:
        return Row(
            check="clocks",
            state="warn",
            detail="the GPU's clock cannot be read from /sys/class/devfreq",
            mend="in a container, /sys must be the host's; else please send doctor --json",
        )
    return Row(check="clocks", state="ok", detail="a CPU's own; nobody pins them here")


def _power(here: Device, facts: dict[str, Any], root: Path) -> Row:
    if facts["power_w"] is not None:
        rails = ", ".join(f"{n} {w:.1f}" for n, w in facts["rails_w"].items() if w is not None)
        return Row(check="power", state="ok", detail=f"{facts['power_w']:.1f} W now ({rails})")
    if not here.is_board:
        return Row(check="power", state="ok", detail="no INA3221: figures come without power")
    monitors = power.monitors(root)
    if not monitors:
        return Row(
            check="power",
            state="warn",
            detail="no INA3221 in /sys/bus/i2c/devices: figures come without power",
            mend="sudo modprobe ina3221; some carrier boards have none",
        )
    unread = [path for folder in monitors for path in _unreadable(folder)]
    if unread:
        owner = _owners(unread[:1])
        detail = f"{unread[0]} cannot be read ({owner}): figures come without power"
        return Row(check="power", state="warn", detail=detail, mend=_join_groups(unread[:1]))
    return Row(
        check="power",
        state="warn",
        detail="a rail of the INA3221 does not answer: figures come without power",
        mend="look at dmesg for i2c errors",
    )


def _unreadable(folder: Path) -> list[Path]:
    files = [path for pattern in ("in*_input", "curr*_input") for path in matching(folder, pattern)]
    return [path for path in files if not os.access(path, os.R_OK)]


def _throttle(facts: dict[str, Any]) -> Row:
    signs = facts["throttle"]
    slowed = [name for name, state in signs["cooling"].items() if state]
    counted = [f"{name} {count}" for name, count in signs["since_boot"].items() if count]
    since = f"since the start: {', '.join(counted)}" if counted else ""
    if slowed or signs["alarms"]:
        return Row(
            check="throttling",
            state="warn",
            detail="; ".join(filter(None, [", ".join([*slowed, *signs["alarms"]]), since])),
            mend="cool the board (fan: sudo jetson_clocks --fan), or a mode that draws less",
        )
    if counted:
        return Row(
            check="throttling",
            state="warn",
            detail=f"not now; {since}",
            mend="a rise during a timing makes its figure suspect: a stronger supply, or a mode "
            "that draws less (an Orin Nano Super in MAXN_SUPER counts oc3 even when idle)",
        )
    return Row(check="throttling", state="ok", detail="no sign of it")


def _temperature(facts: dict[str, Any]) -> Row:
    if not facts["temperatures_c"]:
        return Row(check="temperature", state="ok", detail="not told by this machine")
    hottest = max(facts["temperatures_c"].values())
    celsius = facts["junction_c"] if facts["junction_c"] is not None else hottest
    limit = DEFAULT_LIMITS.junction_c
    if celsius >= limit:
        return Row(
            check="temperature",
            state="warn",
            detail=f"{celsius:.1f} degrees; a timing waits until it is below {limit:.0f}",
            mend="cool the board, or end what keeps it busy",
        )
    return Row(check="temperature", state="ok", detail=f"{celsius:.1f} degrees")


def _gpu(root: Path) -> Row:
    """Whether this user may open what CUDA opens."""
    nodes = []
    for folder, pattern in NODES:
        first, _, rest = pattern.partition("/")
        found = matching(root / folder, first)
        nodes += [path for one in found for path in matching(one, rest)] if rest else found
    if not nodes:
        return Row(
            check="GPU",
            state="missing",
            detail="none of the GPU's device nodes is in /dev",
            mend="in a container: docker run --runtime=nvidia; else see dmesg for nvgpu",
        )
    closed = [path for path in nodes if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        detail = f"{', '.join(p.name for p in closed)} cannot be opened ({_owners(closed)})"
        return Row(check="GPU", state="missing", detail=detail, mend=_join_groups(closed))
    return Row(check="GPU", state="ok", detail=f"{len(nodes)} device nodes can be opened")


def _groups(paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        try:
            found.append(path.group())
        except (OSError, KeyError):  # gone, or a group without a name
            continue
    return sorted(set(found))


def _owners(paths: list[Path]) -> str:
    return f"group {', '.join(_groups(paths)) or 'unknown'}"


def _join_groups(paths: list[Path]) -> str:
    groups = [name for name in _groups(paths) if name != "root"] or ["video", "render"]
    return f"sudo usermod --append --groups {','.join(groups)} USER, then log in again"
