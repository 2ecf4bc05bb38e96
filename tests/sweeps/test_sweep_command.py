"""`sharedenc sweep` and `sharedenc ui` as a user types them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from sharedenc.cli import main
from sweeps.interrupts import Interrupts
from tests.sweeps.conftest import MakeNodes


def sweep(*args: str) -> Result:
    return CliRunner().invoke(main, ["sweep", *args])


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_show_prints_the_merged_settings_and_trains_nothing(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("kind: full-grid\npreset: quick\nrecipe: {alpha: 3}\nbackbones: [resnet18]\n")
    shown = sweep(str(file), "--epochs", "5", "--lr", "resnet18=1e-3", "--show")
    assert shown.exit_code == 0
    values = yaml.safe_load(shown.stdout)
    assert (values["recipe"]["epochs"], values["recipe"]["alpha"]) == (5, 3.0)
    assert (values["backbones"], values["lr"]) == (["resnet18"], {"resnet18": 1e-3})
    assert values["weights"] == "default"
    ruled = sweep(str(file), "--overlap", "paint_small_last", "--val-fraction", ".1", "--show")
    rules = {"overlap": "paint_small_last", "val_fraction": 0.1}
    assert yaml.safe_load(ruled.stdout)["rules"] == rules
    assert values["rules"] == {}
    demo = yaml.safe_load(sweep("full-grid", "--preset", "demo", "--show").stdout)
    assert demo["weights"] == "none"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fullgrid"], "'fullgrid' is neither a kind.*Did you mean 'full-grid'"),
        (["full-grid", "--preset", "dem"], "Did you mean 'demo'"),
        (["full-grid", "--preset", "demo", "--only", "resnet81/*"], "matches none of the study's"),
        (["full-grid", "--preset", "demo", "--backbones", "resnet81"], "Did you mean 'resnet18'"),
        (["full-grid", "--show", "--only", "resnet81/*"], "Did you mean 'resnet18'"),
        (["full-grid", "--show", "--search-lrs", "1e-3,1e-4"], "--search-cell"),
        (["lr-search", "--show", "--search-cell", "foo/dual"], "'foo'"),
        (["full-grid", "--show", "--crowd-seg", "clas"], "Did you mean 'class'"),
        (["full-grid", "--preset", "demo", "--launcher", "rai"], "Did you mean 'ray'"),
        (["full-grid", "--preset", "demo", "--seeds", "a"], "seeds='a' is neither a count"),
        (["full-grid", "--preset", "demo", "--lr", "x=y"], "neither RATE nor BACKBONE=RATE"),
        (["full-grid", "--preset", "demo", "--address", "auto"], "MLFLOW_TRACKING_URI is not set"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_starts(
    args: list[str], message: str, tmp_path: Path
) -> None:
    answer = sweep(*args, "--runs-dir", str(tmp_path / "runs"))
    assert answer.exit_code == 2
    assert answer.stderr.startswith("Error: ")
    assert re.search(message, answer.stderr), answer.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dead_tracking_server_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    answer = sweep("full-grid", "--preset", "demo", "--runs-dir", str(tmp_path))
    assert answer.exit_code == 8
    assert "no MLflow server answers" in answer.stderr


def test_a_plan_says_that_it_knows_no_latency(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    words = ["full-grid", "--preset", "demo", "--runs-dir", str(tmp_path), "--plan"]
    told = "the price is of every cell: what --latency-budget-ms will skip"
    assert told not in sweep(*words).stderr
    answer = sweep(*words, "--latency-budget-ms", "10", "--device", "orin")
    assert told in answer.stderr
    assert "once orin has timed the untrained graphs" in answer.stderr
    assert answer.stdout == ""


def test_a_study_without_data_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, mlflow_uri: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    answer = sweep("full-grid", "--preset", "quick", "--runs-dir", str(tmp_path))
    assert answer.exit_code == 2
    assert "--data DIR" in answer.stderr


def test_status_and_ui_of_an_unknown_study(
    monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    for args in (["sweep", "status", "nope"], ["ui", "nope"]):
        answer = CliRunner().invoke(main, args)
        assert answer.exit_code == 8
        assert "no study 'nope'" in answer.stderr
    assert mlflow_uri in CliRunner().invoke(main, ["ui"]).stdout


class Finish:
    """The steps after the last cell, without a study behind them: one cell that is done."""

    def __init__(self, make_nodes: MakeNodes, tmp_path: Path, uri: str) -> None:
        from sharedenc.cli import sweep as command
        from sweeps.inputs import Places
        from sweeps.result import StudyResult
        from sweeps.state import Row
        from sweeps.studies import Study

        row = Row(make_nodes(only=("resnet18/baseline/seg",))[0], state="done")
        self.result = StudyResult(study="s", parent_id="p", pack=tmp_path, rows=[row])
        options = {"export": True, "report": True, "as_json": True, "log_json": False}
        study = Study(kind="full-grid", agent=True)
        self.sweep = command._Sweep(study, {**options, "runs_dir": None})
        self.sweep.uri = uri
        self.sweep.places = Places(tracking_uri=uri, runs_dir=tmp_path)


@pytest.mark.parametrize("step", ["_export", "_time", "_report"])
def test_an_interrupted_step_hides_no_result(
    step: str,
    make_nodes: MakeNodes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finish = Finish(make_nodes, tmp_path, "http://nowhere")
    for name in ("_export", "_time", "_report"):
        monkeypatch.setattr(finish.sweep, name, lambda result: ["a step is done"])

    def terminated(result: object) -> list[str]:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return []

    monkeypatch.setattr(finish.sweep, step, terminated)
    assert finish.sweep._finish(finish.result) == 130
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert (answer["exit_code"], answer["cells"][0]["state"]) == (130, "done")
    assert "study s: 1 of 1 cells done" in told.err
    assert "run the same command to go on" in told.err


def test_a_server_that_went_away_is_one_line_for_each_step(
    make_nodes: MakeNodes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    finish = Finish(make_nodes, tmp_path, f"http://127.0.0.1:{closed_port()}")

    def full(result: object) -> list[str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finish.sweep, "_export", full)
    assert finish.sweep._finish(finish.result) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["exit_code"] == 0
    (failed,) = [line for line in told.err.splitlines() if line.startswith("report: ")]
    assert failed.startswith("report: failed: the tracking server at http://127.0.0.1:")
    assert failed.endswith("Connection refused")
    assert "export: failed: [Errno 28] No space left" in told.err
    assert not re.search("Traceback|HTTPConnectionPool|Max retries", told.err)


def test_a_bug_in_a_step_hides_no_result_either(
    make_nodes: MakeNodes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finish = Finish(make_nodes, tmp_path, "http://nowhere")
    monkeypatch.setattr(finish.sweep, "_export", lambda result: [str(1 / 0)])
    with pytest.raises(ZeroDivisionError):
        finish.sweep._finish(finish.result)
    assert json.loads(capsys.readouterr().out)["cells"][0]["state"] == "done"


def test_an_interrupt_that_was_swallowed_is_raised_again_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        interrupts.check()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.check()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_command_module_imports_no_engine() -> None:
    check = "import sys, sharedenc.cli.sweep, sharedenc.cli.ui, sweeps.studies, sweeps.progress\n"
    check += "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def _start(tmp_path: Path, data: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sharedenc", "sweep", "full-grid", "--data", str(data)]
    command += ["--runs-dir", "runs", "--cache-dir", "cache", "--weights", "none", "--json"]
    command += ["--log-json", "--image-px", "64", "--batch-size", "4", "--precision", "float32"]
    command += ["--calibration-images", "4", *args]
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": "/tmp"},
        # Tests that were started in the background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _marked(mark: str) -> list[int]:
    """Live processes whose command line or environment holds ``mark``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark.encode() in text and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_at_once_keeps_what_is_done_and_leaves_no_process(
    number: signal.Signals, tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"sweep-under-test-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("SHAREDENC_TEST_MARK", mark)
    only = ["--only", "resnet18/share-frozen/seg", "--epochs", "1000", "--early-stop-patience", "0"]
    with _start(tmp_path, tiny_dataset, *only) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("{") and json.loads(line).get("epoch", 0) >= 2:
                break
        process.send_signal(number)
        asked = time.monotonic()
        stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert time.monotonic() - asked < 60
    answer = json.loads(stdout)
    assert answer["exit_code"] == 130
    (cell,) = answer["cells"]
    why = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}[number]
    assert (cell["state"], cell["reason"]) == ("stopped", why)
    deadline = time.monotonic() + 120
    while (left := _marked(mark)) and time.monotonic() < deadline:
        left = [pid for pid in left if pid != os.getpid()]
        if not left:
            break
        time.sleep(0.2)
    assert not [pid for pid in left if pid != os.getpid()]


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_exports_and_reports_and_answers_in_json(
    tmp_path: Path, tiny_dataset: Path
) -> None:
    args = ["--epochs", "1", "--only", "resnet18/baseline/seg", "--name", "one", "--agent"]
    args += ["--search-cell", "resnet18/share-frozen/seg", "--search-lrs", "1e-4,1e-3"]
    args += ["--search-epochs", "2"]
    with _start(tmp_path, tiny_dataset, *args) as process:
        stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    answer = json.loads(stdout)
    assert [(row["cell"], row["state"]) for row in answer["cells"]] == [
        ("resnet18/baseline/seg", "done")
    ]
    assert len(answer["searches"]) == 2
    assert "resnet18/share-frozen/seg" in answer["learning_rates"]
    # Every line on standard error is an event.
    events = [json.loads(line) for line in stderr.splitlines()]
    assert {"start", "epoch", "end", "note"} == {event["event"] for event in events}
    last = [event["text"] for event in events[-6:]]
    assert any(line.startswith("study one: 1 of 1 cells done in ") for line in last)
    assert any(line.startswith("learning rates of resnet18/share-frozen/seg: 2") for line in last)
    assert any(line.startswith("exports: 1 of 4 graphs registered") for line in last)
    assert any(
        line.startswith("timings: 2 timed now")  # FP32 and INT8
        for line in last
    )
    assert (tmp_path / "runs" / "studies" / "one" / "report" / "index.html").is_file()
    assert " ui one --runs-dir runs" in last[-1]
