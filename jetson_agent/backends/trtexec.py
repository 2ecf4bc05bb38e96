"""NVIDIA's `trtexec` as a tool: where it is, which version, and what that version's flags are.

Facts about flags: NVIDIA/TensorRT, samples/common/sampleOptions.cpp at tags 8.2.1, 8.4.1, 8.5.1,
v8.6.1, v9.3.0, v10.0.0, v10.3.0 (JetPack 6.2.1), v10.16, v11.0 and v11.1.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jetson_agent.backends.base import BuildRequest, MeasureRequest
from jetson_agent.errors import BackendError
from jetson_agent.failures import classify
from jetson_agent.proc import run_tool
from jetson_agent.protocol import Load
from jetson_agent.trtexec_log import Report, parse

ENVIRONMENT = "JETSON_AGENT_TRTEXEC"
# JetPack installs trtexec here, and does not put it on the PATH.
JETPACK = Path("/usr/src/tensorrt/bin/trtexec")
VERSION_DEADLINE_S = 60.0
MAX_LOG_BYTES = 8 << 20
TAIL_LINES = 40

# Without --noTF32, layers in FP32 are computed in TF32. `int8-unscaled` is what ``trtexec --int8``
# does to a plain file, so nothing is added to that.
PRECISION_FLAGS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("--noTF32",),
    "tf32": (),
    "fp16": ("--fp16", "--noTF32"),
    "int8": ("--int8", "--noTF32"),
    "int8_fp16": ("--int8", "--fp16", "--noTF32"),
    "int8-unscaled": ("--int8",),
}
# `Iteration` of sampleInference.cpp keeps ``1 + overlap`` queries in flight, and --exposeDMA sets
# ``overlap = !exposeDMA``: each query is then waited for before the next one is sent. One stream
# (--infStreams=1) alone leaves two in flight.
LOAD_FLAGS: Mapping[Load, tuple[str, ...]] = {"stream": (), "single": ("--exposeDMA",)}
# 200 queries carry a 99th percentile whatever one query takes.
MIN_ITERATIONS = 200
AVERAGED = 100


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The flags of the versions from `since` on, until the next dialect.

    `run` turns data transfers and spinning on, `graph` and `no_graph` CUDA graphs on and off.
    """

    since: tuple[int, int]
    workspace: str
    skip_inference: str
    one_stream: str
    percentiles: str
    optimization: tuple[str, ...]
    precisions: Mapping[str, tuple[str, ...]]
    run: tuple[str, ...]
    graph: tuple[str, ...]
    no_graph: tuple[str, ...]


V8_2 = Dialect(
    since=(0, 0),
    workspace="--workspace={mib}",
    skip_inference="--buildOnly",
    one_stream="--streams=1",
    percentiles="99",
    optimization=(),
    precisions=PRECISION_FLAGS,
    run=("--useSpinWait",),
    graph=("--useCudaGraph",),
    no_graph=(),
)
V8_4 = replace(V8_2, since=(8, 4), workspace="--memPoolSize=workspace:{mib}")
V8_5 = replace(V8_4, since=(8, 5), percentiles="90,95,99")
# The same in 9 and 10, where the old names of 8.2 are gone.
V8_6 = replace(
    V8_5,
    since=(8, 6),
    skip_inference="--skipInference",
    one_stream="--infStreams=1",
    optimization=("--builderOptimizationLevel=3",),
)
# Networks are strongly typed: the file alone decides on INT8 and FP16. Spinning and CUDA graphs are
# on unless switched off, data transfers are off unless asked for.
V11 = replace(
    V8_6,
    since=(11, 0),
    precisions={"fp32": ("--noTF32",), "tf32": (), "int8": ("--noTF32",)},
    run=("--includeDataTransfers",),
    graph=(),
    no_graph=("--noCudaGraph",),
)
DIALECTS = (V8_2, V8_4, V8_5, V8_6, V11)


def dialect(version: str) -> Dialect:
    """The dialect of a version such as ``10.3.0``."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return [d for d in DIALECTS if list(d.since) <= numbers][-1]


def build_flags(version: str, request: BuildRequest) -> list[str]:
    """Flags of a build, apart from the files' names.

    Raises:
        BackendError: this version has no such precision.
    """
    words = dialect(version)
    if request.precision not in words.precisions:
        raise BackendError(
            f"trtexec {version} has no precision {request.precision}: its networks have the types "
            f"of the file; it has {', '.join(words.precisions)}",
            kind="unsupported",
        )
    return [
        words.skip_inference,
        *words.precisions[request.precision],
        words.workspace.format(mib=request.workspace_mib),
        *words.optimization,
        "--avgTiming=8",
        "--profilingVerbosity=detailed",
    ]


def measure_flags(version: str, request: MeasureRequest) -> list[str]:
    """Flags of a timing, apart from the files' names."""
    words = dialect(version)
    return [
        f"--warmUp={request.warmup_s * 1000:g}",
        f"--duration={request.duration_s:g}",
        f"--iterations={MIN_ITERATIONS}",
        f"--avgRuns={AVERAGED}",
        f"--percentile={words.percentiles}",
        words.one_stream,
        *LOAD_FLAGS[request.load],
        *words.run,
        *(words.graph if request.cuda_graph else words.no_graph),
    ]


def find_trtexec(jetpack: Path = JETPACK) -> Path | None:
    """``$JETSON_AGENT_TRTEXEC``, else the one on the PATH, else JetPack's; None without any."""
    if explicit := os.environ.get(ENVIRONMENT):
        return Path(explicit) if os.access(explicit, os.X_OK) else None
    if found := shutil.which("trtexec"):
        return Path(found)
    return jetpack if os.access(jetpack, os.X_OK) else None


def read_version(trtexec: Path) -> str:
    """Version such as ``10.3.0``, from the banner that every call prints first.

    It is compiled in, so the same file is asked once: a daemon wants to know every half minute.

    Raises:
        BackendError: it prints none.
    """
    try:
        stat = trtexec.stat()
    except OSError as error:
        raise BackendError(f"{trtexec} cannot be run: {error}", kind="no-device") from error
    return _version(trtexec, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _version(trtexec: Path, _mtime_ns: int, _size: int) -> str:
    with tempfile.TemporaryDirectory(prefix="jetson-agent-") as folder:
        log = Path(folder, "help.log")
        try:
            finished = run_tool([str(trtexec), "--help"], deadline_s=VERSION_DEADLINE_S, log=log)
        except OSError as error:
            raise BackendError(f"{trtexec} cannot be run: {error}") from error
        text = read_log(log)
    version = parse(text).tensorrt_version
    if not version:
        raise BackendError(
            f"{trtexec} {finished.describe} without its version: "
            f"{text.strip()[-300:] or 'it printed nothing'}"
        )
    return version


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that succeeded."""

    command: list[str]
    text: str
    report: Report
    wall_s: float

    @property
    def tail(self) -> str:
        """The end of what it printed."""
        return "\n".join(self.text.splitlines()[-TAIL_LINES:])


def call(
    command: Sequence[str],
    log: Path,
    deadline_s: float,
    on_start: Callable[[], None] | None = None,
) -> Call:
    """Run trtexec until it has PASSED.

    Raises:
        BackendError: exit code and text do not both say so, with the kind of failure.
    """
    start = time.monotonic()
    try:
        finished = run_tool(command, deadline_s=deadline_s, log=log, on_start=on_start)
    except OSError as error:
        raise BackendError(f"{command[0]} cannot be run: {error}", kind="no-device") from error
    text = read_log(log)
    report = parse(text)
    # 0 without PASSED is a program that was cut short; PASSED without 0 one that died at its end.
    if finished.timed_out or finished.returncode != 0 or report.passed is not True:
        failure = classify(text, finished.returncode, finished.timed_out)
        said = failure.lines[0] if failure.lines else (text.strip().splitlines() or ["nothing"])[-1]
        if finished.timed_out:
            how = f"did not end within {deadline_s:g} s"
        elif finished.returncode == 0:
            how = "ended without PASSED"
        else:
            how = finished.describe
        raise BackendError(
            f"trtexec {how}: {said}", kind=failure.kind, lines=failure.lines, node=failure.node
        )
    return Call(command=list(command), text=text, report=report, wall_s=time.monotonic() - start)


def read_log(log: Path) -> str:
    """The text of a log, the end of it if it is huge."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - MAX_LOG_BYTES))
        return stream.read().decode(errors="replace")
