"""TensorRT: the board's own `trtexec` builds and times, TensorRT's Python API gives outputs.

What the figures mean: NVIDIA/TensorRT v10.3.0, samples/common/sampleInference.cpp and
sampleReporting.cpp. A latency is the copy to the GPU, computing and the copy back of one query.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jetson_agent.backends.base import (
    Array,
    BuildRequest,
    Built,
    MeasureRequest,
    Probe,
    Run,
    Samples,
    announce_start,
    check_request,
    model_facts,
)
from jetson_agent.backends.trtexec import (
    JETPACK,
    Call,
    build_flags,
    call,
    find_trtexec,
    measure_flags,
    read_version,
)
from jetson_agent.errors import BackendError
from jetson_agent.protocol import LOADS, PRECISIONS, Int8Recipe, Load
from jetson_agent.trtexec_times import agree, read_times

Runner = Callable[[Path, dict[str, Array]], dict[str, Array]]

# What a summary needs before it can be merged with that of another run.
WHOLE = {"min", "max", "mean", "median"}
# What trtexec warns of (10, 11) before it goes on without a graph.
IGNORED_GRAPH = ("--useCudaGraph flag has been ignored", "CUDA graph capture failed")


class TensorRTBackend:
    """Backend ``tensorrt``.

    Args:
        runner: Gives the outputs of an engine file; by default TensorRT's Python API.
        trtexec: The program; by default it is looked for.
    """

    name = "tensorrt"
    precisions: tuple[str, ...] = PRECISIONS
    int8_recipe: Int8Recipe = "trt"
    loads: tuple[Load, ...] = LOADS

    def __init__(self, runner: Runner | None = None, trtexec: Path | None = None) -> None:
        self._runner = runner
        self._trtexec = trtexec

    def probe(self) -> Probe:
        try:
            version = read_version(self._find())
        except BackendError as error:
            return Probe(
                available=False,
                runtime="",
                reason=str(error),
                runs=False,
                why_unchecked="there is no trtexec",
            )
        missing = self._missing()
        return Probe(available=True, runtime=version, runs=not missing, why_unchecked=missing)

    def build(self, request: BuildRequest) -> Built:
        check_request(self, request)
        facts = model_facts(self, request)
        trtexec = self._find()
        version = read_version(trtexec)
        engine, part = request.folder / "engine.plan", request.folder / "engine.part"
        command = [
            str(trtexec),
            f"--onnx={request.model.resolve()}",
            f"--saveEngine={part}",
            *build_flags(version, request),
        ]
        if request.timing_cache is not None:
            command.append(f"--timingCacheFile={request.timing_cache}")
        part.unlink(missing_ok=True)
        done = call(command, request.folder / "build.log", request.deadline_s)
        if not part.is_file() or not part.stat().st_size:
            raise BackendError(
                "trtexec says PASSED, but there is no engine file", lines=[done.tail]
            )
        part.replace(engine)
        return Built(
            engine=engine,
            precision=request.precision,
            threads=request.threads,
            build_s=done.report.build.build_s or done.wall_s,
            inputs=facts.inputs,
            outputs=tuple(info.name for info in facts.outputs),
            options={
                "trtexec": str(trtexec),
                "version": version,
                "command": shlex.join(command),
                "flags": command[1:],
                "engine_mib": round(engine.stat().st_size / 2**20, 3),
                "wall_s": round(done.wall_s, 3),
                "warnings": done.report.warnings,
                "log_tail": done.tail,
            },
        )

    def run(self, built: Built, inputs: dict[str, Array]) -> dict[str, Array]:
        with self.open(built) as run:
            return run(inputs)

    @contextmanager
    def open(self, built: Built) -> Iterator[Run]:
        if missing := self._missing():
            raise BackendError(missing, kind="unchecked")
        if (runner := self._runner) is not None:
            yield lambda inputs: runner(built.engine, inputs)
            return
        from jetson_agent.backends.trt_runner import open_engine

        with open_engine(built.engine) as run:
            yield run

    def measure(self, built: Built, request: MeasureRequest) -> Samples:
        trtexec, version = built.options["trtexec"], built.options["version"]
        with tempfile.TemporaryDirectory(prefix="jetson-agent-") as folder:
            times = Path(folder, "times.json")
            command = [
                trtexec,
                f"--loadEngine={built.engine}",
                f"--exportTimes={times}",
                *measure_flags(version, request),
            ]
            log = Path(folder, "measure.log")
            done = call(command, log, request.deadline_s, on_start=announce_start)
            if request.cuda_graph and any(text in done.text for text in IGNORED_GRAPH):
                raise BackendError(
                    "this engine cannot be captured as a CUDA graph, and was timed without one",
                    kind="unsupported",
                    lines=done.report.warnings,
                )
            samples = read_samples(done, times, version)
        if request.profile is not None:
            self._profile(built, request, request.profile)
        return samples

    def _profile(self, built: Built, request: MeasureRequest, folder: Path) -> None:
        """Time per layer, in a call of its own: profiling slows every query down."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            built.options["trtexec"],
            f"--loadEngine={built.engine}",
            f"--exportProfile={folder / 'profile.json'}",
            f"--exportLayerInfo={folder / 'layers.json'}",
            *measure_flags(built.options["version"], request),
        ]
        call(command, folder / "profile.log", request.deadline_s)

    def _find(self) -> Path:
        found = self._trtexec or find_trtexec()
        if found is None:
            raise BackendError(
                "there is no trtexec: install JetPack's libnvinfer-bin (it comes as "
                f"{JETPACK}), or name it in JETSON_AGENT_TRTEXEC",
                kind="no-device",
            )
        return found

    def _missing(self) -> str:
        """What is missing to compute outputs, or nothing."""
        if self._runner is not None:
            return ""
        from jetson_agent.backends.trt_runner import what_is_missing

        return what_is_missing()


def read_samples(done: Call, times_file: Path, version: str) -> Samples:
    """Latencies from the file of ``--exportTimes``, throughput from the text.

    Raises:
        BackendError: one of them is missing, or they do not say the same.
    """
    report = done.report
    if report.throughput_qps is None:
        raise BackendError("trtexec says PASSED, but tells no throughput", lines=[done.tail])
    times = read_times(times_file, report.queries)
    if contradictions := agree(report, times):
        raise BackendError(
            f"trtexec's text and its file of times disagree: {' '.join(contradictions)}",
            lines=contradictions,
        )
    enqueue = {name: v for name, v in (report.enqueue_ms or {}).items() if v is not None}
    return Samples(
        latencies_ms=times.latencies_ms,
        wall_s=times.wall_s,
        warmup_queries=report.warmup_queries or 0,
        throughput_qps=report.throughput_qps,
        parts=times.parts,
        summaries={"enqueue_ms": enqueue} if WHOLE <= set(enqueue) else {},
        warnings=report.warnings,
        options={
            "command": shlex.join(done.command),
            "version": version,
            "context_mib": report.build.context_mib,
            "log_tail": done.tail,
        },
    )
