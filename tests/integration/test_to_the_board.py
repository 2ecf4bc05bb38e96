"""From a sweep by way of the registry to a daemon on Python 3.10, and back into the report."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sharedenc.export.bench import Bench, BenchRow
from tests.agent.bare import environment, install

DEVICE = "end-to-end"
BACKBONES = ("resnet18", "mobilenet_v3_large")
GRAPHS = ("encoder", "seg", "det", "dual")
# Small in size only: images of 64 pixels, one epoch, few photos.
SMALL = ["--image-px", "64", "--epochs", "1", "--batch-size", "4", "--precision", "float32"]
SMALL += ["--cpu-threads", "1", "--calibration-images", "4", "--weights", "none"]
QUICK = ["--threads", "1", "--warmup-s", "0.01", "--duration-s", "0.05", "--runs", "2"]
QUICK += ["--builds", "1", "--repeats", "0", "--preflight-s", "1"]


@pytest.fixture(scope="module")
def daemon(own_mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`jetson-agent run` in its own environment; gives its log."""
    place = tmp_path_factory.mktemp("board")
    binaries = install(place)
    command = [str(binaries / "jetson-agent"), "run", "--backend", "onnxruntime"]
    command += ["--device", DEVICE, "--poll-s", "1", "--state-dir", str(place / "state"), *QUICK]
    log = place / "log"
    settings = {
        "MLFLOW_TRACKING_URI": own_mlflow_uri,
        "JETSON_AGENT_LOCK": str(place / "lock"),
        "OMP_NUM_THREADS": "1",
    }
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            env={**environment(), **settings},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            # A sweep does not wait for an agent that never said that it lives.
            await_life(own_mlflow_uri, process, log)
            yield log
            assert process.poll() is None, log.read_text()[-3000:]
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            assert code in (0, 128 + signal.SIGTERM), log.read_text()[-3000:]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def await_life(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not Bench(uri).seen(DEVICE):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def sharedenc(*arguments: str | Path, uri: str, ok: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Run a command as a process of its own; returns its JSON object."""
    done = subprocess.run(
        [sys.executable, "-m", "sharedenc", *map(str, arguments), "--json"],
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode in ok, done.stdout[-1000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def sweep(data: Path, place: Path, *more: str) -> list[str | Path]:
    command: list[str | Path] = ["sweep", "full-grid", "--data", data, "--launcher", "local"]
    command += ["--runs-dir", place / "runs", "--cache-dir", place / "cache", "--no-agent"]
    return [*command, "--no-preflight", "--no-report", *SMALL, *more]


def await_timings(uri: str, log: Path, wanted: int) -> list[BenchRow]:
    """Wait until the daemon has reported at least ``wanted`` different architectures."""
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        rows = Bench(uri).rows(DEVICE)
        timed = {(row.architecture, row.precision, row.load) for row in rows}
        if len(timed) >= wanted:
            return rows
        time.sleep(1.0)
    told = log.read_text()[-4000:]
    raise AssertionError(f"{len(timed)} of {wanted} timings\n{told}")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_budget_and_then_a_sweep_are_timed_by_the_daemon_and_reported(
    daemon: Path, own_mlflow_uri: str, tiny_dataset: Path, tmp_path: Path
) -> None:
    # 1. Latency before training: nothing takes less than a microsecond, so nothing is trained.
    answer = sharedenc(
        *sweep(tiny_dataset, tmp_path, "--name", "budget", "--backbones", "resnet18"),
        *("--latency-budget-ms", "0.001", "--device", DEVICE),
        *("--precision", "int8", "--latency-stat", "p50"),
        uri=own_mlflow_uri,
        ok=(1,),
    )
    assert {row["state"] for row in answer["cells"]} == {"skipped"}
    reasons = {row["cell"]: row["reason"] for row in answer["cells"]}
    assert "one shared resnet18 takes" in reasons["resnet18/dual"]
    assert f"(p50 of single, int8, on {DEVICE})" in reasons["resnet18/dual"]
    assert "two separate resnet18 take" in reasons["resnet18/share-bias/seg"]
    before = Bench(own_mlflow_uri).rows(DEVICE)

    # 2. The sweep itself: its graphs are those that were timed untrained, plus another backbone's.
    cells = [f"{name}/{rest}" for name in BACKBONES for rest in ("baseline/*", "dual")]
    answer = sharedenc(
        *sweep(tiny_dataset, tmp_path, "--name", "whole"),
        *(word for cell in cells for word in ("--only", cell)),
        uri=own_mlflow_uri,
    )
    assert {row["state"] for row in answer["cells"]} == {"done"}
    # Per backbone 4 graphs and one comparison, in FP32 and INT8, in both loads.
    wanted = len(BACKBONES) * (len(GRAPHS) + 1) * 2 * 2
    rows = await_timings(own_mlflow_uri, daemon, wanted)

    # What was timed before any training serves the trained networks: it was not timed again.
    keys = [row.key for row in rows]
    assert len(keys) == len(set(keys))
    assert {row.key for row in before} <= set(keys)
    for row in rows:
        assert row.verdict in ("valid", "suspect"), row
        assert row.metrics["latency_ms/p50"] > 0
    assert {row.precision for row in rows} == {"fp32", "int8"}

    # 3. The report.
    found = sharedenc("report", "whole", "--out", tmp_path / "report", uri=own_mlflow_uri)
    tables = found["tables"]
    timed = read(tables["A.2"]["csv"])
    for backbone in BACKBONES:
        for precision in ("fp32", "int8"):
            mine = [
                row
                for row in timed
                if row["backbone"] == backbone and row["precision"] == precision
            ]
            assert mine, (backbone, precision)
            for row in mine:
                values = [row[name] for name in row if "latency" in name and "ours" in name]
                assert len(values) == len(GRAPHS)
                assert all(float(value) > 0 for value in values), row
    sharing = read(tables["S.1"]["csv"])
    assert {row["backbone"] for row in sharing} == set(BACKBONES)
    for row in sharing:
        pair, shared, change = (float(row[name]) for name in row if "in one run" in name)
        assert pair > 0, row
        assert shared > 0, row
        assert float(row["least [percent] ours"]) <= change <= float(row["most [percent] ours"])
    scored = read(tables["S.2"]["csv"])
    kinds = {(row["exported from"].split("/")[0], row["graph"], row["file"]) for row in scored}
    files = ("int8-trt", "int8-cpu")
    assert kinds == {(b, g, f) for b in BACKBONES for g in ("seg", "det", "dual") for f in files}
    for row in scored:
        assert row["scored on"].endswith(" test photos"), row
        heads = {"seg": ("mIoU",), "det": ("mAP",), "dual": ("mIoU", "mAP")}[row["graph"]]
        for head in heads:
            exact, own, drop = (
                float(row[f"{head} {what} [fraction] ours"]) for what in ("float", "int8", "drop")
            )
            assert 0 <= own <= 1, row
            assert drop == pytest.approx(exact - own, abs=1e-6), row


def read(path: str) -> list[dict[str, str]]:
    """A table's rows, its stamp left out."""
    lines = [line for line in Path(path).read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))
