"""The agent's two rows: how they are computed, with made-up figures; and a daemon that idles."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks import agent_idle, agent_overhead
from benchmarks.protocol import Unequal


def made_up(
    monkeypatch: pytest.MonkeyPatch, bare: list[float], ours: list[float]
) -> list[tuple[str, float, float]]:
    """Put figures in place of both sides; returns who was measured how, in order."""
    turns: list[tuple[str, float, float]] = []
    for name, figures in (("_bare", iter(bare)), ("_agent", iter(ours))):

        def side(
            model: Path, warmup_s: float, duration_s: float, name: str = name, it: object = figures
        ) -> float:
            turns.append((name, warmup_s, duration_s))
            return next(it)  # type: ignore[call-overload, no-any-return]

        monkeypatch.setattr(agent_overhead, name, side)
    monkeypatch.setattr(agent_overhead, "_bare_sums", lambda model: {"y": 1.0})
    monkeypatch.setattr(agent_overhead, "_check_outputs", lambda model, expected: None)
    return turns


def test_pairs_are_interleaved_and_the_median_of_their_ratios_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The machine became twice as slow in between; within each pair both sides saw the same.
    turns = made_up(monkeypatch, [10.0, 20.0, 20.0], [10.2, 20.4, 30.0])
    row = agent_overhead.compare(tmp_path, 3, warmup_s=0.1, duration_s=0.2)
    assert [name for name, *_ in turns] == ["_bare", "_agent", "_agent", "_bare", "_bare", "_agent"]
    assert {(warmup, duration) for _, warmup, duration in turns} == {(0.1, 0.2)}
    assert row["excess"] == pytest.approx(0.02)
    assert (row["reference"], row["ours"]) == (20.0, 20.4)
    assert row["check"] == "same outputs; within 5%"


def test_an_agent_that_adds_more_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made_up(monkeypatch, [10.0, 10.0, 10.0], [10.6, 10.7, 10.0])
    row = agent_overhead.compare(tmp_path, 3)
    assert row["check"] == "same outputs; NOT within 5%"


def test_nine_pairs_are_the_least(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(agent_overhead, "export_model", lambda folder: folder)
    turns = made_up(monkeypatch, [1.0] * 9, [1.0] * 9)
    (row,) = agent_overhead.run(5)
    assert row["rounds"] == 9
    assert len(turns) == 18


@pytest.mark.slow
def test_both_sides_compute_the_same_and_another_answer_is_no_result(tmp_path: Path) -> None:
    model = agent_overhead.export_model(tmp_path, "resnet18", image_px=64)
    row = agent_overhead.compare(model, 1, warmup_s=0.0, duration_s=0.05)
    assert row["check"].startswith("same outputs")
    assert row["ours"] > 0
    sums = agent_overhead._bare_sums(model)
    name, value = next(iter(sums.items()))
    with pytest.raises(Unequal, match=f"sum of output {name}"):
        agent_overhead._check_outputs(model, {name: value + 1.0 + abs(value)})


def test_cpu_time_is_the_kernels(tmp_path: Path) -> None:
    before, own = agent_idle.cpu_s(os.getpid()), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    spent = agent_idle.cpu_s(os.getpid()) - before
    # Ticks of 10 ms; other threads of the tests count too.
    assert 0.15 < spent < 60


@pytest.mark.slow
def test_an_idle_daemon_is_measured_and_ended(mlflow_uri: str, tmp_path: Path) -> None:
    share = agent_idle.measure(mlflow_uri, tmp_path, 6.0, "--poll-s", "0.2")
    # A hundred and fifty times as busy as by default, and still no core.
    assert 0 < share < 1
