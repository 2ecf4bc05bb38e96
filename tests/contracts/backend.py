"""What every backend of the agent must do; inherit, and give a `backend` fixture."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from jetson_agent.backends.base import (
    MIN_TIMED_QUERIES,
    MIN_WARMUP_QUERIES,
    Backend,
    seeded_inputs,
)
from jetson_agent.errors import BackendError
from jetson_agent.protocol import LOADS, PRECISIONS, Load
from tests.agent import models


class BackendContract:
    """Contract tests of `jetson_agent.backends.base.Backend`."""

    def test_it_names_its_version_and_precisions(self, backend: Backend) -> None:
        probe = backend.probe()
        assert probe.available, probe.reason
        assert probe.runtime
        assert set(backend.precisions) <= set(PRECISIONS)
        assert "fp32" in backend.precisions

    def test_outputs_are_those_of_the_graph(self, backend: Backend, tmp_path: Path) -> None:
        engine = backend.build(models.doubling(tmp_path / "m.onnx"), "fp32", 1)
        with contextlib.closing(engine):
            assert [(i.name, i.shape, i.dtype) for i in engine.inputs] == [
                ("images", (1, 3, 8, 8), "float32")
            ]
            inputs = seeded_inputs(engine.inputs, seed=3)
            outputs = engine.run(inputs)
        assert set(outputs) == {"twice", "negative"}
        np.testing.assert_allclose(outputs["twice"], 2 * inputs["images"], rtol=1e-6)
        np.testing.assert_allclose(outputs["negative"], -inputs["images"], rtol=1e-6)

    @pytest.mark.parametrize("load", LOADS)
    def test_a_timing_has_a_latency_per_query(
        self, backend: Backend, tmp_path: Path, load: Load
    ) -> None:
        engine = backend.build(models.convolution(tmp_path / "m.onnx"), "fp32", 1)
        with contextlib.closing(engine):
            assert engine.build_s > 0
            samples = engine.measure(seeded_inputs(engine.inputs, 0), load, 0.01, 0.05)
        assert len(samples.latencies_ms) >= MIN_TIMED_QUERIES
        assert samples.warmup_queries >= MIN_WARMUP_QUERIES
        assert min(samples.latencies_ms) > 0
        assert samples.wall_s >= 0.05
        in_flight = sum(samples.latencies_ms) / 1e3 / samples.wall_s
        assert in_flight <= {"single": 1.0001, "stream": 2.0001}[load]

    def test_a_model_it_cannot_build_is_reported_with_its_reason(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        garbage = tmp_path / "garbage.onnx"
        garbage.write_bytes(b"this is no model")
        with pytest.raises(BackendError, match=r"garbage\.onnx"):
            backend.build(garbage, "fp32", 1)

    def test_a_file_of_another_kind_is_not_even_opened(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        with pytest.raises(BackendError, match=r"weights\.pt .*nothing else is loaded"):
            backend.build(tmp_path / "weights.pt", "fp32", 1)

    def test_a_shape_that_is_not_fixed_is_refused(self, backend: Backend, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match="batch"):
            backend.build(models.open_batch(tmp_path / "m.onnx"), "fp32", 1)

    def test_a_precision_it_does_not_have_is_refused(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        with pytest.raises(BackendError, match="precision='fp7'"):
            backend.build(models.doubling(tmp_path / "m.onnx"), "fp7", 1)
