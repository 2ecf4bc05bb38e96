"""The command `sharedenc train`, from arguments to exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sharedenc.cli import main
from sharedenc.cli.train import stop_by_signal
from sharedenc.data.packed import PackedDataset
from sharedenc.models.build import build_network
from sharedenc.tracking import MlflowTracker
from sharedenc.training.checkpoint import save_network

SMALL = ["--image-px", "64", "--batch-size", "4", "--epochs", "1", "--weights", "none"]


def train(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments])


@pytest.fixture
def places(tiny_dataset: Path, tmp_path: Path) -> list[str]:
    return ["--data", str(tiny_dataset), "--runs-dir", str(tmp_path / "runs")]


def test_a_swap_trains_its_source_first_and_once(
    places: list[str], mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    arguments = ["resnet18/swap-frozen/det", *places, *SMALL, "--seed", "5", "--json"]
    result = train(*arguments)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert set(answer) == {"cell", "key", "run_id", "val", "test"}
    assert answer["cell"] == "resnet18/swap-frozen/det"
    assert len(answer["test"]["ap_per_iou"]) == 10
    assert answer["test"]["ap_per_iou"][5] == answer["test"]["mAP75"]
    assert "resnet18/baseline/seg  epoch 1/1" in result.stderr

    runs = [
        run
        for run in MlflowTracker(mlflow_uri).runs("train-synthetic")
        if run.params.get("seed") == "5"
    ]
    assert [run.name for run in runs] == ["resnet18/baseline/seg", "resnet18/swap-frozen/det"]
    assert runs[1].run_id == answer["run_id"]
    assert runs[1].tags["sharedenc.key"] == answer["key"]
    assert all(run.status == "FINISHED" for run in runs)
    assert runs[1].params["lr"] == "0.0002"

    source = next(Path(places[3]).rglob("best.safetensors"))
    again = train(*arguments, "--no-track")
    assert again.exit_code == 0, again.stderr
    assert "resnet18/baseline/seg  epoch" not in again.stderr
    repeated = json.loads(again.stdout)
    assert repeated["run_id"] is None
    assert (repeated["key"], repeated["test"]) == (answer["key"], answer["test"])
    assert source.exists()


def test_a_failed_trial_ends_with_its_reason_and_code(places: list[str]) -> None:
    result = train("resnet18/baseline/seg", *places, *SMALL, "--lr", "1e30", "--no-track")
    assert result.exit_code == 6
    assert "Error: the " in result.stderr
    assert "loss is" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_swap_refuses_the_encoder_of_another_cell(places: list[str], tmp_path: Path) -> None:
    source = tmp_path / "best.safetensors"
    network = build_network("resnet18", ["seg"], 21, seed=0)
    meta = {"backbone": "resnet18", "tasks": ["seg"], "num_classes": 21, "key": "k"}
    save_network(network, source, {**meta, "cell": "resnet18/baseline/seg"})
    arguments = [*places, *SMALL, "--no-track", "--encoder", str(source)]
    result = train("resnet18/swap-frozen/seg", *arguments)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "checkpoint of resnet18/baseline/seg" in result.stderr
    assert "starts from the encoder of resnet18/baseline/det" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["resnet81/dual"], 2, "Did you mean 'resnet18'?"),
        (["resnet18/daul"], 2, "Did you mean 'dual'?"),
        (["resnet18/dual", "--epoch", "3"], 2, "--epochs"),
        (["resnet18/dual"], 2, "--data DIR is missing"),
        (["resnet18/dual", "--checkpoint-every", "10 days"], 2, "checkpoint_every='10 days'"),
        (["resnet18/dual", "--storage", "ftp://host", "DATA"], 2, "storage='ftp' is not one of"),
        (["resnet18/dual", "--encoder", "FILE"], 2, "--encoder is for swap cells"),
        (["resnet18/swap-bias/seg", "--encoder", "FILE", "DATA"], 5, "cannot be read"),
        (["resnet18/dual", "--weights", "nowhere.pth", "DATA"], 4, "nowhere.pth"),
    ],
)
def test_bad_input_is_told(
    arguments: list[str], code: int, words: str, places: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"cut")
    arguments = [str(broken) if word == "FILE" else word for word in arguments]
    if "DATA" in arguments:
        arguments = [*arguments[:-1], *places, "--no-track"]
    result = train(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr


def test_rules_reach_the_data(tiny_pack: PackedDataset, tmp_path: Path) -> None:
    places = ["--data", str(tiny_pack.root), "--runs-dir", str(tmp_path), "--no-track"]
    result = train("resnet18/baseline/seg", *places, *SMALL, "--overlap", "paint_small_last")
    assert (result.exit_code, "made with overlap=ignore" in result.stderr) == (3, True)
    result = train("resnet18/baseline/seg", *places, *SMALL, "--overlap", "paint_smal_last")
    assert (result.exit_code, "Did you mean 'paint_small_last'" in result.stderr) == (2, True)


def test_a_storage_is_enough_to_go_on(places: list[str], tmp_path: Path) -> None:
    storage = ["--storage", str(tmp_path / "storage"), "--json", "--no-track"]
    first = train("resnet18/share-frozen/seg", *places, *SMALL, *storage)
    assert first.exit_code == 0, first.stderr
    shutil.rmtree(tmp_path / "runs")
    second = train("resnet18/share-frozen/seg", *places, *SMALL, *storage)
    assert second.exit_code == 0, second.stderr
    assert "epoch 1/1" in first.stderr
    assert "epoch 1/1" not in second.stderr
    assert json.loads(second.stdout)["test"] == json.loads(first.stdout)["test"]
    assert len(list((tmp_path / "runs").rglob("best.safetensors"))) == 1


def test_a_signal_is_a_reason_to_stop_and_a_second_one_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_by_signal() as stop:
        assert stop() == ""
        signal.raise_signal(signal.SIGTERM)
        assert stop() == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert "SIGTERM: saving" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_first_and_the_same_command_goes_on(
    places: list[str], tmp_path: Path, mlflow_uri: str, number: signal.Signals, code: int
) -> None:
    seed = str(int(number))
    settings = [*SMALL[:-4], "--epochs", "30", "--weights", "none", "--seed", seed, "--json"]
    command = [sys.executable, "-m", "sharedenc", "train", "resnet18/share-frozen/seg"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow_uri}
    process = subprocess.Popen(
        [*command, *places, *settings], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "epoch 3/30" in line:
            process.send_signal(number)
    assert process.wait(60) == code, "".join(seen)
    process.stderr.close()
    assert "Stopped and saved" in seen[-1]
    tracker = MlflowTracker(mlflow_uri)
    (run,) = (r for r in tracker.runs("train-synthetic") if r.params.get("seed") == seed)
    assert (run.tags["sharedenc.state"], run.status) == ("stopped", "KILLED")

    again = subprocess.run(
        [*command, *places, *settings], capture_output=True, text=True, env=environment, timeout=300
    )
    assert again.returncode == 0, again.stderr
    assert "epoch 3/30" not in again.stderr
    assert json.loads(again.stdout)["run_id"] == run.run_id
    steps = [step for step, _ in tracker.history(run.run_id, "val/loss")]
    assert steps == list(range(1, 31))
    whole = train(
        "resnet18/share-frozen/seg", *places[:3], str(tmp_path / "whole"), *settings, "--no-track"
    )
    assert json.loads(again.stdout)["test"] == json.loads(whole.stdout)["test"]
