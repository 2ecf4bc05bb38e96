"""Whatever is killed: the same command again ends with the table of an undisturbed sweep.

Every test kills real processes. Learning rates are published ones and a trial has one thread, so
that the two tables are equal to the bit.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sharedenc.mlflow_server import Server, free_port, serve
from tests.integration.sweeping import BASELINE, EPOCHS, SWAP, assert_whole, sweeping, table

pytestmark = [pytest.mark.slow, pytest.mark.long]
OUTAGE_S = 60.0


@pytest.fixture(scope="module")
def undisturbed(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The table of a sweep that nobody hurt."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with sweeping(folder, tiny_dataset) as sweep:
        process = sweep.start()
        answer = sweep.answer(process)
        assert (process.returncode, answer["exit_code"]) == (0, 0)
        with serve(folder / "runs") as server:
            rows = table(server.uri)
    assert_whole(rows)
    return rows


def private_table(folder: Path) -> dict[str, dict[str, Any]]:
    with serve(folder / "runs") as server:
        rows = table(server.uri)
    assert_whole(rows)
    return rows


def test_kill_9_of_a_trials_worker(
    undisturbed: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    with sweeping(tmp_path, tiny_dataset) as sweep:
        process = sweep.start()
        sweep.wait_for(BASELINE, 4, process)
        (worker,) = sweep.trial_workers()
        os.kill(worker, signal.SIGKILL)
        answer = sweep.answer(process)
        assert answer["exit_code"] == 0
        attempts = {row["cell"]: row["attempts"] for row in answer["cells"]}
        assert attempts == {BASELINE: 2, SWAP: 1}
        # It went on from its checkpoint: no epoch that was whole when it died was told again.
        told = [
            event["epoch"]
            for event in sweep.events()
            if (event["event"], event.get("trial")) == ("epoch", BASELINE)
        ]
        assert told[0] == 1
        assert set(told) == set(range(1, EPOCHS + 1))
        assert len(told) <= EPOCHS + 1
        assert private_table(tmp_path) == undisturbed


def test_kill_9_of_the_driver(
    undisturbed: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    with sweeping(tmp_path, tiny_dataset) as sweep:
        process = sweep.start()
        sweep.wait_for(BASELINE, 4, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        again = sweep.start()
        assert sweep.answer(again)["exit_code"] == 0
        # Nothing of the first invocation is left running.
        deadline = time.monotonic() + 120
        while sweep.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert sweep.processes() == []
        assert private_table(tmp_path) == undisturbed


def test_sigterm_saves_first(
    undisturbed: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    # Without regular checkpoints in the way: all that is kept is what the signal saved.
    with sweeping(tmp_path, tiny_dataset, options=("--checkpoint-every", "10h")) as sweep:
        process = sweep.start()
        sweep.wait_for(BASELINE, 5, process)
        process.send_signal(signal.SIGTERM)
        assert sweep.answer(process)["exit_code"] == 130
        before = max(e["epoch"] for e in sweep.events() if e["event"] == "epoch")
        seen = len(sweep.events())
        assert sweep.answer(sweep.start())["exit_code"] == 0
        after = [e for e in sweep.events()[seen:] if e["event"] == "epoch"]
        assert after[0]["trial"] == BASELINE
        assert after[0]["epoch"] == before + 1
        assert private_table(tmp_path) == undisturbed


def _outage(server: Server, root: Path, port: int, done: threading.Event) -> None:
    """Kill the server's whole process group and bring it back after a minute."""
    assert server.pid is not None
    os.killpg(server.pid, signal.SIGKILL)
    time.sleep(OUTAGE_S)
    with serve(root, port):
        done.wait(600)


@pytest.mark.parametrize(("trial", "epoch"), [(BASELINE, 4), (SWAP, 13)])
def test_kill_9_of_the_tracking_server_for_a_minute(
    trial: str, epoch: int, undisturbed: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    root, port, done = tmp_path / "server", free_port(), threading.Event()
    with serve(root, port) as server, sweeping(tmp_path, tiny_dataset, uri=server.uri) as sweep:
        process = sweep.start()
        sweep.wait_for(trial, epoch, process)
        outage = threading.Thread(target=_outage, args=(server, root, port, done))
        outage.start()
        try:
            answer = sweep.answer(process)
            assert answer["exit_code"] == 0, (tmp_path / "err").read_text()[-3000:]
            assert {row["cell"]: row["attempts"] for row in answer["cells"]} == {
                BASELINE: 1,
                SWAP: 1,
            }
            rows = table(server.uri)
        finally:
            done.set()
            outage.join()
    assert_whole(rows)
    assert rows == undisturbed


def test_a_private_server_that_is_killed_comes_back_by_itself(
    undisturbed: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    with sweeping(tmp_path, tiny_dataset) as sweep:
        process = sweep.start()
        sweep.wait_for(BASELINE, 4, process)
        with serve(tmp_path / "runs") as server:
            assert server.pid is not None
            os.killpg(server.pid, signal.SIGKILL)
        assert sweep.answer(process)["exit_code"] == 0, (tmp_path / "err").read_text()[-3000:]
        assert private_table(tmp_path) == undisturbed


def test_the_whole_machine_is_gone_but_for_server_and_storage(
    undisturbed: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    storage = ("--storage", str(tmp_path / "storage"))
    with serve(tmp_path / "server") as server:
        with sweeping(tmp_path / "a", tiny_dataset, uri=server.uri, options=storage) as sweep:
            process = sweep.start()
            sweep.wait_for(SWAP, 3, process)
            sweep.end_all()
            process.wait()
        shutil.rmtree(tmp_path / "a")
        with sweeping(tmp_path / "b", tiny_dataset, uri=server.uri, options=storage) as sweep:
            answer = sweep.answer(sweep.start())
            assert answer["exit_code"] == 0
            # The baseline was done: it is taken over; the swap goes on where its checkpoint was.
            trained = [e for e in sweep.events() if e["event"] == "epoch"]
            assert {event["trial"] for event in trained} == {SWAP}
            assert trained[0]["epoch"] >= 3
        rows = table(server.uri)
    assert_whole(rows)
    assert rows == undisturbed
