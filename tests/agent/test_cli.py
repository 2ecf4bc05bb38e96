"""The command as people run it: in processes of its own, against a real server."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.agent import models
from tests.agent.publishing import manifest_of, publish

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--warmup-s", "0.01", "--duration-s", "0.05", "--threads", "1", "--deadline-s", "120"]
QUICK += ["--backend", "onnxruntime", "--runs", "2", "--repeats", "0", "--preflight-s", "1"]


def agent(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jetson_agent", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def data() -> str:
    """A data set name of this test alone: the server is shared."""
    return f"d{uuid4().hex[:8]}"


def once(uri: str, data: str, tmp_path: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    done = agent(
        *("once", "--tracking-uri", uri, "--device", f"board-{data}", "--select", f"{data}-*"),
        *("--state-dir", str(tmp_path / "state"), "--json", *QUICK, *more),
    )
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def bench_runs(uri: str, data: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"bench/board-{data}")
    wanted = "tags.`sharedenc.kind` = 'bench'"
    return list(client.search_runs([experiment.experiment_id], wanted)) if experiment else []


def test_once_writes_one_run_per_architecture_and_the_second_call_nothing(
    mlflow_uri: str, data: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    first = models.convolution(tmp_path / "a.onnx", seed=0)
    second = models.convolution(tmp_path / "b.onnx", seed=1)
    publish(mlflow_uri, first, manifest_of(first, "conv", data=data))
    publish(mlflow_uri, second, manifest_of(second, "conv", data=data))
    other = models.doubling(tmp_path / "c.onnx")
    _, _, training_run = publish(
        mlflow_uri, other, manifest_of(other, "double", graph="det", data=data)
    )
    client = MlflowClient(tracking_uri=mlflow_uri)
    before = client.get_run(training_run).to_dictionary()
    versions = {
        (v.name, v.version): (v.tags, v.aliases)
        for v in client.search_model_versions(f"name LIKE '{data}%'")
    }

    code, summary, _ = once(mlflow_uri, data, tmp_path)
    assert code == 0
    assert [row["model"] for row in summary["timed"]] == [
        f"{data}-resnet18-det",
        f"{data}-resnet18-seg",
    ]
    assert (summary["sent"], summary["waiting"]) == (2, 0)
    runs = bench_runs(mlflow_uri, data)
    assert sorted(run.data.tags["sharedenc.architecture"] for run in runs) == ["conv", "double"]
    for run in runs:
        assert set(run.data.metrics) >= {
            *(f"latency_ms/{name}" for name in ("p50", "mean", "min", "max")),
            "throughput_qps",
            "build_s",
            "n",
        }
        tags = run.data.tags
        assert tags["sharedenc.kind"] == "bench"
        assert tags["sharedenc.verdict"] in ("valid", "suspect")
        assert (tags["sharedenc.precision"], tags["sharedenc.load"]) == ("fp32", "single")
        assert "certificate.json" in [a.path for a in client.list_artifacts(run.info.run_id)]

    code, summary, said = once(mlflow_uri, data, tmp_path)
    assert (code, summary["timed"], summary["already_timed"]) == (0, [], 2)
    assert "nothing to do" in said
    # Neither does an agent that has lost its own memory find anything.
    code, summary, _ = once(mlflow_uri, data, tmp_path / "new board, same name")
    assert (code, summary["timed"]) == (0, [])
    assert len(bench_runs(mlflow_uri, data)) == 2
    # Nothing else on the server has changed.
    assert client.get_run(training_run).to_dictionary() == before
    assert versions == {
        (v.name, v.version): (v.tags, v.aliases)
        for v in client.search_model_versions(f"name LIKE '{data}%'")
    }


def test_a_file_that_was_changed_after_its_registration_is_refused_by_name(
    mlflow_uri: str, data: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    model = models.convolution(tmp_path / "a.onnx")
    name, version, run_id = publish(mlflow_uri, model, manifest_of(model, "conv", data=data))
    (tmp_path / "evil").mkdir()
    evil = models.doubling(tmp_path / "evil" / "model.onnx")
    MlflowClient(tracking_uri=mlflow_uri).log_artifact(run_id, str(evil), "export/seg")
    code, summary, said = once(mlflow_uri, data, tmp_path)
    assert code == 1
    assert summary["timed"] == []
    assert summary["refused"][0]["model"] == f"{name} v{version}"
    assert "sha256" in summary["refused"][0]["reason"]
    assert f"refused {name} v{version}" in said
    assert bench_runs(mlflow_uri, data) == []


def test_bad_models_are_told_with_their_reason_and_the_next_one_is_timed(
    mlflow_uri: str, data: str, tmp_path: Path
) -> None:
    garbage = tmp_path / "a.onnx"
    garbage.write_bytes(b"no model")
    wrong = models.not_a_number(tmp_path / "b.onnx")
    good = models.doubling(tmp_path / "c.onnx")
    name, version, _ = publish(
        mlflow_uri, garbage, manifest_of(garbage, "garbage", graph="det", data=data)
    )
    publish(mlflow_uri, wrong, manifest_of(wrong, "wrong", graph="dual", data=data))
    publish(mlflow_uri, good, manifest_of(good, "good", graph="seg", data=data))
    code, summary, _ = once(mlflow_uri, data, tmp_path)
    assert code == 1
    # What is no model is never given to a loader, so there is no timing of it.
    assert [row["model"] for row in summary["refused"]] == [f"{name} v{version}"]
    assert "is not an ONNX file" in summary["refused"][0]["reason"]
    assert [row["architecture"] for row in summary["timed"]] == ["wrong", "good"]
    runs = {run.data.tags["sharedenc.architecture"]: run for run in bench_runs(mlflow_uri, data)}
    assert set(runs) == {"wrong", "good"}
    assert runs["wrong"].data.tags["sharedenc.verdict"] == "wrong"
    assert runs["wrong"].data.metrics == {}
    assert runs["good"].data.tags["sharedenc.verdict"] in ("valid", "suspect")


def test_precisions_and_loads_can_be_chosen_by_comma(
    mlflow_uri: str, data: str, tmp_path: Path
) -> None:
    model = models.doubling(tmp_path / "m.onnx")
    publish(mlflow_uri, model, manifest_of(model, "double", data=data))
    more = ("--load", "stream,single", "--precision", "int8-unscaled,fp32")
    code, summary, said = once(mlflow_uri, data, tmp_path, *more)
    assert (code, summary["lacking"]) == (0, {"int8-unscaled": 1})
    assert {(row["precision"], row["load"]) for row in summary["timed"]} == {
        ("fp32", "single"),
        ("fp32", "stream"),
    }
    assert "int8-unscaled (1 versions)" in said
    wrong = agent("once", "--tracking-uri", mlflow_uri, "--precision", "fp32,fp33")
    assert wrong.returncode == 2
    assert "'fp33' is not one of fp32, tf32" in wrong.stderr


def test_explain_tells_what_was_timed_how_and_how_to_repeat_it(
    mlflow_uri: str, data: str, tmp_path: Path
) -> None:
    model = models.doubling(tmp_path / "m.onnx")
    publish(mlflow_uri, model, manifest_of(model, "double", data=data))
    _, summary, _ = once(mlflow_uri, data, tmp_path)
    key, state = summary["timed"][0]["key"], str(tmp_path / "state")
    for what in (key, key[:10], f"{data}-*", f"{data}-resnet18-seg v1", str(model)):
        done = agent("explain", what, "--state-dir", state)
        assert done.returncode == 0, done.stderr
        assert f"{data}-resnet18-seg version 1, fp32, single" in done.stdout
        assert f"Key {key}" in done.stdout
        assert f"board-{data}" in done.stdout
        assert "one query at a time" in done.stdout
        assert "jetson-agent measure model.onnx --backend onnxruntime" in done.stdout
        assert f"{summary['timed'][0]['metrics']['latency_ms/p50']:.6g}" in done.stdout
    as_json = json.loads(agent("explain", key, "--state-dir", state, "--json").stdout)
    assert [row["key"] for row in as_json["results"]] == [key]
    missing = agent("explain", "nothing-of-that-name", "--state-dir", state)
    assert missing.returncode == 1
    assert "neither a file nor the key" in missing.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_timing_and_leaves_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    model = models.endless(tmp_path / "endless.onnx")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jetson_agent", "measure", str(model)),
            *("--deadline-s", "240", "--backend", "onnxruntime"),
        ],
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        child = _wait_for_child(process.pid)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert not Path(f"/proc/{child}").exists()
    finally:
        process.kill()
        process.wait()


def _wait_for_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for child in children.read_text().split():
            # Between fork and exec the child still bears its parent's command line, and a step
            # that ends at this moment has none any more.
            with suppress(OSError):
                if b"jetson_agent.child" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        time.sleep(0.05)
    raise AssertionError("the agent started no child")


def test_doctor_says_what_is_there() -> None:
    done = agent(
        "doctor", "--offline", "--json", MLFLOW_TRACKING_URI="http://me:geheim@server:5000"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["backends"]["onnxruntime"]["available"] is True
    assert found["device"]["name"]
    assert "trtexec" in found
    assert found["tracking_uri"] == "http://server:5000"
    assert found["device"]["name"] in agent("doctor").stdout


def test_without_a_server_the_error_says_what_to_do() -> None:
    done = agent("once")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no tracking server is named")
    assert "MLFLOW_TRACKING_URI" in done.stderr


def test_an_unknown_backend_and_a_folder_that_is_a_file_are_plain_errors(tmp_path: Path) -> None:
    done = agent("once", "--tracking-uri", "http://127.0.0.1:9", "--backend", "abacus")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "backend='abacus' is not one of onnxruntime" in done.stderr
    (tmp_path / "file").touch()
    done = agent(
        "once", "--tracking-uri", "http://127.0.0.1:9", "--state-dir", f"{tmp_path}/file/state"
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_help_imports_nothing_heavy_and_importing_main_runs_nothing() -> None:
    code = (
        "import sys, jetson_agent.__main__, jetson_agent.cli as c\n"
        "c.cli(['--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'mlflow', 'torch', 'ray', 'asyncio'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_six_agents_of_one_device_share_its_jobs(
    mlflow_uri: str, data: str, tmp_path: Path
) -> None:
    for seed, graph in enumerate(("seg", "det", "dual", "encoder")):
        model = models.convolution(tmp_path / f"{graph}.onnx", seed=seed)
        publish(mlflow_uri, model, manifest_of(model, graph, graph=graph, data=data))
    command = [sys.executable, "-m", "jetson_agent", "once", "--tracking-uri", mlflow_uri]
    command += ["--device", f"board-{data}", "--select", f"{data}-*", "--json", *QUICK]
    command += ["--load", "single,stream"]
    processes = [
        subprocess.Popen(
            [*command, "--state-dir", str(tmp_path / f"state-{number}")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    try:
        summaries = [json.loads(process.communicate(timeout=800)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    timed = [row["key"] for summary in summaries for row in summary["timed"]]
    # Four graphs and one comparison, each with two loads.
    assert len(timed) == len(set(timed)) == 10
    assert sorted(run.data.tags["sharedenc.bench_key"] for run in bench_runs(mlflow_uri, data)) == (
        sorted(timed)
    )
    assert [summary["exit_code"] for summary in summaries] == [0] * 6


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "jetson_agent").rglob("*.py")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_file_is_python_3_10(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 10))
