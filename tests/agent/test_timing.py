"""Timings in real child processes, with files that are good, wrong, endless or no models at all."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from jetson_agent.backends.onnxruntime import OnnxRuntimeBackend
from jetson_agent.identity import identify
from jetson_agent.timing import Settings, Stopped, Timing, time_file
from tests.agent import models

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(
    backend="onnxruntime",
    runtime=OnnxRuntimeBackend().probe().runtime,
    threads=1,
    warmup_s=0.01,
    duration_s=0.05,
    deadline_s=120,
)


def time_it(model: Path, settings: Settings = SETTINGS) -> Timing:
    return time_file(model, "fp32", "single", settings, identify("bench"), threading.Event())


def test_a_timing_says_what_it_timed_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    model = models.convolution(tmp_path / "my model.onnx")
    timing = time_it(model)
    assert timing.verdict in ("valid", "suspect")
    assert (timing.verdict == "suspect") == bool(timing.reasons)
    m = timing.metrics
    order = [m[f"latency_ms/{name}"] for name in ("min", "p50", "p90", "p99", "max")]
    assert 0 < order[0] <= order[1] <= order[2] <= order[3] <= order[4]
    assert m["build_s"] > 0
    assert m["n"] >= 20
    found = timing.certificate
    assert found["file"] == {
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "bytes": model.stat().st_size,
        "name": "my model.onnx",
    }
    assert found["counts"]["timed"] == m["n"]
    assert found["timed_s"] >= 0.05
    assert found["threads"] == found["options"]["intra_op_threads"] == 1
    assert found["options"]["io_binding"] is True
    assert found["runtime"] == SETTINGS.runtime
    assert found["inputs"] == {"images": "float32[1, 3, 8, 8]"}
    assert found["outputs"] == {"y": "float32[1, 4, 8, 8]"}
    assert set(found["conditions"]["load_average"]) == {"start", "end"}
    assert found["device"]["name"] == "bench"
    assert "'my model.onnx' --backend onnxruntime --precision fp32" in found["command"]
    assert "geheim" not in str(found)


def test_outputs_that_are_not_finite_are_wrong_and_have_no_figure(tmp_path: Path) -> None:
    timing = time_it(models.not_a_number(tmp_path / "m.onnx"))
    assert timing.verdict == "wrong"
    assert timing.metrics == {}
    assert "Output y has" in timing.reasons[0]
    assert "of 192 values that are not finite" in timing.reasons[0]


def test_a_file_that_is_no_model_fails_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x80\x04pickle?")
    timing = time_it(tmp_path / "m.onnx")
    assert timing.verdict == "failed"
    assert "cannot load m.onnx" in timing.reasons[0]


def test_native_code_that_hangs_is_given_up_after_the_deadline(tmp_path: Path) -> None:
    timing = time_it(models.endless(tmp_path / "m.onnx"), replace(SETTINGS, deadline_s=2))
    assert timing.verdict == "failed"
    assert timing.reasons == ["It did not end within the deadline of 2 s."]


def test_a_crash_is_a_result_with_the_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    settings = replace(SETTINGS, backend="tests.agent.crashing:CrashingBackend")
    timing = time_it(models.convolution(tmp_path / "m.onnx"), settings)
    assert timing.verdict == "failed"
    assert timing.reasons == ["The process that timed it was ended by SIGKILL: about to crash"]
    assert timing.certificate["log_tail"] == "about to crash"


def test_a_stop_gives_no_result(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    model = models.endless(tmp_path / "m.onnx")
    with pytest.raises(Stopped):
        time_file(model, "fp32", "single", SETTINGS, identify("bench"), stopping)
