"""Whole timings by TensorRT on a board that is not there: a fake trtexec and a tree of files.

The tree's own load figures stand still, so verdicts do not depend on the machine of the tests.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetson_agent.errors import BackendError
from jetson_agent.identity import identify
from jetson_agent.protocol import Checked, Load
from jetson_agent.steps import Engine, Steps
from jetson_agent.timing import Settings, Timing, time_file
from tests.agent import fake_board, models
from tests.agent.fake_runners import MODELS
from tests.agent.fake_trtexec import invocations, make_fake_trtexec, set_scenario

ROOT = Path(__file__).resolve().parents[2]
RIGHT = "tests.agent.fake_runners:RightTensorRT"
WRONG = "tests.agent.fake_runners:WrongTensorRT"


@dataclass
class Board:
    """A board, its trtexec and a model with reference outputs."""

    folder: Path
    files: fake_board.FakeBoard
    model: Path
    reference: Path
    said: list[str] = field(default_factory=list)

    def happen(self, **scenario: Any) -> None:
        set_scenario(self.folder / "bin", scenario)

    def time(
        self,
        *,
        precision: str = "fp32",
        load: Load = "single",
        backend: str = RIGHT,
        cache: bool = False,
        **changes: Any,
    ) -> Timing:
        settings = Settings(
            backend=backend,
            runtime="10.3.0",
            threads=None,
            warmup_s=0.1,
            duration_s=0.2,
            runs=1,
            repeats=0,
            build_deadline_s=120,
            run_deadline_s=120,
        )
        return time_file(
            *(self.model, precision, load, replace(settings, **changes)),
            *(identify("orin"), threading.Event()),
            reference=self.reference,
            say=self.said.append,
            cache=self.folder / "cache" if cache else None,
        )

    def calls(self, option: str) -> list[list[str]]:
        every = invocations(self.folder / "bin")
        return [call for call in every if any(flag.startswith(option) for flag in call)]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return make_board(tmp_path, monkeypatch, "agx-orin-64")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """One without sensors, for which nobody waits."""
    return make_board(tmp_path, monkeypatch, "x86")


def make_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: fake_board.Kind) -> Board:
    program = make_fake_trtexec(tmp_path / "bin", {"between": 0.0005})
    files = fake_board.build(tmp_path / "root", kind, power_w=20.0)
    model = models.doubling(tmp_path / "model.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    reference = tmp_path / "reference.npz"
    np.savez(
        reference,
        images=images,
        **{"model.onnx:twice": 2 * images, "model.onnx:negative": -images},
    )
    environment = {
        **files.environment,
        "JETSON_AGENT_TRTEXEC": str(program),
        MODELS: str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Board(folder=tmp_path, files=files, model=model, reference=reference)


def test_a_quiet_board_gives_a_valid_figure_with_its_certificate(board: Board) -> None:
    timing = board.time()
    assert (timing.verdict, timing.reasons, timing.checked) == ("valid", [], "right")
    m = timing.metrics
    assert m["n"] == 200
    assert m["latency_ms/p50"] == pytest.approx(2.04, rel=0.01)
    assert m["gpu_compute_ms/p50"] < m["latency_ms/p50"]
    assert m["latency_ms/p90"] <= m["latency_ms/p95"] <= m["latency_ms/p99"]
    assert m["enqueue_ms/p50"] == pytest.approx(0.4, rel=0.01)
    assert m["build_s"] == 10.7204
    # The engine's file, and what the tool's log says of its context.
    assert m["engine_mib"] == timing.certificate["options"]["engine_mib"]
    assert m["context_mib"] == 7.84766
    # 20 W for the time of one query, whatever the tree's clock says.
    assert m["power_w/mean"] == pytest.approx(20.0, rel=0.01)
    assert m["energy_mj"] == pytest.approx(20.0 / m["throughput_qps"] * 1000, rel=0.01)
    found = timing.certificate
    assert found["mode"] == "MAXN-pinned"
    assert found["device"]["l4t"] == "36.4.4"
    assert found["options"]["version"] == "10.3.0"
    assert "--noTF32" in found["options"]["command"]
    assert "--exposeDMA" in found["runs"][0]["options"]["command"]
    assert found["check"]["details"]["outputs"]["twice"]["cosine"] == pytest.approx(1.0)
    assert found["outputs"]["twice"] == "float32[1, 3, 8, 8]"
    assert found["conditions"]["preflight"]["ready"] is True


def test_an_engine_that_computes_something_else_is_wrong_and_is_not_timed(machine: Board) -> None:
    timing = machine.time(backend=WRONG)
    assert (timing.verdict, timing.checked, timing.metrics) == ("wrong", "wrong", {})
    assert any("output twice" in reason for reason in timing.reasons)
    assert machine.calls("--loadEngine") == []


def test_without_a_runner_the_figure_is_unchecked_and_says_why(machine: Board) -> None:
    timing = machine.time(backend="tensorrt")
    assert timing.verdict == "valid"
    assert timing.checked == "unchecked"
    [reason] = timing.certificate["check"]["reasons"]
    assert "tensorrt is not installed" in reason


def test_a_runner_that_takes_its_process_down_leaves_the_figure_unchecked(machine: Board) -> None:
    timing = machine.time(backend="tests.agent.fake_runners:CrashingTensorRT")
    assert (timing.verdict, timing.checked) == ("valid", "unchecked")
    [reason] = timing.certificate["check"]["reasons"]
    assert "SIGSEGV: numpy.core.multiarray failed to import" in reason


def test_made_up_ranges_are_never_right_and_their_outputs_are_not_looked_at(machine: Board) -> None:
    timing = machine.time(precision="int8-unscaled", backend=WRONG)
    assert timing.verdict == "valid"
    assert timing.checked == "unchecked"
    assert "ranges are made up" in timing.certificate["check"]["reasons"][0]
    assert "--int8" in machine.calls("--onnx")[0]


def test_several_builds_are_independent_and_timed_in_turn(machine: Board) -> None:
    timing = machine.time(builds=2, runs=2)
    first, second = machine.calls("--onnx")
    # With the first one's measurements the second build would be a copy of it.
    assert any(flag.startswith("--timingCacheFile=") for flag in first)
    assert not any(flag.startswith("--timingCacheFile=") for flag in second)
    found = timing.certificate
    assert [run["build"] for run in found["runs"]] == [0, 1, 0, 1]
    p50 = [run["p50_ms"] for run in found["runs"]]
    middle = (sorted(p50)[1] + sorted(p50)[2]) / 2
    assert timing.metrics["latency_ms/p50"] == pytest.approx(middle)
    assert timing.metrics["n"] == sum(run["queries"] for run in found["runs"]) == 800
    assert 0 <= timing.metrics["spread_within"] < 0.02
    assert 0 <= timing.metrics["spread_between"] < 0.02
    assert found["counts"]["builds"] == 2
    assert len(found["builds"]) == 2


def test_a_suspect_figure_is_measured_again_on_the_same_engine(machine: Board) -> None:
    machine.happen(scenario="unstable")
    timing = machine.time(repeats=2)
    assert timing.verdict == "suspect"
    assert any("GPU times vary by" in reason for reason in timing.reasons)
    assert len(timing.certificate["attempts"]) == 3
    assert len(machine.calls("--onnx")) == 1
    assert len(machine.calls("--loadEngine")) == 3
    assert timing.metrics["latency_ms/p50"] > 0


def test_an_unpinned_clock_makes_a_figure_suspect(board: Board) -> None:
    board.files.pin(False)
    timing = board.time()
    assert timing.verdict == "suspect"
    assert "jetson_clocks" in timing.reasons[0]
    assert timing.certificate["mode"] == "MAXN-floating"


@pytest.mark.slow
def test_kept_engines_are_built_once_for_all_loads(machine: Board) -> None:
    first = machine.time(cache=True)
    second = machine.time(cache=True, load="stream")
    assert len(machine.calls("--onnx")) == 1
    assert [t.certificate["builds"][0]["cached"] for t in (first, second)] == [False, True]
    assert second.metrics["build_s"] == 10.7204
    # Another precision, workspace or version is another engine.
    machine.time(cache=True, precision="fp16")
    machine.time(cache=True, workspace_mib=1024)
    machine.time(cache=True, runtime="10.3.0+l4t36.5.0")
    assert len(machine.calls("--onnx")) == 4


def test_a_kept_engine_that_was_cut_short_is_built_again(machine: Board) -> None:
    machine.time(cache=True)
    [engine] = (machine.folder / "cache").rglob("engine.plan")
    engine.write_bytes(engine.read_bytes()[:10])
    assert machine.time(cache=True).verdict == "valid"
    assert len(machine.calls("--onnx")) == 2


def test_a_kept_engine_that_does_not_fit_any_more_is_built_again_and_checked(
    machine: Board,
) -> None:
    machine.time(cache=True)
    (machine.folder / "bin" / "invocations.jsonl").unlink()
    machine.happen(scenario="engine_mismatch_once")
    timing = machine.time(cache=True)
    assert timing.verdict == "valid"
    assert len(machine.calls("--onnx")) == 1
    assert timing.certificate["builds"][0]["cached"] is False
    assert timing.checked == "right"


@pytest.mark.parametrize("outcome", ["right", "wrong"])
def test_the_check_of_an_engine_that_replaced_a_kept_one_decides(
    machine: Board, monkeypatch: pytest.MonkeyPatch, outcome: Checked
) -> None:
    machine.time(cache=True)
    (machine.folder / "bin" / "invocations.jsonl").unlink()
    machine.happen(scenario="engine_mismatch_once")
    real = Steps.check

    def check(steps: Steps, engine: Engine, reference: Path | None) -> Any:
        if engine.cached:
            raise BackendError("it cannot be deserialised", kind="engine-mismatch")
        found, outputs = real(steps, engine, reference)
        return replace(found, checked=outcome, reasons=["As it is."]), outputs

    monkeypatch.setattr(Steps, "check", check)
    timing = machine.time(cache=True)
    assert timing.checked == timing.certificate["check"]["checked"] == outcome
    assert timing.verdict == ("valid" if outcome == "right" else "wrong")
    assert bool(timing.metrics) == (outcome == "right")


@pytest.mark.parametrize(
    ("scenario", "verdict", "kind"),
    [
        ({"scenario": "int8_kernel"}, "unsupported", "int8-kernel"),
        ({"scenario": "parse_error"}, "unsupported", "unsupported"),
        ({"scenario": "crash", "at": "run"}, "failed", "crash"),
        ({"scenario": "engine_mismatch_once"}, "failed", "engine-mismatch"),
    ],
)
def test_a_failure_has_its_kind_for_whoever_tries_again(
    machine: Board, scenario: dict[str, Any], verdict: str, kind: str
) -> None:
    machine.happen(**scenario)
    timing = machine.time()
    assert (timing.verdict, timing.metrics) == (verdict, {})
    assert timing.failure is not None
    assert timing.failure.kind == kind
    assert timing.failure.lines
    assert timing.certificate["failure"]["kind"] == kind
    if kind == "int8-kernel":
        assert timing.failure.node.startswith("/features.7/Conv")
        assert timing.failure.node in timing.reasons[0]


def gone(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    import time

    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def test_a_trtexec_that_ignores_sigterm_and_what_it_started_are_gone_afterwards(
    machine: Board,
) -> None:
    import json

    machine.happen(scenario="ignore_sigterm", at="run")
    # Without a check, for which a busy machine may need that long.
    timing = machine.time(precision="int8-unscaled", run_deadline_s=10)
    assert timing.failure is not None
    assert timing.failure.kind == "timeout"
    pids = json.loads((machine.folder / "bin" / "pids.json").read_text())
    wait_until(lambda: all(gone(pid) for pid in pids))
