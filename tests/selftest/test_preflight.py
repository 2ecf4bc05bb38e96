"""One cell of each kind through the real code path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sharedenc import spec
from sharedenc.models import encoders, plugins
from sharedenc.models.plugins import load_plugin
from sharedenc.selftest.check import check_cell
from sharedenc.selftest.child import Child, ChildDiedError
from sharedenc.selftest.jobs import fingerprint, job_from_dict, job_to_dict
from sharedenc.selftest.preflight import chosen, in_child, preflight, probe
from sharedenc.selftest.rows import Checked
from tests.selftest.conftest import MakeJob

STAGES = {"build", "train", "validate", "checkpoint", "reload", "resume", "export"}
DYING = """
import os, signal
from sharedenc.models.plugins import register_encoder

def build():
    os.kill(os.getpid(), signal.SIGKILL)

register_encoder("dying", build, lr=1e-3)
"""


@pytest.fixture
def dying_plugin(tmp_path: Path) -> Iterator[Path]:
    """A plugin whose encoder kills the process that builds it."""
    tables: tuple[dict[Any, Any], ...] = (
        spec.BACKBONES,
        encoders.ENCODERS,
        plugins._LOADED,
    )
    before = [dict(table) for table in tables]
    path = tmp_path / "dying.py"
    path.write_text(DYING)
    load_plugin(path, check=False)
    yield path
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def test_a_cell_goes_through_every_stage(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("mobilenet_v3_large/dual")
    row = check_cell(job, steps=2, val_images=2)
    assert row.ok, row.traceback
    assert set(row.stages) == STAGES
    # 4,276,326 trained parameters and 24,400 running statistics of the encoder, float32.
    assert row.checkpoint_bytes is not None
    assert row.checkpoint_bytes > 4 * (4_276_326 + 24_400)
    assert row.onnx_bytes is not None
    assert row.onnx_bytes > 4 * 4_200_000
    assert row.step_s is not None
    assert row.step_s > 0
    assert row.peak_memory_bytes is not None
    assert row.peak_memory_bytes > 1e8
    # What was trained: one step of four pictures in each of two epochs.
    result = json.loads((job.work_dir / "tracked").rglob("result.json").__next__().read_text())
    assert (result["epochs"], result["test"]) == (2, {})
    assert Checked.from_dict(row.to_dict()) == row


def test_a_swap_gets_its_parent_on_the_fly(make_job: MakeJob) -> None:
    job = make_job("mobilenet_v3_large/swap-frozen/seg")
    row = check_cell(job, val_images=2, export=False)
    assert row.ok, row.traceback
    assert (job.work_dir / "parent.safetensors").exists()
    assert "export" not in row.stages


def test_what_is_raised_becomes_a_row_with_its_kind_and_stage(make_job: MakeJob) -> None:
    job = make_job("mobilenet_v3_large/baseline/seg", weights_digest="f" * 64)
    row = check_cell(job)
    assert (row.ok, row.kind, row.error) == (False, "data", "WeightsError")
    assert "ffffffff" in row.reason
    assert "check.py" in row.traceback
    other = replace(make_job("mobilenet_v3_large/baseline/seg"), work_dir=job.work_dir / "other")
    endless = check_cell(replace(other, trial=replace(other.trial, lr=1e30)))
    assert (endless.ok, endless.kind, endless.stage) == (False, "code", "train")
    assert endless.error == "NonFiniteLossError"


def test_one_job_per_backbone_and_graph_the_one_that_trains_most(make_job: MakeJob) -> None:
    names = [
        "resnet18/swap-frozen/seg",
        "resnet18/share-bias/seg",
        "resnet18/baseline/seg",
        "resnet18/swap-bias/det",
        "resnet18/share-frozen/det",
        "resnet18/share-bias/det",
        "mobilenet_v3_large/swap-frozen/det",
        "resnet18/dual-frozen",
    ]
    assert [job.trial.cell.name for job in chosen(map(make_job, names))] == [
        "resnet18/baseline/seg",
        "resnet18/share-bias/det",
        "mobilenet_v3_large/swap-frozen/det",
        "resnet18/dual-frozen",
    ]


def test_what_passed_is_remembered_until_something_changes(
    make_job: MakeJob, tmp_path: Path
) -> None:
    memory = tmp_path / "memory"
    job = make_job("mobilenet_v3_large/share-frozen/seg")
    told: list[Checked] = []
    (first,) = preflight([job], told.append, remember=memory)
    (second,) = preflight([make_job(job.trial.cell.name, lr=5e-4)], remember=memory)
    assert first.ok, first.traceback
    assert told == [first]
    assert not first.remembered
    assert second == replace(first, remembered=True)

    (kept,) = memory.iterdir()
    kept.write_text(kept.read_text()[:40])
    (third,) = preflight([job], remember=memory)
    assert third.ok
    assert not third.remembered


def test_a_fingerprint_changes_with_what_could_change_the_outcome(make_job: MakeJob) -> None:
    job = make_job("resnet18/baseline/seg")
    same = replace(job, trial=replace(job.trial, lr=0.5, seed=7))
    assert fingerprint(same) == fingerprint(job)
    others = [
        make_job("resnet18/share-bias/seg"),
        make_job("resnet18/baseline/seg", batch_size=8),
        replace(job, trial=replace(job.trial, data_digest="e" * 64)),
        replace(job, workers=2),
    ]
    found = {fingerprint(one) for one in [job, *others]} | {fingerprint(job, steps=4)}
    assert len(found) == len(others) + 2


def test_a_job_survives_the_way_to_a_child(make_job: MakeJob) -> None:
    job = make_job("resnet18/swap-bias/det")
    assert job_from_dict(json.loads(json.dumps(job_to_dict(job)))) == job


def test_a_cell_that_kills_its_process_is_a_row_and_the_others_go_on(
    make_job: MakeJob, dying_plugin: Path
) -> None:
    bad = replace(make_job("dying/baseline/seg"), plugins=(str(dying_plugin),))
    good = make_job("mobilenet_v3_large/baseline/seg")
    told: list[str] = []
    rows = in_child([bad, good], lambda row: told.append(row.cell))
    assert [row.ok for row in rows] == [False, True], rows
    assert told == ["dying/baseline/seg", "mobilenet_v3_large/baseline/seg"]
    assert (rows[0].kind, rows[0].error) == ("oom", "ChildDied")
    assert "SIGKILL" in rows[0].reason


def test_a_child_that_does_not_answer_in_time_is_ended() -> None:
    with Child() as child, pytest.raises(ChildDiedError, match="no answer within 0 s") as caught:
        child.call({"do": "environment", "device": "cpu"}, deadline_s=0.0)
    assert caught.value.row("x").kind == "machine"


@pytest.mark.slow
def test_a_probe_times_what_computes_the_same_once(make_job: MakeJob) -> None:
    names = ("share-frozen/seg", "swap-frozen/seg", "share-frozen/seg")
    jobs = [make_job(f"mobilenet_v3_large/{name}") for name in names]
    rows = probe(jobs, steps=2, val_images=2)
    assert [row["strategy"] for row in rows] == ["share", "swap"]
    assert [row["cell"] for row in rows] == [job.trial.cell.name for job in jobs[:2]]
    assert rows[0]["ok"], rows[0]["traceback"]
    assert rows[0]["step_s"] == rows[1]["step_s"]
    assert (rows[0]["batch_size"], rows[0]["image_px"], rows[0]["graph"]) == (4, 64, "seg")
