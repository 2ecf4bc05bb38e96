"""A small sweep as a process of its own, to be hurt and run again, and the table it ends with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharedenc.tracking import MlflowTracker

BASELINE, SWAP = "resnet18/baseline/det", "resnet18/swap-frozen/seg"
EPOCHS = 14
NAME = "hurt"
RECIPE = ["--epochs", str(EPOCHS), "--image-px", "64", "--batch-size", "4"]
RECIPE += ["--precision", "float32", "--cpu-threads", "1", "--early-stop-patience", "0"]
RECIPE += ["--calibration-images", "4", "--weights", "none", "--lr-search", "published"]
# What the table compares: everything that is measured, and nothing that is timed.
EPOCH_METRICS = ("train/loss", "val/loss", "lr", "score")


@dataclass
class Sweep:
    """One study in ``folder``, run as often as it takes by the same command."""

    folder: Path
    data: Path
    uri: str | None = None
    options: tuple[str, ...] = ()
    only: str = SWAP
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    mark: str = field(default_factory=lambda: f"hurt-{os.getpid()}-{time.monotonic_ns()}")

    @property
    def study_dir(self) -> Path:
        return self.folder / "runs" / "studies" / NAME

    def start(self, *extra: str) -> subprocess.Popen[str]:
        """Start the sweep; standard output and error go to files in the folder."""
        command = [sys.executable, "-m", "sharedenc", "sweep", "full-grid", "--name", NAME]
        command += ["--data", str(self.data), "--only", self.only, "--device", "cpu", "--json"]
        command += ["--runs-dir", "runs", "--cache-dir", "cache", "--no-export", "--no-report"]
        command += ["--checkpoint-every", "2steps", *RECIPE, *self.options, *extra]
        env = {**os.environ, "TMPDIR": "/tmp", "SHAREDENC_TEST_MARK": self.mark}
        if self.uri is not None:
            env["MLFLOW_TRACKING_URI"] = self.uri
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "out", "w") as out, open(self.folder / "err", "a") as err:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
                env=env,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.started.append(process)
        return process

    def answer(self, process: subprocess.Popen[str], *, wait_s: float = 900) -> dict[str, Any]:
        """Wait for the end and return the object on standard output."""
        process.wait(timeout=wait_s)
        text = (self.folder / "out").read_text()
        assert text, (self.folder / "err").read_text()[-3000:]
        found: dict[str, Any] = json.loads(text)
        return found

    def events(self) -> list[dict[str, Any]]:
        """Every event of every invocation so far."""
        file = self.study_dir / "events.jsonl"
        if not file.is_file():
            return []
        lines = file.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for(self, trial: str, epoch: int, process: subprocess.Popen[str]) -> None:
        """Return once ``trial`` has told of ``epoch``."""
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            told = [e for e in self.events() if e["event"] == "epoch" and e["trial"] == trial]
            if any(event["epoch"] >= epoch for event in told):
                return
            assert process.poll() is None, (self.folder / "err").read_text()[-3000:]
            time.sleep(0.05)
        raise AssertionError(f"{trial} did not reach epoch {epoch} in time")

    def processes(self, title: str = "") -> list[int]:
        """Live processes of this sweep, those with ``title`` in their command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if self.mark.encode() in environment and title.encode() in words and state != "Z":
                found.append(int(entry.name))
        return found

    def trial_workers(self) -> list[int]:
        """The processes of Ray that train now."""
        return self.processes("ray::ResourceTrainable")

    def end_all(self) -> None:
        """Kill whatever still runs of this sweep."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.started:
            process.wait()


@contextmanager
def sweeping(folder: Path, data: Path, **settings: Any) -> Iterator[Sweep]:
    """A sweep of which no process is left behind."""
    sweep = Sweep(folder, data, **settings)
    try:
        yield sweep
    finally:
        sweep.end_all()


def table(uri: str) -> dict[str, dict[str, Any]]:
    """The study's final table: per cell its state, test scores and every row of every epoch."""
    tracker = MlflowTracker(uri)
    found: dict[str, dict[str, Any]] = {}
    for run in tracker.runs(NAME):
        if run.tags["sharedenc.kind"] != "trial":
            continue
        tested = {name: run.metrics[name] for name in run.metrics if name.startswith("test/")}
        history = {name: tracker.history(run.run_id, name) for name in EPOCH_METRICS}
        found[run.name] = {
            "state": run.tags["sharedenc.state"],
            "status": run.status,
            "key": run.tags["sharedenc.key"],
            "test": tested,
            # The last word on the score stands at the last epoch once more.
            "history": {**history, "score": sorted(set(history["score"]))},
        }
    return found


def assert_whole(rows: dict[str, dict[str, Any]]) -> None:
    """Every cell is done, with one row for each epoch: none lost, none doubled."""
    assert sorted(rows) == [BASELINE, SWAP]
    for name, row in rows.items():
        assert (row["state"], row["status"]) == ("done", "FINISHED"), name
        for metric in ("train/loss", "val/loss", "lr"):
            steps = [step for step, _ in row["history"][metric]]
            assert steps == list(range(1, EPOCHS + 1)), (name, metric)
        assert row["test"], name
