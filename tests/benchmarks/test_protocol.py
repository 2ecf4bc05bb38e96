"""How ratios are taken, with made-up clocks: no test here looks at a real time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks import REGISTRY
from benchmarks.__main__ import main
from benchmarks.protocol import Duel, Side, Unequal, interleaved, result, table, timed
from benchmarks.trial_start import table as results_table
from benchmarks.trial_start import waits_ms

KEYS = {"id", "case", "reference", "ours", "ratio", "limit_share", "check", "load"}
DUEL = Duel(reference=12.0, ours=3.0, rounds=5, load=0.5)


def test_sides_take_turns_and_the_minimum_counts() -> None:
    turns: list[str] = []
    figures = {"reference": iter([9.0, 6.0, 7.0]), "ours": iter([4.0, 2.0, 3.0])}

    def side(name: str) -> Any:
        def measure() -> Side:
            turns.append(name)
            return Side(next(figures[name]), "same")

        return measure

    duel = interleaved(side("reference"), side("ours"), 3)
    assert turns == ["reference", "ours"] * 3
    assert (duel.reference, duel.ours, duel.rounds) == (6.0, 2.0, 3)


def test_unequal_answers_are_no_result() -> None:
    answers = iter([1, 1, 1, 2])

    def measure() -> Side:
        return Side(1.0, next(answers))

    with pytest.raises(Unequal, match="reference: 1; ours: 2"):
        interleaved(measure, measure, 5)


def test_near_is_enough_where_the_benchmark_says_so() -> None:
    answers: Iterator[float] = iter([1.0, 1.0001])

    def measure() -> Side:
        return Side(1.0, next(answers))

    interleaved(measure, measure, 1, same=lambda a, b: abs(a - b) < 1e-3)


def test_no_rounds_is_an_error() -> None:
    with pytest.raises(ValueError, match="rounds=0"):
        interleaved(lambda: Side(1.0, 1), lambda: Side(1.0, 1), 0)


def test_a_function_is_timed_on_the_clock_that_is_given() -> None:
    clock = iter([10.0, 12.5])
    side = timed(lambda: "answer", lambda: next(clock))
    assert (side.figure, side.answer) == (2.5, "answer")


def test_a_row_has_the_ratio_and_the_share_of_the_limit() -> None:
    row = result("R0", "case", DUEL, unit="ms", check="equal", limit=1.5)
    assert set(row) >= KEYS
    assert (row["ratio"], row["limit_share"]) == (4.0, 0.5)
    assert (row["load"], row["rounds"], row["unit"]) == (0.5, 5, "ms")
    assert row["versions"]["python"].count(".") == 2
    assert {"torchvision", "opencv-python-headless", "pillow"} <= set(row["versions"])
    assert "cores" in row["cpu"]
    assert json.loads(json.dumps(row)) == row
    assert result("R0", "case", DUEL, unit="ms", check="equal")["limit_share"] is None


def test_the_table_shows_reference_ours_ratio_and_share() -> None:
    text = table([result("R0", "case", DUEL, unit="ms", check="equal", limit=1.5)])
    assert [line.split() for line in text.splitlines()] == [
        ["id", "case", "reference", "ours", "ratio", "limit", "share", "load", "equal"],
        ["R0", "case", "12", "ms", "3", "ms", "4.00x", "50.0", "%", "0.5", "equal"],
    ]


def test_waits_are_between_the_end_of_one_and_the_start_of_the_next() -> None:
    # In order of start: waits of .5 s and .1 s.
    rows = [
        {"number": 2, "score": 0.3, "started": 4.0, "ended": 4.4},
        {"number": 0, "score": 0.1, "started": 1.0, "ended": 3.5},
        {"number": 1, "score": 0.2, "started": 4.5, "ended": 9.0},
    ]
    assert waits_ms(rows) == pytest.approx(300.0)
    assert list(results_table(rows).items()) == [(0, 0.1), (1, 0.2), (2, 0.3)]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """One benchmark that works and one that does not, in place of the real ones."""
    monkeypatch.setattr(
        benchmarks,
        "REGISTRY",
        {"R1": "tests.benchmarks.working", "R2": "tests.benchmarks.broken"},
    )
    monkeypatch.setattr("benchmarks.__main__.REGISTRY", benchmarks.REGISTRY)


@pytest.mark.usefixtures("registered")
def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    assert main(["R1", "--rounds", "2", "--json", str(file)]) == 0
    assert "R1" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())
    assert (row["id"], row["ratio"], row["rounds"]) == ("R1", 2.0, 2)


@pytest.mark.usefixtures("registered")
def test_what_a_later_benchmark_does_loses_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"

    def run(rounds: int) -> list[dict[str, Any]]:
        assert [row["id"] for row in json.loads(file.read_text())] == ["R1"]
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.benchmarks.broken.run", run)
    assert main(["R1", "R2", "--json", str(file)]) == 130
    said = capsys.readouterr()
    assert "made up" in said.out
    assert "R2: interrupted" in said.err
    assert len(json.loads(file.read_text())) == 1


@pytest.mark.usefixtures("registered")
def test_one_thread_is_set_whatever_the_shell_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    assert main(["R1", "--rounds", "2"]) == 0
    assert os.environ["OMP_NUM_THREADS"] == os.environ["RAYON_NUM_THREADS"] == "1"
    assert "OPENBLAS_CORETYPE" not in os.environ
    assert "--rounds 2: no figures to publish, 5 are" in capsys.readouterr().err
    assert main(["R1"]) == 0
    assert "--rounds" not in capsys.readouterr().err


def test_a_benchmark_is_no_file_for_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["R1", "--json", "R2"])
    assert "--json R2: that is a benchmark, and --json takes a file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["R1", "--json", str(tmp_path / "none" / "rows.json")])
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.usefixtures("registered")
def test_a_broken_benchmark_is_named_and_the_others_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["R2", "R1", "--rounds", "1", "--json", "-"]) == 1
    said = capsys.readouterr()
    assert [row["id"] for row in json.loads(said.out)] == ["R1"]
    assert "R2: Unequal: reference: 1; ours: 2" in said.err


def test_unknown_names_are_told_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["R99"])
    assert "no benchmark R99; there are R" in capsys.readouterr().err


def test_every_registered_benchmark_is_a_file() -> None:
    root = Path(benchmarks.__file__).parents[1]
    for module in REGISTRY.values():
        assert (root / f"{module.replace('.', '/')}.py").is_file()


def test_r9_writes_the_same_history_both_ways(mlflow_uri: str) -> None:
    from benchmarks.metric_logging import run

    rows = run(1, uri=mlflow_uri, steps=2)
    assert [", ".join(row["case"].split(", ")[:2]) for row in rows] == [
        "11 metrics of an epoch, all arrived",
        "11 metrics of an epoch, wait of the training",
        "55 metrics of a test, all arrived",
        "55 metrics of a test, wait of the training",
    ]
    assert all(set(row) >= KEYS and row["limit_share"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.alone
def test_r8_gives_the_same_table_both_ways() -> None:
    from benchmarks.trial_start import run

    (row,) = run(1, trials=3)
    assert set(row) >= KEYS
    assert row["ours"] > 0
