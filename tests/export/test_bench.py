"""Timings that come in a file, on a real server."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from jetson_agent import timings_file
from jetson_agent.protocol import TIMINGS_HEADER, BenchResult
from sharedenc.cli import main
from sharedenc.errors import ExportError
from sharedenc.export.bench import Bench, read_results


def result(device: str, **more: object) -> BenchResult:
    values: dict[str, object] = {
        "device": device,
        "architecture": "ab" * 32,
        "precision": "int8",
        "load": "single",
        "mode": "MAXN-pinned",
        "backend": "tensorrt",
        "runtime": "10.3.0",
        "verdict": "valid",
        "metrics": {"latency_ms/p50": 3.25, "latency_ms/p99": 4.5, "n": 900.0},
        "certificate": {"command": "trtexec --loadEngine=x"},
        "model": "voc20-resnet18-dual",
    }
    return BenchResult(**{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
def device() -> str:
    return f"board-{uuid4().hex[:8]}"


def test_both_sides_agree_on_the_first_line() -> None:
    assert timings_file.TIMINGS_HEADER == TIMINGS_HEADER == {"sharedenc_timings": 1}


def test_a_file_of_a_board_comes_in_once(mlflow_uri: str, device: str, tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    first = result(device)
    second = result(device, precision="fp32", architecture="", verdict="failed", metrics={})
    timings_file.append(path, first)
    timings_file.append(path, second)
    arguments = ["timings", "import", str(path)]
    quiet = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
    environment: dict[str, str | None] = {"MLFLOW_TRACKING_URI": mlflow_uri, quiet: None}
    told = CliRunner().invoke(main, arguments, env=environment)
    assert told.exit_code == 0, told.output
    assert "http" not in told.stdout
    assert "2 stored, 0 there before" in told.output
    assert "1 of files that are no exports of sharedenc" in told.output

    again = CliRunner().invoke(main, [*arguments, "--json"], env=environment)
    rows = json.loads(again.stdout)["timings"]
    assert [row["outcome"] for row in rows] == ["present", "present"]

    found = {row.precision: row for row in Bench(mlflow_uri).rows(device)}
    assert dict(found["int8"].metrics) == first.metrics
    assert (found["int8"].key, found["int8"].verdict) == (first.key, "valid")
    assert (found["fp32"].verdict, dict(found["fp32"].metrics)) == ("failed", {})
    assert device in Bench(mlflow_uri).devices()
    listed = CliRunner().invoke(main, ["timings", "list", "--device", device], env=environment)
    assert "int8 single: p50 3.25 ms, p99 4.5 ms, valid" in listed.output


def test_what_an_agent_finds_done_is_not_done_again(mlflow_uri: str, device: str) -> None:
    from jetson_agent.registry_mlflow import MlflowRegistry

    brought = result(device)
    Bench(mlflow_uri).store(brought)
    assert MlflowRegistry(mlflow_uri).bench_keys(device) == {brought.key: "valid"}


def test_a_stale_timing_does_not_come_back_with_its_file(mlflow_uri: str, device: str) -> None:
    bench, brought = Bench(mlflow_uri), result(device)
    first = bench.store(brought)
    newer = "10.3.0+l4t36.4.4"
    MlflowClient(mlflow_uri).set_tag(first.run_id, "sharedenc.stale", newer)
    again = bench.store(brought)
    assert (again.outcome, again.run_id) == ("present", first.run_id)
    assert [row.stale for row in bench.rows(device)] == [True]
    # The board went back, and was timed anew.
    anew = bench.store(result(device, metrics={"latency_ms/p50": 3.5}))
    assert anew.outcome == "stored"
    assert [row.stale for row in bench.rows(device)] == [True, False]


def test_an_unknown_device_has_no_timings(mlflow_uri: str, device: str) -> None:
    assert Bench(mlflow_uri).rows(device) == []
    assert Bench(mlflow_uri).seen(device) == []


def test_a_last_line_that_a_power_cut_tore_is_left_out(tmp_path: Path, device: str) -> None:
    path = tmp_path / "timings.jsonl"
    timings_file.append(path, result(device))
    whole = path.read_text()
    path.write_text(whole + json.dumps(asdict(result(device)))[:40])
    assert [one.device for one in read_results(path)] == [device]
    # A torn line that others follow is not the power's work.
    lines = whole.splitlines()
    path.write_text("\n".join([lines[0], lines[1][:40], lines[1]]))
    with pytest.raises(ExportError, match="line 2"):
        list(read_results(path))


@pytest.mark.parametrize("text", ["", "{}\n", '{"sharedenc_timings": 9}\n', "latency 3 ms\n"])
def test_another_file_is_refused_with_what_writes_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.txt"
    path.write_text(text)
    with pytest.raises(ExportError, match="jetson-agent measure"):
        list(read_results(path))


def test_a_result_of_another_protocol_is_refused(tmp_path: Path, device: str) -> None:
    path = tmp_path / "timings.jsonl"
    path.write_text(
        json.dumps(TIMINGS_HEADER)
        + "\n"
        + json.dumps(asdict(replace(result(device), protocol=1)))
        + "\n\n"
    )
    with pytest.raises(ExportError, match="protocol 1"):
        list(read_results(path))
