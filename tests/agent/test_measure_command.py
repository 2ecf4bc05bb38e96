"""`jetson-agent measure`: files and folders, no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

from jetson_agent.cli import cli
from jetson_agent.errors import AgentError
from jetson_agent.locks import machine_lock
from jetson_agent.protocol import PRECISIONS, TIMINGS_HEADER, BenchResult
from jetson_agent.sources import find_source
from tests.agent import fake_board, models
from tests.agent.exported import export, quantised
from tests.agent.fake_trtexec import invocations, make_fake_trtexec

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    *("--warmup-s", "0.01", "--duration-s", "0.05", "--runs", "1", "--builds", "1"),
    *("--repeats", "0", "--deadline-s", "120"),
]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet machine of its own: no other test's timing is waited for."""
    fake_board.build(tmp_path / "root", "x86")
    monkeypatch.setenv("JETSON_AGENT_SYSROOT", str(tmp_path / "root"))
    monkeypatch.setenv("JETSON_AGENT_LOCK", str(tmp_path / "lock"))
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(tmp_path / "nothing"))


def measure(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["measure", *map(str, arguments), *QUICK])


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.stdout.count("\n") == 1, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)["results"]
    return found


def test_a_folder_gives_each_precision_its_own_file(tmp_path: Path) -> None:
    folder = export(tmp_path / "export")
    result = measure(
        *(folder, "--precision", "fp32,int8", "--load", "single", "--load", "stream"),
        *("--threads", 1, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    found = rows(result)
    assert [(row["precision"], row["load"]) for row in found] == [
        ("fp32", "single"),
        ("fp32", "stream"),
        ("int8", "single"),
        ("int8", "stream"),
    ]
    files = {"fp32": "model.onnx", "int8": "model.int8-cpu.onnx"}
    for row in found:
        name = files[row["precision"]]
        assert row["architecture"] == f"dual {name}"
        assert row["certificate"]["file"]["name"] == name
        assert (row["model"], row["graph"]) == ("voc20-resnet18-dual", "dual")
        assert row["mode"] == "default-1t"
        assert row["settings"] == "warmup=0.01s duration=0.05s runs=1 builds=1"
        assert row["metrics"]["latency_ms/p50"] > 0
        assert row["certificate"]["counts"]["timed"] == row["metrics"]["n"]
        assert BenchResult.from_json(json.dumps(row)).key == row["key"]
    assert len({row["key"] for row in found}) == 4


def test_beside_a_file_the_quantised_one_is_found(tmp_path: Path) -> None:
    folder = export(tmp_path / "export")
    for recipe in ("trt", "cpu"):
        found = find_source(folder / "model.onnx", "int8", recipe)  # type: ignore[arg-type]
        assert found.model.name == f"model.int8-{recipe}.onnx"
    assert find_source(folder / "model.onnx", "int8-unscaled", "trt").model.name == "model.onnx"
    alone = quantised(tmp_path / "q.onnx", symmetric=True)
    assert find_source(alone, "int8", "trt").model == alone


def test_architecture_comes_from_the_file_and_without_it_a_figure_cannot_be_joined(
    tmp_path: Path,
) -> None:
    path = models.convolution(tmp_path / "m.onnx")
    result = measure(path, "--json")
    assert rows(result)[0]["architecture"] == ""
    assert "cannot be joined" in result.stderr
    model = onnx.load(path)
    for name, value in {"architecture": "a" * 64, "graph": "seg", "backbone": "b"}.items():
        model.metadata_props.add(key=f"sharedenc.{name}", value=value)
    onnx.save(model, path)
    found = find_source(path, "fp32", "cpu")
    assert (found.architecture, found.graph, found.backbone) == ("a" * 64, "seg", "b")


def test_a_folder_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path) -> None:
    folder = export(tmp_path / "export")
    models.convolution(folder / "model.onnx", seed=1)
    with pytest.raises(AgentError, match=r"model\.onnx is not the file that manifest\.json lists"):
        find_source(folder, "fp32", "cpu")
    with pytest.raises(AgentError, match="no folder of an export"):
        find_source(tmp_path, "fp32", "cpu")
    (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace("model.int8-cpu.onnx", "other.onnx")
    )
    with pytest.raises(AgentError, match=r"no file for precision int8.*other\.onnx"):
        find_source(folder, "int8", "cpu")


def test_results_are_added_to_a_file_that_can_be_carried_away(tmp_path: Path) -> None:
    folder, out = export(tmp_path / "export"), tmp_path / "timings.jsonl"
    for precision in ("fp32", "int8"):
        result = measure(folder, "--precision", precision, "--out", out, "--json")
        assert result.exit_code == 0, result.stderr
    first, *lines = out.read_text().splitlines()
    assert json.loads(first) == TIMINGS_HEADER == {"sharedenc_timings": 1}
    found = [BenchResult.from_json(line) for line in lines]
    assert [result.precision for result in found] == ["fp32", "int8"]
    assert found[0].certificate["file"]["name"] == "model.onnx"
    # A line that a power cut ended early does not spoil the next one.
    out.write_text(out.read_text() + '{"cut')
    measure(folder, "--out", out)
    assert BenchResult.from_json(out.read_text().splitlines()[-1]).precision == "fp32"


def test_a_file_of_another_kind_is_not_written_to(tmp_path: Path) -> None:
    model, out = models.convolution(tmp_path / "m.onnx"), tmp_path / "notes.txt"
    out.write_text("my notes\n")
    result = measure(model, "--out", out)
    assert isinstance(result.exception, AgentError)
    assert "no file of timings" in str(result.exception)
    assert out.read_text() == "my notes\n"
    missing = measure(model, "--out", tmp_path / "nowhere" / "t.jsonl")
    assert "there is no folder" in str(missing.exception)


def test_what_cannot_be_timed_is_a_row_with_its_reason_and_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    result = measure(tmp_path / "m.onnx")
    assert result.exit_code == 1
    assert "m fp32 single, failed (m.onnx is not an ONNX file" in result.stdout
    gone = measure(tmp_path / "gone.onnx")
    assert gone.exit_code == 2
    assert "gone.onnx" in gone.stderr


def test_choices_that_nobody_has_are_refused_before_anything_runs(tmp_path: Path) -> None:
    model = models.convolution(tmp_path / "m.onnx")
    result = measure(model, "--precision", "fp32,fp7")
    assert result.exit_code == 2
    assert "'fp7' is not one of fp32, tf32" in result.stderr
    lacking = measure(model, "--precision", "fp16")
    assert "onnxruntime has no precision fp16: it has fp32, int8" in str(lacking.exception)
    profile = measure(model, "--profile", tmp_path)
    assert "has no layer profile" in str(profile.exception)
    absent = measure(model, "--backend", "tensorrt")
    assert "libnvinfer-bin" in str(absent.exception)


@pytest.mark.slow
def test_tensorrt_is_taken_where_there_is_a_trtexec_and_reads_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = make_fake_trtexec(tmp_path / "bin")
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(program))
    folder = export(tmp_path / "export")
    profile = tmp_path / "profile"
    result = measure(*(folder, "--precision", ",".join(PRECISIONS), "--profile", profile, "--json"))
    assert result.exit_code == 0, result.stderr
    found = rows(result)
    assert [row["precision"] for row in found] == list(PRECISIONS)
    assert {row["backend"] for row in found} == {"tensorrt"}
    assert {row["runtime"] for row in found} == {"10.3.0"}
    assert {row["mode"] for row in found} == {"default"}
    read = {row["precision"]: row["certificate"]["file"]["name"] for row in found}
    assert {p for p, name in read.items() if name == "model.int8-trt.onnx"} == {
        "int8",
        "int8_fp16",
    }
    assert {p for p, name in read.items() if name == "model.onnx"} == {
        *("fp32", "tf32", "fp16", "int8-unscaled")
    }
    assert (profile / "fp16-single" / "layers.json").is_file()
    builds = [call for call in invocations(program.parent) if call[0].startswith("--onnx=")]
    assert [("--noTF32" in call, "--int8" in call, "--fp16" in call) for call in builds] == [
        (True, False, False),
        (False, False, False),
        (True, False, True),
        (True, True, False),
        (True, True, True),
        (False, True, False),
    ]
    threads = measure(folder, "--threads", 2)
    assert "backend tensorrt has no CPU threads" in str(threads.exception)


def test_two_timings_on_one_machine_wait_for_each_other(tmp_path: Path) -> None:
    model = models.convolution(tmp_path / "m.onnx")
    command = [sys.executable, "-m", "jetson_agent", "measure", str(model), *QUICK, "--json"]
    with machine_lock() as free:
        assert free
        waiting = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None
        said = [waiting.stderr.readline() for _ in range(2)]
    out, _ = waiting.communicate(timeout=120)
    assert any("another jetson-agent times on this machine" in line for line in said)
    assert waiting.returncode == 0
    assert len(json.loads(out)["results"]) == 1
