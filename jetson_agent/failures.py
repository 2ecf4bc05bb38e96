"""What a build or a run died of, read from what it printed, and what is to be done about it.

Only phrases that are the same from TensorRT 8 to 11 are looked for: source lines, error numbers and
the words around them differ between releases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

from jetson_agent.trtexec_lines import BANNER, Line, read_lines

FailureKind = Literal[
    "unsupported",
    "int8-kernel",
    "memory",
    "internal",
    "crash",
    "timeout",
    "engine-mismatch",
    "disk",
    "usage",
    "no-device",
    "unchecked",
]
Change = Literal["", "halve-workspace", "rebuild", "evict"]
FAILURE_KINDS: tuple[FailureKind, ...] = get_args(FailureKind)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A named reason; `lines` are the log's own, `node` the layer that TensorRT blamed."""

    kind: FailureKind
    lines: list[str] = field(default_factory=list)
    node: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Failure:
        return cls(
            kind=cast(FailureKind, value["kind"]),
            lines=list(value.get("lines", [])),
            node=str(value.get("node", "")),
        )


@dataclass(frozen=True, kw_only=True)
class Action:
    """What follows a failure: how often a job is tried in all, what changes before the next try,
    and the verdict once no try is left."""

    verdict: Literal["unsupported", "failed"]
    attempts: int
    change: Change = ""


# The board never changes a model, so a kernel that INT8 lacks is as final as an unknown operator.
ACTIONS: dict[FailureKind, Action] = {
    "unsupported": Action(verdict="unsupported", attempts=1),
    "int8-kernel": Action(verdict="unsupported", attempts=1),
    "memory": Action(verdict="failed", attempts=2, change="halve-workspace"),
    "internal": Action(verdict="failed", attempts=3),
    "crash": Action(verdict="failed", attempts=3),
    "timeout": Action(verdict="failed", attempts=3),
    "engine-mismatch": Action(verdict="failed", attempts=2, change="rebuild"),
    "disk": Action(verdict="failed", attempts=2, change="evict"),
    "usage": Action(verdict="failed", attempts=1),
    "no-device": Action(verdict="failed", attempts=1),
    "unchecked": Action(verdict="failed", attempts=1),
}


MAX_LINES = 20
MAX_LINE = 1000

# Looked for in this order in errors and in text without TensorRT's prefix: first what ends a build
# for sure, then causes, last the general complaints that follow them. A kernel that is missing
# after errors about memory is missing for want of memory.
_MEMORY = (
    r"out of memory|OutOfMemory|bad_alloc|could not be allocated|insufficient (?:memory|workspace)"
)
_SIGNS: tuple[tuple[FailureKind, re.Pattern[str]], ...] = (
    ("usage", re.compile(r"^Unknown option: |^Model missing or format not recognized")),
    ("disk", re.compile(r"Saving engine to file failed|No space left on device")),
    ("memory", re.compile(_MEMORY, re.IGNORECASE)),
    ("int8-kernel", re.compile(r"Could not find any implementation for node ")),
    (
        "unsupported",
        re.compile(
            r"Failed to parse onnx file|Parsing model failed|While parsing node number"
            r"|^ERROR: ModelImporter|^ModelImporter|Invalid Node|No importer registered"
            r"|UNSUPPORTED_NODE|INVALID_NODE"
        ),
    ),
    (
        "engine-mismatch",
        re.compile(
            r"magicTag|[Vv]ersion tag does not match|Serialization assertion"
            r"|incompatible (?:serialization version|device)"
            r"|not compatible with this version of TensorRT|[Vv]ersion mismatch"
            r"|Engine deserialization failed"
        ),
    ),
    (
        "no-device",
        re.compile(
            r"Cannot find device ID|Cannot find any available devices|no CUDA-capable device"
            r"|CUDA initialization failure|CUDA driver version is insufficient"
        ),
    ),
    (
        "crash",
        re.compile(
            r"illegal memory access|^Cuda failure|Segmentation fault|core dumped|^Aborted"
            r"|terminate called|unspecified launch failure|misaligned address"
        ),
    ),
    ("internal", re.compile(r"Internal Error|Assertion|Error Code [0-9]+")),
    # The driver of a Jetson says so when an allocation fails, and often a build goes on.
    ("memory", re.compile(r"NvMapMem\w{1,40}: .{0,80}error ")),
)
# Printed as information before trtexec leaves with code 1 and no verdict.
_NO_DEVICE = dict(_SIGNS)["no-device"]
_OUT_OF_MEMORY_SIGNAL = 9  # SIGKILL: the kernel's own answer to want of memory
_TACTIC = re.compile(r"Skipping tactic|Tactic Device request")  # a build goes on without it
_NODE = re.compile(r"Could not find any implementation for node (.*)")
_AFTER_NODE = re.compile(r"\.? (?:due to insufficient |In \S+ at )")


def classify(text: str, returncode: int | None, timed_out: bool) -> Failure:
    """Name the failure of a process that is known to have failed.

    Args:
        text: What it printed, both streams; may be cut anywhere.
        returncode: As `subprocess` gives it, negative for a signal; None if unknown.
        timed_out: It was ended because it took too long, which says nothing about the reason.

    Returns:
        `kind` ``internal`` for an exit code that nothing explains, ``crash`` for such a signal, and
        ``memory`` for SIGKILL.
    """
    lines = read_lines(text)
    last = [line.text[:MAX_LINE] for line in lines if line.text.strip()][-5:]
    if timed_out:
        return Failure(kind="timeout", lines=last)
    if found := find_failure(lines):
        return found
    errors = error_lines(lines) or last
    code = returncode or 0
    ended_by = -code if code < 0 else code - 128  # a shell turns signal n into exit code 128 + n
    if ended_by == _OUT_OF_MEMORY_SIGNAL:
        return Failure(kind="memory", lines=errors)
    return Failure(kind="crash" if ended_by > 0 else "internal", lines=errors)


def find_failure(lines: Sequence[Line]) -> Failure | None:
    """The first sign, by weight and not by place, of a known failure; None without any.

    Warnings are none: ``Skipping tactic ... insufficient memory`` ends in a slower engine.
    """
    blamed = [line for line in lines if _may_blame(line)]
    for kind, sign in _SIGNS:
        if hit := next((line for line in blamed if sign.search(line.text)), None):
            shown = error_lines(lines)
            if not any(hit.text[:MAX_LINE] in line for line in shown):
                shown = [hit.text[:MAX_LINE], *shown][:MAX_LINES]
            return Failure(kind=kind, lines=shown, node=_node(lines))
    return None


def error_lines(lines: Sequence[Line]) -> list[str]:
    """Errors in the log's own words, each with the lines that belong to it; the first twenty."""
    found: list[str] = []
    inside = False
    for line in lines:
        if line.level:
            inside = line.level in ("E", "F")
        if BANNER.match(line.text):
            inside = False
        if inside and line.text.strip():
            found.append(line.text[:MAX_LINE])
    return found[:MAX_LINES]


def _may_blame(line: Line) -> bool:
    if line.level == "I":
        return bool(_NO_DEVICE.match(line.text))
    if _TACTIC.match(line.text):
        return False
    # Without a prefix: what follows an error, what the driver or a shell says. Help is indented.
    return line.level in ("E", "F") or (not line.level and not line.text.startswith((" ", "&&&&")))


def _node(lines: Sequence[Line]) -> str:
    """Name of the layer that has no kernel.

    It stands between "for node" and the end of the sentence, which is one of ``X.``, ``X.)``,
    ``X due to insufficient workspace. ...)`` and ``X. In computeCosts at optimizer.cpp:1234)``; it
    may have dots and brackets of its own, as in ``{ForeignNode[a + b.../c]}``.
    """
    for line in lines:
        if line.level != "W" and (match := _NODE.search(line.text)):
            name = _AFTER_NODE.split(match[1])[0].rstrip()
            if name.endswith(")") and name.count(")") > name.count("("):
                name = name[:-1].rstrip()
            return name.removesuffix(".")
    return ""
