"""Frozen trials together through a real Ray, and what is left of them when it is killed.

The table at the end is that of a sweep that trained them one by one, to the bit.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sharedenc.mlflow_server import serve
from tests.integration.sweeping import EPOCHS, Sweep, sweeping, table

pytestmark = [pytest.mark.slow, pytest.mark.long]

DET, SEG = "resnet18/share-frozen/det", "resnet18/share-frozen/seg"
ONE: dict[str, Any] = {"only": "resnet18/share-frozen/*", "options": ("--concurrent", "1")}


def ended(folder: Path) -> dict[str, dict[str, Any]]:
    with serve(folder / "runs") as server:
        rows = table(server.uri)
    for name, row in rows.items():
        assert (row["state"], row["status"]) == ("done", "FINISHED"), name
        for metric in ("train/loss", "val/loss", "lr"):
            steps = [step for step, _ in row["history"][metric]]
            assert steps == list(range(1, EPOCHS + 1)), (name, metric)
    assert sorted(rows) == [DET, SEG]
    return rows


def groups(sweep: Sweep) -> list[list[str]]:
    """Who started together, start by start."""
    starts = [event for event in sweep.events() if event["event"] == "start"]
    return [event.get("together") or [event["trial"]] for event in starts]


@pytest.fixture(scope="module")
def one_by_one(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The table of a sweep that trains each alone."""
    folder = tmp_path_factory.mktemp("apart")
    with sweeping(folder, tiny_dataset, **ONE) as sweep:
        process = sweep.start("--fuse", "off")
        assert sweep.answer(process)["exit_code"] == 0
        assert {len(group) for group in groups(sweep)} == {1}
    return ended(folder)


def test_a_group_whose_worker_is_killed_comes_back_alone(
    one_by_one: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    with sweeping(tmp_path, tiny_dataset, **ONE) as sweep:
        process = sweep.start()
        sweep.wait_for(DET, 4, process)
        (worker,) = sweep.trial_workers()
        os.kill(worker, signal.SIGKILL)
        answer = sweep.answer(process)
        assert answer["exit_code"] == 0
        attempts = {row["cell"]: row["attempts"] for row in answer["cells"]}
        assert (attempts[DET], attempts[SEG]) == (2, 2)
        # Told at the start of each of its members, and then each by itself.
        assert sorted(map(sorted, groups(sweep))) == [[DET], [DET, SEG], [DET, SEG], [SEG]]
        assert ended(tmp_path) == one_by_one


def test_a_sweep_that_is_killed_goes_on_together_where_it_was(
    one_by_one: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    with sweeping(tmp_path, tiny_dataset, **ONE) as sweep:
        process = sweep.start()
        sweep.wait_for(SEG, 4, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        first = len(sweep.events())
        answer = sweep.answer(sweep.start())
        assert answer["exit_code"] == 0
        later = [e for e in sweep.events()[first:] if e["event"] == "start" and e.get("together")]
        assert {tuple(sorted(event["together"])) for event in later} == {(DET, SEG)}
        told = {
            e["epoch"]
            for e in sweep.events()[first:]
            if e["event"] == "epoch" and e["trial"] == SEG
        }
        assert min(told) >= 4  # from its checkpoint, not from the start
        assert ended(tmp_path) == one_by_one
