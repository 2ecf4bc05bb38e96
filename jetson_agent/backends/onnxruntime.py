"""ONNX Runtime on the CPU: runs everywhere, and is how the loop is tested."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from jetson_agent.backends.base import Array, Engine, Probe, Samples, TensorInfo, time_queries
from jetson_agent.errors import BackendError
from jetson_agent.protocol import Load

QUERIES_IN_FLIGHT: dict[Load, int] = {"single": 1, "stream": 2}
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


class OnnxRuntimeBackend:
    """Backend ``onnxruntime``: the CPU execution provider, nothing else."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32",)

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
        )

    def build(self, model: Path, precision: str, threads: int) -> Engine:
        if precision not in self.precisions:
            raise BackendError(
                f"precision={precision!r} is not one of {', '.join(self.precisions)} "
                f"of backend {self.name}"
            )
        if model.suffix != ".onnx":
            raise BackendError(f"{model.name} is not an .onnx file, and nothing else is loaded")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        start = time.perf_counter()
        try:
            session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        # ONNX Runtime raises a dozen classes of its own without a common base.
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load {model.name}: {error}") from error
        build_s = time.perf_counter() - start
        return OnnxRuntimeEngine(session, build_s, threads)


class OnnxRuntimeEngine:
    """A session whose inputs and outputs are bound once: a query copies and allocates nothing."""

    def __init__(self, session: Any, build_s: float, threads: int) -> None:
        self._session = session
        self.build_s = build_s
        self.inputs = [_tensor_info(value) for value in session.get_inputs()]
        self.options: dict[str, Any] = {
            "provider": "CPUExecutionProvider",
            "intra_op_threads": threads,
            "inter_op_threads": 1,
            "intra_op_spinning": True,
            "execution_mode": "sequential",
            "graph_optimization": "all",
            "io_binding": True,
        }

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        names = [value.name for value in self._session.get_outputs()]
        try:
            values = self._session.run(names, inputs)
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot run the model: {error}") from error
        return dict(zip(names, values, strict=True))

    def measure(
        self, inputs: dict[str, Array], load: Load, warmup_s: float, duration_s: float
    ) -> Samples:
        outputs = self.run(inputs)
        queries = [self._query(inputs, outputs) for _ in range(QUERIES_IN_FLIGHT[load])]
        return time_queries(queries, warmup_s, duration_s)

    def close(self) -> None:
        self._session = None

    def _query(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Callable[[], object]:
        """One query with buffers of its own: two may run at once in one session."""
        import onnxruntime

        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        session = self._session
        return lambda: session.run_with_iobinding(binding)


def _tensor_info(value: Any) -> TensorInfo:
    shape = value.shape
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise BackendError(
            f"input {value.name} has shape {shape}: only fixed shapes can be timed, export it so"
        )
    if value.type not in DTYPES:
        raise BackendError(f"input {value.name} is {value.type}, not one of {', '.join(DTYPES)}")
    return TensorInfo(name=value.name, shape=tuple(shape), dtype=DTYPES[value.type])
