"""The seam between the agent and what runs a model.

`Backend.build`, `run` and `measure` are each called in a child process of their own, so nothing
lives in memory between them: what must stay is the engine file. Contract tests:
``tests/contracts/backend.py``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from jetson_agent.errors import BackendError
from jetson_agent.proc import STARTED
from jetson_agent.protocol import QUANTIZED, Int8Recipe, Load

if TYPE_CHECKING:
    from jetson_agent.onnxcheck import OnnxFacts

Array = npt.NDArray[Any]
Run = Callable[[dict[str, Array]], dict[str, Array]]
MIN_WARMUP_QUERIES = 10
MIN_TIMED_QUERIES = 20


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Whether a backend can work here; `runtime` is its version, part of a timing's identity.

    `runs` tells whether it can also compute outputs, and `why_unchecked` what is missing if not.
    """

    available: bool
    runtime: str
    reason: str = ""
    runs: bool = True
    why_unchecked: str = ""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One input of a model: fixed shape, numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build; the engine and whatever belongs to it go into `folder`."""

    model: Path
    precision: str
    folder: Path
    threads: int
    workspace_mib: int = 4096
    timing_cache: Path | None = None
    deadline_s: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine on disk; `options` holds flags, command line and sizes, for the certificate."""

    engine: Path
    precision: str
    threads: int
    build_s: float
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    options: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for another process."""
        return {**asdict(self), "engine": str(self.engine)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Built:
        inputs = (TensorInfo(**{**i, "shape": tuple(i["shape"])}) for i in value["inputs"])
        return cls(
            **{
                **value,
                "engine": Path(value["engine"]),
                "inputs": tuple(inputs),
                "outputs": tuple(value["outputs"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class MeasureRequest:
    """How to time; a layer profile is written into folder `profile` if there is one."""

    load: Load
    warmup_s: float
    duration_s: float
    seed: int = 0
    cuda_graph: bool = False
    deadline_s: float = 300.0
    profile: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Latency of each query after warm-up (ms), and the time in which all were served (s).

    `parts` has ``gpu_compute_ms``, ``enqueue_ms``, ``h2d_ms`` and ``d2h_ms`` of each query where
    the backend tells them apart; `summaries` has ``min``, ``max``, ``mean`` and ``median`` of
    those that it tells only as a whole.
    """

    latencies_ms: list[float]
    wall_s: float
    warmup_queries: int
    throughput_qps: float
    parts: dict[str, list[float]] = field(default_factory=dict)
    summaries: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Samples:
        return cls(**value)


class Backend(Protocol):
    """Builds engine files from ONNX files, and runs and times them.

    `int8_recipe` says which of the quantised files of an export it reads.
    """

    name: str
    precisions: tuple[str, ...]
    int8_recipe: Int8Recipe
    loads: tuple[Load, ...]

    def probe(self) -> Probe:
        """Cheap, never raises, imports nothing heavy."""

    def build(self, request: BuildRequest) -> Built:
        """Build an engine file. Raises `BackendError` with the reason if it cannot."""

    def run(self, built: Built, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs of that very engine file, by name.

        Raises:
            BackendError: it cannot be run; ``kind="unchecked"`` where nothing here can run it.
        """

    def measure(self, built: Built, request: MeasureRequest) -> Samples:
        """Time queries of the same inputs. Raises `BackendError` if it cannot."""


@runtime_checkable
class KeepsOpen(Protocol):
    """A backend that can run many inputs on an engine that it loads once."""

    def open(self, built: Built) -> AbstractContextManager[Run]:
        """A function like `Backend.run` of that engine; raises what `run` raises."""


def opened(backend: Backend, built: Built) -> AbstractContextManager[Run]:
    """`Backend.run` for many inputs; the engine is loaded for each where it cannot stay open."""
    if isinstance(backend, KeepsOpen):
        return backend.open(built)
    return nullcontext(lambda inputs: backend.run(built, inputs))


def check_request(backend: Backend, request: BuildRequest) -> None:
    """Raise `BackendError` unless `backend` has the precision and the file is an ONNX file."""
    if request.precision not in backend.precisions:
        raise BackendError(
            f"precision={request.precision!r} is not one of {', '.join(backend.precisions)} "
            f"of backend {backend.name}",
            kind="usage",
        )
    if request.model.suffix != ".onnx":
        raise BackendError(
            f"{request.model.name} is not an .onnx file, and nothing else is loaded", kind="usage"
        )


def model_facts(backend: Backend, request: BuildRequest) -> OnnxFacts:
    """What the ONNX file says of itself, once it is known to be one that may be loaded.

    Raises:
        BackendError: it is not, or not one of that precision.
    """
    from jetson_agent.onnxcheck import ModelRefused, check_file

    recipe = backend.int8_recipe if request.precision in QUANTIZED else None
    try:
        return check_file(request.model, quantised=recipe)
    except ModelRefused as error:
        raise BackendError(str(error), kind="usage") from error


def announce_start() -> None:
    """Tell the agent that queries begin now: it watches what a child prints."""
    print(STARTED, flush=True)


def seeded_inputs(inputs: Sequence[TensorInfo], seed: int) -> dict[str, Array]:
    """Random inputs, the same for the same seed: standard normal, or 0 to 7 for integers."""
    generator = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for info in inputs:
        dtype = np.dtype(info.dtype)
        if dtype.kind == "f":
            made[info.name] = generator.standard_normal(info.shape).astype(dtype)
        elif dtype.kind in "iu":
            made[info.name] = generator.integers(0, 8, info.shape).astype(dtype)
        else:
            raise BackendError(f"input {info.name} is of type {info.dtype}: numbers are needed")
    return made


def time_queries(
    queries: Sequence[Callable[[], object]], warmup_s: float, duration_s: float
) -> Samples:
    """Time one loop per entry of `queries`, all at once, each with one query in flight.

    One entry is load ``single``; two are ``stream``. Warm-up and timing go on until both their
    time and their least number of queries (per loop) are reached; a query counts if it started
    before the end.
    """
    start_line = threading.Barrier(len(queries))
    results: list[tuple[list[float], int, float, float]] = []
    errors: list[Exception] = []

    def loop(query: Callable[[], object]) -> None:
        warm = 0
        warm_end = time.perf_counter() + warmup_s
        while warm < MIN_WARMUP_QUERIES or time.perf_counter() < warm_end:
            query()
            warm += 1
        start_line.wait()
        latencies_ms: list[float] = []
        begin = now = time.perf_counter()
        while len(latencies_ms) < MIN_TIMED_QUERIES or now < begin + duration_s:
            query()
            after = time.perf_counter()
            latencies_ms.append((after - now) * 1e3)
            now = after
        results.append((latencies_ms, warm, begin, now))

    def guarded(query: Callable[[], object]) -> None:
        try:
            loop(query)
        except Exception as error:  # carried to the caller's thread
            errors.append(error)
            start_line.abort()

    others = [threading.Thread(target=guarded, args=(query,)) for query in queries[1:]]
    for thread in others:
        thread.start()
    guarded(queries[0])
    for thread in others:
        thread.join()
    if errors:
        raise BackendError(f"a query failed: {errors[0]}") from errors[0]
    wall_s = max(end for *_, end in results) - min(begin for _, _, begin, _ in results)
    latencies_ms = [value for latencies, *_ in results for value in latencies]
    return Samples(
        latencies_ms=latencies_ms,
        wall_s=wall_s,
        warmup_queries=sum(warm for _, warm, _, _ in results),
        throughput_qps=len(latencies_ms) / wall_s,
    )
