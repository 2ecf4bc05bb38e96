"""The seam between the agent and what runs a model.

An engine touches the device only between `Backend.build` and `Engine.close`, always in a child
process of the agent. Contract tests: ``tests/contracts/backend.py``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from jetson_agent.errors import BackendError
from jetson_agent.protocol import Load

Array = npt.NDArray[Any]
MIN_WARMUP_QUERIES = 10
MIN_TIMED_QUERIES = 20


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Whether a backend can work here; `runtime` is its version, part of a timing's identity."""

    available: bool
    runtime: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One input of a model: fixed shape, numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Latency of each query after warm-up (ms), and the time in which all were served (s)."""

    latencies_ms: list[float]
    wall_s: float
    warmup_queries: int


class Engine(Protocol):
    """A model that is ready to run."""

    build_s: float
    inputs: list[TensorInfo]
    options: dict[str, Any]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises `BackendError` if the model cannot be run."""

    def measure(
        self, inputs: dict[str, Array], load: Load, warmup_s: float, duration_s: float
    ) -> Samples:
        """Time queries of the same inputs for at least `duration_s` after `warmup_s`."""

    def close(self) -> None:
        """Free what the engine holds."""


class Backend(Protocol):
    """Builds engines from ONNX files."""

    name: str
    precisions: tuple[str, ...]

    def probe(self) -> Probe:
        """Cheap, never raises, imports nothing heavy."""

    def build(self, model: Path, precision: str, threads: int) -> Engine:
        """Build an engine from an ONNX file. Raises `BackendError` with the reason if it cannot."""


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
    return Samples(
        latencies_ms=[value for latencies, *_ in results for value in latencies],
        wall_s=max(end for *_, end in results) - min(begin for _, _, begin, _ in results),
        warmup_queries=sum(warm for _, warm, _, _ in results),
    )
