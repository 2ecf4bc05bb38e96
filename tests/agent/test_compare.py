"""One shared network against two separate ones."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from jetson_agent.cli import cli
from jetson_agent.compare import compare_files
from jetson_agent.identity import identify
from jetson_agent.jobs import comparison_architecture
from jetson_agent.timing import Settings
from tests.agent import fake_board, models
from tests.agent.exported import export
from tests.agent.fake_trtexec import invocations, make_fake_trtexec, set_scenario

SETTINGS = Settings(
    backend="tensorrt",
    runtime="10.3.0",
    threads=None,
    warmup_s=0.1,
    duration_s=0.2,
    build_deadline_s=120,
    run_deadline_s=120,
)


@pytest.fixture
def trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = make_fake_trtexec(tmp_path / "bin", {"between": 0.0005})
    fake_board.build(tmp_path / "root", "x86")
    monkeypatch.setenv("JETSON_AGENT_SYSROOT", str(tmp_path / "root"))
    monkeypatch.setenv("JETSON_AGENT_LOCK", str(tmp_path / "lock"))
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(program))
    return program


def test_every_round_times_all_three_in_an_order_that_moves_on(
    tmp_path: Path, trtexec: Path
) -> None:
    files = [models.convolution(tmp_path / f"{i}.onnx", seed=i) for i in range(3)]
    states: list[str] = []
    timing = compare_files(
        *(files, "fp32", "single", SETTINGS, identify("orin"), threading.Event()),
        note=states.append,
        rounds=3,
    )
    assert states == ["PREFLIGHT", "BUILT"]
    assert (timing.verdict, timing.reasons, timing.failure) == ("valid", [], None)
    found = timing.certificate
    assert [row["order"] for row in found["rounds"]] == [
        ["seg", "det", "dual"],
        ["det", "dual", "seg"],
        ["dual", "seg", "det"],
    ]
    m = timing.metrics
    ratios = sorted(row["dual_ms"] / (row["seg_ms"] + row["det_ms"]) for row in found["rounds"])
    assert [m["ratio/min"], m["ratio/p50"], m["ratio/max"]] == pytest.approx(ratios)
    assert m["ratio/p50"] == pytest.approx(0.5, rel=0.01)  # all three take 2 ms here
    assert m["pair_ms/p50"] == pytest.approx(4.08, rel=0.01)
    assert m["dual_ms/p50"] == m["latency_ms/p50"] == pytest.approx(2.04, rel=0.01)
    assert m["n"] == 3 * 200
    names = [found["files_compared"][name]["name"] for name in ("seg", "det", "dual")]
    assert names == ["0.onnx", "1.onnx", "2.onnx"]
    builds = [call for call in invocations(trtexec.parent) if call[0].startswith("--onnx=")]
    assert len(builds) == 3


def test_one_file_that_cannot_be_built_leaves_no_comparison(tmp_path: Path, trtexec: Path) -> None:
    set_scenario(trtexec.parent, {"scenario": "int8_kernel"})
    files = [models.convolution(tmp_path / f"{i}.onnx", seed=i) for i in range(3)]
    timing = compare_files(
        *(files, "fp32", "single", SETTINGS, identify("orin"), threading.Event()), rounds=1
    )
    assert (timing.verdict, timing.metrics) == ("unsupported", {})
    assert timing.failure is not None
    assert timing.failure.kind == "int8-kernel"


@pytest.mark.usefixtures("trtexec")
def test_the_command_takes_three_exports_and_joins_their_architectures(tmp_path: Path) -> None:
    folders = [
        export(tmp_path / graph, graph=graph, seed=seed)
        for seed, graph in enumerate(("seg", "det", "dual"))
    ]
    out = tmp_path / "out.jsonl"
    done = CliRunner().invoke(
        cli,
        [
            *("compare", *map(str, folders), "--precision", "int8", "--rounds", "1", "--json"),
            *("--warmup-s", "0.1", "--duration-s", "0.2", "--out", str(out)),
        ],
    )
    assert done.exit_code == 0, done.stderr
    [row] = json.loads(done.stdout)["results"]
    parts = [f"{graph} model.int8-trt.onnx" for graph in ("seg", "det", "dual")]
    assert row["architecture"] == comparison_architecture(parts)
    assert len(row["architecture"]) == 64
    assert row["graph"] == "seg+det|dual"
    assert row["metrics"]["ratio/p50"] > 0
    assert len(out.read_text().splitlines()) == 2
