"""What every backend of the agent must do; inherit, and give a `backend` fixture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jetson_agent.backends.base import (
    MIN_TIMED_QUERIES,
    Backend,
    BuildRequest,
    Built,
    MeasureRequest,
    Samples,
    opened,
    seeded_inputs,
)
from jetson_agent.errors import BackendError
from jetson_agent.protocol import INT8_RECIPES, LOADS, PRECISIONS, Load
from tests.agent import models


def build(backend: Backend, model: Path, folder: Path, precision: str = "fp32") -> Built:
    """Build, and take the answer across a process border."""
    folder.mkdir(exist_ok=True)
    built = backend.build(
        BuildRequest(model=model, precision=precision, folder=folder, threads=1, deadline_s=120)
    )
    again = Built.from_json(json.loads(json.dumps(built.to_json())))
    assert again == built
    return again


class BackendContract:
    """Contract tests of `jetson_agent.backends.base.Backend`."""

    def test_it_names_its_version_precisions_and_loads(self, backend: Backend) -> None:
        probe = backend.probe()
        assert probe.available, probe.reason
        assert probe.runtime
        assert probe.runs or probe.why_unchecked
        assert set(backend.precisions) <= set(PRECISIONS)
        assert "fp32" in backend.precisions
        assert set(backend.loads) <= set(LOADS)
        assert backend.int8_recipe in INT8_RECIPES

    def test_outputs_are_those_of_the_graph(self, backend: Backend, tmp_path: Path) -> None:
        built = build(backend, models.doubling(tmp_path / "m.onnx"), tmp_path / "engine")
        assert [(i.name, i.shape, i.dtype) for i in built.inputs] == [
            ("images", (1, 3, 8, 8), "float32")
        ]
        assert built.outputs == ("twice", "negative")
        inputs = seeded_inputs(built.inputs, seed=3)
        outputs = backend.run(built, inputs)
        assert set(outputs) == {"twice", "negative"}
        np.testing.assert_allclose(outputs["twice"], 2 * inputs["images"], rtol=1e-6)
        np.testing.assert_allclose(outputs["negative"], -inputs["images"], rtol=1e-6)

    def test_an_engine_that_stays_open_gives_the_outputs_of_each_input(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        built = build(backend, models.doubling(tmp_path / "m.onnx"), tmp_path / "engine")
        inputs = [seeded_inputs(built.inputs, seed) for seed in (3, 4)]
        with opened(backend, built) as run:
            outputs = [run(one) for one in inputs]
        # The first one's too: the second must not have been written over them.
        for one, found in zip(inputs, outputs, strict=True):
            np.testing.assert_allclose(found["twice"], 2 * one["images"], rtol=1e-6)

    @pytest.mark.parametrize("load", LOADS)
    def test_a_timing_has_a_latency_per_query(
        self, backend: Backend, tmp_path: Path, load: Load
    ) -> None:
        built = build(backend, models.convolution(tmp_path / "m.onnx"), tmp_path / "engine")
        assert built.build_s > 0
        assert built.engine.is_file()
        samples = backend.measure(built, MeasureRequest(load=load, warmup_s=0.01, duration_s=0.05))
        assert Samples.from_json(json.loads(json.dumps(samples.to_json()))) == samples
        assert len(samples.latencies_ms) >= MIN_TIMED_QUERIES
        assert samples.warmup_queries > 0
        assert min(samples.latencies_ms) > 0
        assert samples.wall_s >= 0.05
        assert samples.throughput_qps * samples.wall_s == pytest.approx(
            len(samples.latencies_ms), rel=1e-3
        )
        assert all(len(part) == len(samples.latencies_ms) for part in samples.parts.values())

    def test_a_model_it_cannot_build_is_reported_with_its_reason(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        garbage = tmp_path / "garbage.onnx"
        garbage.write_bytes(b"this is no model")
        with pytest.raises(BackendError, match=r"garbage\.onnx"):
            build(backend, garbage, tmp_path / "engine")

    def test_a_file_of_another_kind_is_not_even_opened(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        with pytest.raises(BackendError, match=r"weights\.pt .*nothing else is loaded"):
            build(backend, tmp_path / "weights.pt", tmp_path / "engine")

    def test_a_shape_that_is_not_fixed_is_refused(self, backend: Backend, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match="batch"):
            build(backend, models.open_batch(tmp_path / "m.onnx"), tmp_path / "engine")

    def test_a_precision_it_does_not_have_is_refused(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        model = models.doubling(tmp_path / "m.onnx")
        with pytest.raises(BackendError, match="precision='fp7'"):
            build(backend, model, tmp_path / "engine", precision="fp7")
