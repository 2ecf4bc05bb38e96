"""The backends, each under the contract of the seam."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from jetson_agent.backends import BACKENDS, DEFAULT_BACKEND, load_backend
from jetson_agent.backends.base import (
    MIN_WARMUP_QUERIES,
    Backend,
    MeasureRequest,
    TensorInfo,
    seeded_inputs,
    time_queries,
)
from jetson_agent.backends.onnxruntime import OnnxRuntimeBackend, cpu_isa
from jetson_agent.errors import AgentError, BackendError
from jetson_agent.protocol import Load
from tests.agent import models
from tests.contracts.backend import BackendContract, build


class TestOnnxRuntimeBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return OnnxRuntimeBackend()


def test_every_name_in_the_table_loads_a_backend_of_that_name() -> None:
    assert DEFAULT_BACKEND in BACKENDS
    for name in BACKENDS:
        assert load_backend(name).name == name


@pytest.mark.parametrize("name", ["nothing", "os:nothing", "no.such.module:Class", ":"])
def test_an_unknown_backend_is_an_error_that_lists_those_there_are(name: str) -> None:
    with pytest.raises(AgentError, match=f"backend='{name}'.*onnxruntime"):
        load_backend(name)


def test_the_same_seed_gives_the_same_input_and_another_seed_another() -> None:
    infos = [
        TensorInfo(name="images", shape=(1, 3, 4, 4), dtype="float32"),
        TensorInfo(name="ids", shape=(5,), dtype="int64"),
    ]
    first, again, other = (seeded_inputs(infos, seed) for seed in (1, 1, 2))
    assert first["images"].dtype == np.float32
    assert first["ids"].dtype == np.int64
    np.testing.assert_array_equal(first["images"], again["images"])
    assert not np.array_equal(first["images"], other["images"])
    with pytest.raises(BackendError, match="flag is of type bool"):
        seeded_inputs([TensorInfo(name="flag", shape=(1,), dtype="bool")], 0)


def test_two_loops_have_two_queries_in_flight_at_once() -> None:
    together = threading.Barrier(2)
    # Each query waits until the other loop's query is in flight too; alone it would not end.
    samples = time_queries([lambda: together.wait(60)] * 2, warmup_s=0, duration_s=0)
    assert len(samples.latencies_ms) == 40
    assert samples.warmup_queries == 20


@pytest.mark.parametrize("bad", [0, 1])
def test_a_query_that_fails_in_either_loop_is_reported_once_both_have_ended(bad: int) -> None:
    def good() -> None: ...

    def broken() -> None:
        raise ValueError("no memory")

    queries = [broken if index == bad else good for index in range(2)]
    with pytest.raises(BackendError, match="a query failed: no memory"):
        time_queries(queries, warmup_s=0, duration_s=0)


@pytest.mark.parametrize("load", ["single", "stream"])
def test_queries_in_flight_are_as_many_as_the_load_says(tmp_path: Path, load: Load) -> None:
    backend = OnnxRuntimeBackend()
    built = build(backend, models.convolution(tmp_path / "m.onnx"), tmp_path / "engine")
    samples = backend.measure(built, MeasureRequest(load=load, warmup_s=0, duration_s=0.05))
    in_flight = sum(samples.latencies_ms) / 1e3 / samples.wall_s
    assert in_flight <= {"single": 1.0001, "stream": 2.0001}[load]
    assert samples.warmup_queries >= MIN_WARMUP_QUERIES


def test_the_instruction_sets_of_the_cpu_are_told_in_one_order(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu avx2 avx avx_vnni\nmodel name : x\n")
    assert cpu_isa(tmp_path) == ["avx", "avx2", "avx_vnni"]
    (tmp_path / "proc/cpuinfo").write_text("Features\t: fp asimd asimddp i8mmm\n")
    assert cpu_isa(tmp_path) == ["asimd", "asimddp"]
    (tmp_path / "proc/cpuinfo").unlink()
    assert cpu_isa(tmp_path) == []
