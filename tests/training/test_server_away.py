"""A real trial whose MLflow server is killed in the middle of it and again at its end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from sharedenc import mlflow_server
from sharedenc.data.packed import PackedDataset
from sharedenc.spec import Cell, Recipe, Trial, resolve_numerics
from sharedenc.tracking import MlflowTracker
from sharedenc.training.job import EpochReport, TrialJob
from sharedenc.training.run import run_and_record

AWAY_S = 5.0
EPOCHS = 4


@pytest.mark.slow
def test_a_trial_whose_server_goes_away_twice_ends_done_with_every_row_once(
    tiny_pack: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    cell = Cell.parse("resnet18/share-frozen/seg")
    settings = {"image_px": 64, "batch_size": 4, "calibration_images": 8, "precision": "float32"}
    recipe = Recipe.from_dict(settings | {"epochs": EPOCHS})
    trial = Trial(
        cell=cell,
        recipe=recipe,
        lr=1e-3,
        seed=0,
        data_digest=tiny_pack.digest,
        weights_digest="none",
        numerics=resolve_numerics(recipe, cell.backbone, "cpu", "2.14"),
    )
    job = TrialJob(
        trial=trial,
        pack=tiny_pack.root,
        weights="none",
        parent=None,
        work_dir=tmp_path / "work",
        device="cpu",
    )
    with mlflow_server.serve(tmp_path / "server") as server:
        tracker = MlflowTracker(server.uri)
        run = tracker.child("s", tracker.study("s", {}), cell.name, {})
        back: list[threading.Thread] = []

        def bring_back() -> None:
            time.sleep(AWAY_S)
            while not server.revive():  # as a driver does with every beat
                time.sleep(0.5)

        def kill() -> None:
            pid = mlflow_server._known(tmp_path / "server")["pid"]  # another one after a revival
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            back.append(threading.Thread(target=bring_back))
            back[-1].start()

        def on_epoch(report: EpochReport) -> bool:
            if report.epoch in (1, EPOCHS):
                for thread in back:
                    thread.join()
                kill()
            return False

        outcome = run_and_record(job, run, on_epoch)
        for thread in back:
            thread.join()
        assert (outcome.state, outcome.reason) == ("done", None)
        record = tracker.record(run.run_id)
        assert (record.status, record.tags["sharedenc.state"]) == ("FINISHED", "done")
        for metric, steps in (
            ("val/loss", range(1, EPOCHS + 1)),
            ("score", range(1, EPOCHS + 2)),
            ("test/mIoU", [EPOCHS + 1]),
        ):
            assert [step for step, _ in tracker.history(run.run_id, metric)] == list(steps)
        best = tracker.download(run.run_id, "checkpoint/best.safetensors", tmp_path / "down")
        assert best.read_bytes() == (tmp_path / "work" / "best.safetensors").read_bytes()
