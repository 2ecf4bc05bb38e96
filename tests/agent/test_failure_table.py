"""Each row of the table of failures, with a trtexec that has that mishap."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jetson_agent.failures import ACTIONS
from jetson_agent.protocol import BenchResult
from jetson_agent.settings import Settings
from jetson_agent.timing import time_file
from tests.agent import models
from tests.agent.fake_trtexec import invocations, make_fake_trtexec, set_scenario
from tests.agent.pretending import Pretence, bench_of

SETTINGS = Settings(
    backend="tensorrt",
    runtime="10.3.0",
    threads=None,
    warmup_s=0.0,
    duration_s=0.05,
    runs=2,
    builds=1,
    repeats=3,
    preflight_s=0.0,
)
FIGURE = ("valid", "suspect")


class Board:
    """An agent whose trtexec has the mishap of a scenario."""

    def __init__(self, tmp_path: Path, scenario: dict[str, Any]) -> None:
        self.folder = tmp_path / "tensorrt"
        os.environ["JETSON_AGENT_TRTEXEC"] = str(make_fake_trtexec(self.folder, scenario))
        self.pretence = Pretence(tmp_path)
        self.pretence.agent.workbench.time_model = time_file
        self.model = models.convolution(tmp_path / "files" / "model.onnx")
        self.deadlines()

    def deadlines(self, **seconds: float) -> None:
        settings = replace(SETTINGS, **seconds)
        can = ["fp32", "tf32", "int8-unscaled"]
        self.pretence.bench = bench_of(settings=settings, can=can)

    def time(self, precision: str = "fp32") -> BenchResult:
        asked = {"sharedenc.precisions": json.dumps([precision])}
        self.pretence.shelf.add(self.model, "A", **asked)
        self.pretence.agent.once()
        [result] = self.pretence.results
        return result

    @property
    def builds(self) -> list[list[str]]:
        return [call for call in invocations(self.folder) if _has(call, "--onnx=")]

    @property
    def runs(self) -> list[list[str]]:
        return [call for call in invocations(self.folder) if _has(call, "--exportTimes=")]

    @property
    def retried(self) -> int:
        return self.pretence.agent.summary.retried


def _has(call: list[str], start: str) -> bool:
    return any(argument.startswith(start) for argument in call)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Board]:
    # What is set by `Board` is taken back by this.
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", "")
    return lambda **scenario: Board(tmp_path, scenario)


def test_a_model_that_works_has_a_figure_at_the_first_try(board: Callable[..., Board]) -> None:
    b = board()
    result = b.time()
    assert result.verdict in FIGURE
    # What the fake makes up; the copies take another 0.04 ms.
    assert result.metrics["gpu_compute_ms/p50"] == pytest.approx(2.0, rel=0.05)
    assert (len(b.builds), b.retried) == (1, 0)


def test_what_cannot_be_parsed_is_unsupported_for_good(board: Callable[..., Board]) -> None:
    b = board(scenario="parse_error")
    result = b.time()
    assert result.verdict == "unsupported"
    assert result.metrics == {}
    assert len(b.builds) == 1
    assert b.pretence.start().once().timed == []


def test_a_kernel_that_int8_lacks_is_unsupported_and_the_node_is_named(
    board: Callable[..., Board],
) -> None:
    b = board(scenario="int8_kernel")
    result = b.time("int8-unscaled")
    assert result.verdict == "unsupported"
    node = result.certificate["failure"]["node"]
    assert node
    assert node in " ".join(result.reasons)
    assert len(b.builds) == 1


def test_without_memory_it_is_tried_again_with_half_the_workspace(
    board: Callable[..., Board],
) -> None:
    b = board(scenario="memory_once")
    result = b.time()
    assert result.verdict in FIGURE
    assert [_has(call, "--memPoolSize=workspace:4096") for call in b.builds] == [True, False]
    assert _has(b.builds[1], "--memPoolSize=workspace:2048")
    assert result.certificate["workspace_mib"] == 2048
    assert result.certificate["failed_tries"] == ["memory"]
    # It is the same timing: who plans the next pass finds it done.
    assert b.pretence.start().once().timed == []


@pytest.mark.slow
@pytest.mark.parametrize("lie", ["exit_0_without_passed", "exit_1_with_passed"])
def test_an_exit_code_that_lies_gives_no_figure(board: Callable[..., Board], lie: str) -> None:
    b = board(scenario="lies", lie=lie)
    result = b.time()
    assert (result.verdict, result.metrics) == ("failed", {})
    assert len(b.builds) == 3


@pytest.mark.slow
def test_a_crash_is_tried_three_times_and_the_signal_is_told(board: Callable[..., Board]) -> None:
    b = board(scenario="crash")
    result = b.time()
    assert result.verdict == "failed"
    assert len(b.builds) == ACTIONS["crash"].attempts == 3
    assert "SIGSEGV" in " ".join(result.reasons)
    assert result.certificate["failed_tries"] == ["crash"] * 3


def test_after_a_crash_that_does_not_come_again_there_is_a_figure(
    board: Callable[..., Board],
) -> None:
    b = board(scenario="crash", times=1)
    assert b.time().verdict in FIGURE
    assert b.retried == 1


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["hang", "ignore_sigterm"])
def test_what_hangs_is_ended_with_all_that_it_started(
    board: Callable[..., Board], scenario: str
) -> None:
    b = board(scenario=scenario)
    b.deadlines(build_deadline_s=6.0)
    result = b.time()
    assert result.verdict == "failed"
    assert result.certificate["failed_tries"] == ["timeout"] * 3
    pids = json.loads((b.folder / "pids.json").read_text())
    assert not [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_on_a_full_disk_the_caches_are_emptied_before_the_second_try(
    board: Callable[..., Board],
) -> None:
    b = board(scenario="disk_full", times=1)
    artifacts = b.pretence.agent.workbench.artifacts
    old = artifacts.folder / ("ab" * 32) / "model.onnx"
    old.parent.mkdir()
    old.write_bytes(b"of another job")
    assert b.time().verdict in FIGURE
    assert (b.retried, len(b.builds)) == (1, 2)
    assert not old.exists()


def test_a_disk_that_stays_full_is_a_failure(board: Callable[..., Board]) -> None:
    b = board(scenario="disk_full")
    result = b.time()
    assert (result.verdict, len(b.builds)) == ("failed", 2)


def test_an_engine_of_another_runtime_is_built_again(board: Callable[..., Board]) -> None:
    b = board(scenario="engine_mismatch_once")
    assert b.time().verdict in FIGURE
    assert len(b.builds) == 2


def test_figures_that_jump_are_suspect_after_three_repeats(board: Callable[..., Board]) -> None:
    b = board(scenario="unstable")
    result = b.time()
    assert result.verdict == "suspect"
    assert len(result.certificate["attempts"]) == 1 + SETTINGS.repeats
    assert len(b.runs) == SETTINGS.runs * (1 + SETTINGS.repeats)
    # The same engines: to build anew would hide it.
    assert len(b.builds) == 1


def test_a_failure_is_not_repeated_unless_it_is_asked_for(board: Callable[..., Board]) -> None:
    b = board(scenario="parse_error")
    assert b.time().verdict == "unsupported"
    set_scenario(b.folder, {})
    assert b.pretence.start().once().timed == []
    agent = b.pretence.start()
    agent.workbench.time_model = time_file
    agent.retry = ["unsupported"]
    agent.once()
    assert [r.verdict in FIGURE for r in b.pretence.results] == [True]
