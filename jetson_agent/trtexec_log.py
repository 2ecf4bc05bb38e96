"""What a `trtexec` log says, from TensorRT 8.2 to 11: figures, verdict, warnings, errors.

Nothing is made up: what is not in the log, not whole or not a number is None. A figure counts only
with its unit behind it and a word only with its line's end, so any part of a log gives the same
values as the whole, or None.

Layout: NVIDIA/TensorRT, samples/common/sampleReporting.cpp (`printEpilog`), sampleEngines.cpp,
sampleDevice.cpp and logging.h at tags 8.2.1 to v11.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jetson_agent.failures import Failure, error_lines, find_failure
from jetson_agent.trtexec_lines import BANNER, Line, read_lines

Statistics = dict[str, "float | None"]

# Heading in the log -> name here. The end-to-end latency is in 8.2 and older only.
PARTS = {
    "Latency": "latency_ms",
    "Enqueue Time": "enqueue_ms",
    "H2D Latency": "h2d_ms",
    "GPU Compute Time": "gpu_compute_ms",
    "D2H Latency": "d2h_ms",
    "End-to-End Host Latency": "end_to_end_ms",
}
SUMMARY = "=== Performance summary ==="
# As a C++ stream prints it, with no more digits than anything prints.
_NUMBER = r"([-+]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][-+]?[0-9]{1,4})?|inf|nan))"
_PART = re.compile(rf"({'|'.join(PARTS)}): (?=min = )")
_ITEM = re.compile(rf"(?<!\S)(min|max|mean|median|percentile\([0-9.]+%\)) = {_NUMBER} ms(?=,|$)")
_FIGURES = {
    "throughput_qps": re.compile(rf"Throughput: {_NUMBER} qps$"),
    "walltime_s": re.compile(rf"Total Host Walltime: {_NUMBER} s$"),
    "gpu_compute_s": re.compile(rf"Total GPU Compute Time: {_NUMBER} s$"),
    "queries": re.compile(rf"Timing trace has {_NUMBER} queries over"),
    "warmup_queries": re.compile(rf"Warmup completed {_NUMBER} queries over"),
    "build_s": re.compile(rf"Engine built in {_NUMBER} sec\.$"),
    "load_s": re.compile(rf"Engine (?:loaded|deserialized) in {_NUMBER} sec\.$"),
    "engine_mib": re.compile(
        rf"(?:Created engine with size|Loaded engine with size): {_NUMBER} MiB$"
    ),
    "context_mib": re.compile(
        rf"Created (?:safe )?execution context with device memory size: {_NUMBER} MiB$"
    ),
}
BUILD_FIGURES = ("build_s", "load_s", "engine_mib", "context_mib")
_WORDS = {
    "device": re.compile(r"Selected Device: (.+)"),
    "precision": re.compile(r"Precision: (.+)"),
    "version": re.compile(r"TensorRT version: ([0-9]+(?:\.[0-9]+)+)"),
}
_BANNER_VERSION = re.compile(r"\[TensorRT v([0-9]{1,9})\](?: \[(b[0-9]+)\])?")
_BANNER_COMMAND = re.compile(r"\] # (.+)")
# What shows that a text is trtexec's or the library's, however little of it there is.
LOOKED_FOR = (
    "a banner (&&&& RUNNING, PASSED or FAILED), lines that begin with [MM/DD/YYYY-hh:mm:ss] and a "
    "level such as [I], or the performance summary"
)


@dataclass(frozen=True, kw_only=True)
class Build:
    """Facts of the build or of the loading; seconds and MiB."""

    build_s: float | None = None
    load_s: float | None = None
    engine_mib: float | None = None
    context_mib: float | None = None
    precision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The last run of a log; `runs` tells how many there are.

    `passed` is None without a verdict. Each of the statistics is None if its line is missing, else
    has ``min, max, mean, median`` (None if cut off) and the percentiles that are there, as ``p99``.
    """

    tensorrt_version: str | None = None
    passed: bool | None = None
    throughput_qps: float | None = None
    latency_ms: Statistics | None = None
    enqueue_ms: Statistics | None = None
    h2d_ms: Statistics | None = None
    gpu_compute_ms: Statistics | None = None
    d2h_ms: Statistics | None = None
    warnings: list[str] = field(default_factory=list)
    failure: Failure | None = None
    errors: list[str] = field(default_factory=list)
    end_to_end_ms: Statistics | None = None
    queries: int | None = None
    warmup_queries: int | None = None
    walltime_s: float | None = None
    gpu_compute_s: float | None = None
    device: str | None = None
    build_tag: str | None = None
    command: str | None = None
    build: Build = field(default_factory=Build)
    runs: int = 0

    @property
    def recognised(self) -> bool:
        """Whether the text is a log of trtexec or of the library at all."""
        return self.runs > 0

    def to_dict(self) -> dict[str, Any]:
        """What ``jetson-agent parse-log --json`` prints; None for what is not there."""
        return asdict(self)


def parse(text: str) -> Report:
    """Read a log, or any part of one; never raises."""
    runs = _split_runs(read_lines(text))
    return _read_run(runs[-1], len(runs)) if runs else Report()


def decode_version(number: str) -> str | None:
    """The macro in a banner: 100300 is 10.3.0, and up to TensorRT 9, 8412 is 8.4.12."""
    value = int(number)
    if len(number) == 4:
        major, rest = divmod(value, 1000)
    elif len(number) == 6:
        major, rest = divmod(value, 10000)
    else:
        return None
    return f"{major}.{rest // 100}.{rest % 100}"


def _split_runs(lines: Sequence[Line]) -> list[list[Line]]:
    """A run begins with RUNNING; without that, with what follows a verdict or a summary.

    After a verdict only headings, figures and verdicts begin one: errors and messages of the
    library while it is torn down belong to the run before.
    """
    runs: list[list[Line]] = []
    found = begun = ended = summarised = False
    for line in lines:
        banner = BANNER.match(line.text)
        running = line.text.startswith("&&&& RUNNING")
        summary = line.text == SUMMARY
        telling = bool(banner) or line.text.startswith("=== ") or _has_figure(line)
        if not runs or (begun and running) or (ended and telling) or (summarised and summary):
            runs.append([])
            begun = ended = summarised = False
        runs[-1].append(line)
        # Of two streams the one with warnings may come before the banner.
        begun = begun or line.level == "I" or telling
        ended = ended or (bool(banner) and not running)
        summarised = summarised or summary
        found = found or bool(line.level) or telling
    return runs if found else []


def _has_figure(line: Line) -> bool:
    return bool(_PART.match(line.text)) or any(p.match(line.text) for p in _FIGURES.values())


def _read_run(lines: Sequence[Line], runs: int) -> Report:
    figures: dict[str, float | None] = {}
    words: dict[str, str] = {}
    parts: dict[str, Statistics] = {}
    warnings: dict[str, None] = {}  # each once, in order
    odd: list[str] = []
    verdict: str | None = None
    for line in lines:
        if banner := BANNER.match(line.text):
            _read_banner(line, words)
            word = banner[0].removeprefix("&&&& ")
            verdict = verdict if word == "RUNNING" else word
        elif line.level == "W" or line.text.startswith("[libprotobuf WARNING"):
            if warning := line.text.strip():
                warnings[warning] = None
        elif line.level in ("I", ""):
            if part := _PART.match(line.text):
                parts.setdefault(PARTS[part[1]], _statistics(line.text, odd))
            for name, pattern in _FIGURES.items():
                if (match := pattern.match(line.text)) and name not in figures:
                    figures[name] = _number(match[1], name, odd)
            for name, pattern in _WORDS.items():
                if line.complete and (match := pattern.match(line.text)):
                    words.setdefault(name, match[1].strip())
    passed = None if verdict is None else verdict == "PASSED"
    errors = error_lines(lines)
    failure = None if passed else find_failure(lines)
    if passed is False and failure is None:
        failure = Failure(kind="internal", lines=errors)
    counts = {name: _count(figures.pop(name, None)) for name in ("queries", "warmup_queries")}
    build = {name: figures.pop(name, None) for name in BUILD_FIGURES}
    values: dict[str, Any] = {**figures, **parts, **counts}
    return Report(
        tensorrt_version=words.get("version") or words.get("banner version"),
        passed=passed,
        warnings=[*warnings, *odd],
        failure=failure,
        errors=errors,
        device=words.get("device"),
        build_tag=words.get("build tag"),
        command=words.get("command"),
        build=Build(precision=words.get("precision"), **build),
        runs=runs,
        **values,
    )


def _read_banner(line: Line, words: dict[str, str]) -> None:
    if match := _BANNER_VERSION.search(line.text):
        if version := decode_version(match[1]):
            words.setdefault("banner version", version)
        if match[2]:
            words.setdefault("build tag", match[2])
    if line.complete and (match := _BANNER_COMMAND.search(line.text)):
        words.setdefault("command", match[1])


def _statistics(text: str, odd: list[str]) -> Statistics:
    values: Statistics = dict.fromkeys(("min", "max", "mean", "median"))
    for name, number in _ITEM.findall(text):
        key = f"p{name[len('percentile(') : -2]}" if name.startswith("percentile") else name
        values[key] = _number(number, f"{key} of {text.split(':')[0]}", odd)
    return values


def _number(text: str, name: str, odd: list[str]) -> float | None:
    value = float(text)
    if math.isfinite(value):
        return value
    odd.append(f"{name} is {text[:40]} in the log: no figure, so it is left out")
    return None


def _count(value: float | None) -> int | None:
    return int(value) if value is not None and value.is_integer() else None
