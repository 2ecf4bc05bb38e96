"""Timings in real child processes, with files that are good, wrong, endless or no models at all."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from jetson_agent.backends.onnxruntime import OnnxRuntimeBackend
from jetson_agent.identity import identify
from jetson_agent.settings import default_settings
from jetson_agent.steps import merge_conditions
from jetson_agent.timing import Settings, Stopped, Timing, time_file
from tests.agent import models

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(
    backend="onnxruntime",
    runtime=OnnxRuntimeBackend().probe().runtime,
    threads=1,
    warmup_s=0.01,
    duration_s=0.05,
    runs=1,
    repeats=0,
    build_deadline_s=120,
    run_deadline_s=120,
)


def time_it(
    model: Path, settings: Settings = SETTINGS, precision: str = "fp32", **options: Any
) -> Timing:
    return time_file(
        model, precision, "single", settings, identify("bench"), threading.Event(), **options
    )


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends of the tests can be imported by a child."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def test_a_timing_says_what_it_timed_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    model = models.convolution(tmp_path / "my model.onnx")
    states: list[str] = []
    timing = time_it(model, replace(SETTINGS, runs=2), note=states.append)
    assert states == ["PREFLIGHT", "BUILT"]
    assert timing.verdict in ("valid", "suspect")
    assert (timing.verdict == "suspect") == bool(timing.reasons)
    assert timing.checked == "unchecked"
    assert timing.failure is None
    m = timing.metrics
    order = [m[f"latency_ms/{name}"] for name in ("min", "p50", "max")]
    assert 0 < order[0] <= order[1] <= order[2]
    assert m["build_s"] > 0
    assert m["n"] >= 40
    assert m["spread_within"] >= 0
    assert "spread_between" not in m
    found = timing.certificate
    assert found["file"] == {
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "bytes": model.stat().st_size,
        "name": "my model.onnx",
    }
    assert found["counts"]["timed"] == m["n"]
    assert (found["counts"]["runs"], found["counts"]["builds"]) == (2, 1)
    assert [run["build"] for run in found["runs"]] == [0, 0]
    assert found["timed_s"] >= 0.1
    assert found["threads"] == found["options"]["intra_op_threads"] == 1
    assert found["options"]["io_binding"] is True
    assert found["runtime"] == SETTINGS.runtime
    assert found["inputs"] == {"images": "float32[1, 3, 8, 8]"}
    assert found["outputs"] == {"y": "float32[1, 4, 8, 8]"}
    assert set(found["conditions"]["load_average"]) == {"start", "end"}
    assert found["conditions"]["preflight"]["waited_s"] >= 0
    assert found["check"]["reasons"] == ["the export carries no reference outputs"]
    assert found["device"]["name"] == "bench"
    assert "'my model.onnx' --backend onnxruntime --precision fp32" in found["command"]
    assert "geheim" not in str(found)


def test_outputs_are_compared_with_the_reference_of_that_very_file(tmp_path: Path) -> None:
    model = models.doubling(tmp_path / "model.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    for sign, checked in ((-1, "right"), (1, "wrong")):
        np.savez(
            tmp_path / "reference.npz",
            images=images,
            **{"model.onnx:twice": 2 * images, "model.onnx:negative": sign * images},
        )
        timing = time_it(model, reference=tmp_path / "reference.npz")
        assert timing.checked == checked
        assert timing.certificate["check"]["checked"] == checked
    assert timing.verdict == "wrong"
    assert timing.metrics == {}
    assert "negative" in timing.reasons[0]


def test_outputs_that_are_not_finite_are_wrong_and_have_no_figure(tmp_path: Path) -> None:
    timing = time_it(models.not_a_number(tmp_path / "m.onnx"))
    assert timing.verdict == timing.checked == "wrong"
    assert timing.metrics == {}
    assert "Output y has" in timing.reasons[0]
    assert "of 192 values that are not finite" in timing.reasons[0]


def test_a_file_that_is_no_model_fails_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x80\x04pickle?")
    timing = time_it(tmp_path / "m.onnx")
    assert timing.verdict == "failed"
    assert timing.failure is not None
    assert timing.failure.kind == "usage"
    assert "m.onnx is not an ONNX file" in timing.reasons[0]


def test_a_float_file_is_not_timed_as_int8(tmp_path: Path) -> None:
    model = onnx.load(models.convolution(tmp_path / "m.onnx"))
    model.opset_import[0].version = 13
    onnx.save(model, tmp_path / "m.onnx")
    timing = time_it(tmp_path / "m.onnx", precision="int8")
    assert timing.verdict == "failed"
    assert "m.onnx has no QuantizeLinear" in timing.reasons[0]


def test_native_code_that_hangs_is_given_up_after_the_deadline(tmp_path: Path) -> None:
    timing = time_it(models.endless(tmp_path / "m.onnx"), replace(SETTINGS, run_deadline_s=2))
    assert timing.verdict == "failed"
    assert timing.failure is not None
    assert timing.failure.kind == "timeout"
    assert timing.reasons == ["It did not end within the deadline of 2 s."]


@pytest.mark.usefixtures("importable")
def test_a_crash_is_a_result_with_the_last_words(tmp_path: Path) -> None:
    settings = replace(SETTINGS, backend="tests.agent.crashing:CrashingBackend")
    timing = time_it(models.convolution(tmp_path / "m.onnx"), settings)
    assert timing.verdict == "failed"
    assert timing.failure is not None
    assert timing.failure.kind == "crash"
    assert timing.reasons == ["The process that worked on it was ended by SIGSEGV: about to crash"]
    assert timing.certificate["log_tail"] == "about to crash"


def test_a_stop_gives_no_result(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    model = models.endless(tmp_path / "m.onnx")
    with pytest.raises(Stopped):
        time_file(model, "fp32", "single", SETTINGS, identify("bench"), stopping)


def test_settings_that_decide_a_figure_are_in_its_key_and_those_of_a_retry_are_not() -> None:
    text = SETTINGS.text
    assert text == "warmup=0.01s duration=0.05s runs=1 builds=1"
    for same in ({"workspace_mib": 2048}, {"run_deadline_s": 1.0}, {"repeats": 2}):
        assert replace(SETTINGS, **same).text == text  # type: ignore[arg-type]
    for other in ({"runs": 2}, {"builds": 2}, {"cuda_graph": True}, {"warmup_s": 1.0}, {"seed": 1}):
        assert replace(SETTINGS, **other).text != text  # type: ignore[arg-type]


def test_each_backend_has_its_own_defaults_and_what_is_given_counts() -> None:
    board = default_settings("tensorrt", "10.3.0", 8, duration_s=None, runs=5)
    assert (board.threads, board.warmup_s, board.duration_s) == (None, 2.0, 10.0)
    assert (board.runs, board.builds) == (5, 2)
    cpu = default_settings("onnxruntime", "1.23.2", 8)
    assert (cpu.threads, cpu.warmup_s, cpu.duration_s, cpu.runs, cpu.builds) == (8, 1.0, 3.0, 3, 1)


def test_conditions_of_several_runs_are_told_as_of_one() -> None:
    first = {
        "window_s": 4.0,
        "others_cpu_share": 0.1,
        "power_w": {"mean": 30.0, "peak": 40.0, "idle": 9.0},
        "energy_j": 90.0,
        "temperatures_c": {"start": {"gpu": 40.0}, "end": {"gpu": 50.0}, "max": {"gpu": 50.0}},
        "throttle": {"events": ["a"], "counters": {"x": 1}},
        "clocks_mhz": {"gpu": {"start": 1300, "end": 1300, "min": 1290, "max": 1300}},
        "gpu_load_others": None,
    }
    second = {
        "window_s": 6.0,
        "others_cpu_share": 0.3,
        "power_w": {"mean": 34.0, "peak": 38.0, "idle": 10.0},
        "energy_j": 110.0,
        "temperatures_c": {"start": {"gpu": 48.0}, "end": {"gpu": 60.0}, "max": {"gpu": 61.0}},
        "throttle": {"events": ["a", "b"], "counters": {"x": 2}},
        "clocks_mhz": {"gpu": {"start": 1300, "end": 1200, "min": 1200, "max": 1301}},
        "gpu_load_others": None,
    }
    assert merge_conditions([first, second]) == {
        "window_s": 10.0,
        "others_cpu_share": 0.2,
        "power_w": {"mean": 32.0, "peak": 40.0, "idle": 9.0},
        "energy_j": 200.0,
        "temperatures_c": {"start": {"gpu": 40.0}, "end": {"gpu": 60.0}, "max": {"gpu": 61.0}},
        "throttle": {"events": ["a", "b"], "counters": {"x": 2}},
        "clocks_mhz": {"gpu": {"start": 1300, "end": 1200, "min": 1200, "max": 1301}},
        "gpu_load_others": None,
    }
