"""ONNX Runtime on the CPU: runs everywhere, and is how the loop is tested."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

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
    seeded_inputs,
    time_queries,
)
from jetson_agent.errors import BackendError
from jetson_agent.identity import read_text, sysroot
from jetson_agent.protocol import LOADS, Int8Recipe, Load

QUERIES_IN_FLIGHT: dict[Load, int] = {"single": 1, "stream": 2}
# Instruction sets that decide how fast a convolution is, INT8 ones above all (x86, then Arm).
ISA_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni"),
    *("avx512_bf16", "amx_int8", "amx_bf16", "avx_vnni_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


class OnnxRuntimeBackend:
    """Backend ``onnxruntime``: the CPU execution provider, nothing else."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32", "int8")
    int8_recipe: Int8Recipe = "cpu"
    loads: tuple[Load, ...] = LOADS

    def probe(self) -> Probe:
        for distribution in ("onnxruntime", "onnxruntime-gpu"):
            try:
                return Probe(available=True, runtime=metadata.version(distribution))
            except metadata.PackageNotFoundError:
                continue
        return Probe(
            available=False,
            runtime="",
            reason="onnxruntime is not installed: pip install 'sharedenc[agent]'",
            runs=False,
            why_unchecked="onnxruntime is not installed",
        )

    def build(self, request: BuildRequest) -> Built:
        """Load the file once; the engine is the ONNX file itself, loaded anew by each process."""
        check_request(self, request)
        facts = model_facts(self, request)
        start = time.perf_counter()
        _session(request.model, request.threads)
        build_s = time.perf_counter() - start
        return Built(
            engine=request.model,
            precision=request.precision,
            threads=request.threads,
            build_s=build_s,
            inputs=facts.inputs,
            outputs=tuple(info.name for info in facts.outputs),
            options={
                "provider": "CPUExecutionProvider",
                "intra_op_threads": request.threads,
                "inter_op_threads": 1,
                "intra_op_spinning": True,
                "execution_mode": "sequential",
                "graph_optimization": "all",
                "io_binding": True,
                "cpu_isa": cpu_isa(),
            },
        )

    def run(self, built: Built, inputs: dict[str, Array]) -> dict[str, Array]:
        with self.open(built) as run:
            return run(inputs)

    @contextmanager
    def open(self, built: Built) -> Iterator[Run]:
        session = _session(built.engine, built.threads)
        yield lambda inputs: _outputs(session, built, inputs)

    def measure(self, built: Built, request: MeasureRequest) -> Samples:
        session = _session(built.engine, built.threads)
        inputs = seeded_inputs(built.inputs, request.seed)
        outputs = _outputs(session, built, inputs)
        queries = [_query(session, inputs, outputs) for _ in range(QUERIES_IN_FLIGHT[request.load])]
        announce_start()
        return time_queries(queries, request.warmup_s, request.duration_s)


def cpu_isa(root: Path | None = None) -> list[str]:
    """Which of `ISA_FLAGS` the CPU has, in that order; `root` is `sysroot()` by default."""
    flags: set[str] = set()
    for line in read_text((root or sysroot()) / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            flags |= set(value.split())
    return [flag for flag in ISA_FLAGS if flag in flags]


def _session(model: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime raises a dozen classes of its own without a common base.
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot load {model.name}: {error}") from error


def _outputs(session: Any, built: Built, inputs: dict[str, Array]) -> dict[str, Array]:
    try:
        values = session.run(list(built.outputs), inputs)
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot run the model: {error}") from error
    return dict(zip(built.outputs, values, strict=True))


def _query(
    session: Any, inputs: dict[str, Array], outputs: dict[str, Array]
) -> Callable[[], object]:
    """One query with buffers of its own, bound once: it copies and allocates nothing."""
    import onnxruntime

    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    return lambda: session.run_with_iobinding(binding)
