"""Whole trials on a dozen small pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sharedenc.data.batch import train_batches
from sharedenc.errors import CheckpointError
from sharedenc.models.build import build_network
from sharedenc.spec import Cell, Recipe, Trial, resolve_numerics
from sharedenc.tracking import MemoryTracker, RunRecord
from sharedenc.training.checkpoint import load_network, read_checkpoint
from sharedenc.training.job import EpochReport, OnEpoch, failure_kind, score, trial_tags
from sharedenc.training.numerics import applied, forward, place
from sharedenc.training.run import Outcome, TrialJob, run_and_record

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

SETTINGS: dict[str, Any] = {
    "image_px": 64,
    "batch_size": 4,
    "calibration_images": 8,
    "precision": "float32",
}


class Bench:
    """Runs trials on one pack into one memory tracker."""

    def __init__(self, pack: PackedDataset, folder: Path) -> None:
        self.pack, self.folder = pack, folder
        self.tracker = MemoryTracker(folder / "artifacts")
        self.parent = self.tracker.study("bench", {})

    def trial(self, cell: str, lr: float = 1e-3, parent: str | None = None, **more: Any) -> Trial:
        parsed = Cell.parse(cell)
        recipe = Recipe.from_dict(SETTINGS | more)
        return Trial(
            cell=parsed,
            recipe=recipe,
            lr=lr,
            seed=0,
            data_digest=self.pack.digest,
            weights_digest="none",
            numerics=resolve_numerics(recipe, parsed.backbone, "cpu", "2.14"),
            parent_key=parent,
        )

    def run(
        self,
        trial: Trial,
        folder: str,
        on_epoch: OnEpoch | None = None,
        parent: Path | None = None,
        **more: Any,
    ) -> tuple[Outcome, RunRecord]:
        tags = trial_tags(
            trial, study="bench", stage="s", data=self.pack.name, classes=self.pack.classes
        )
        run = self.tracker.child("bench", self.parent, trial.cell.name, tags)
        job = TrialJob(
            trial=trial,
            pack=self.pack.root,
            weights="none",
            parent=parent,
            work_dir=self.folder / folder,
            device="cpu",
            **more,
        )
        outcome = run_and_record(job, run, on_epoch)
        return outcome, self.record(run.run_id)

    def record(self, run_id: str) -> RunRecord:
        return next(r for r in self.tracker.runs("bench") if r.run_id == run_id)


@pytest.fixture
def bench(tiny_pack: PackedDataset, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tiny_pack, tmp_path)
    yield bench
    bench.tracker.close()


def test_a_dual_trial_leaves_the_run_that_the_layout_asks_for(bench: Bench, tmp_path: Path) -> None:
    trial = bench.trial("resnet18/dual", epochs=2)
    outcome, record = bench.run(trial, "dual")
    assert outcome.state == "done", outcome.traceback
    result = outcome.result
    assert result is not None

    assert record.status == "FINISHED"
    assert record.tags["sharedenc.state"] == "done"
    assert record.tags["sharedenc.key"] == trial.key
    assert json.loads(record.tags["sharedenc.classes"]) == list(bench.pack.classes.names)
    assert record.params["recipe.alpha"] == "6.0"
    assert record.params["numerics.precision"] == "float32"
    for task in ("", "_det", "_seg"):
        steps = [step for step, _ in bench.tracker.history(record.run_id, f"train/loss{task}")]
        assert steps == [1, 2]
    ten = {f"test/AP_{0.5 + 0.05 * place:.2f}" for place in range(10)}
    wanted = {"val/mAP", "val/mIoU", "lr", "images_per_s", "test/mAP", "test/pixel_acc", "score"}
    assert wanted | ten <= set(record.metrics)
    assert record.metrics["params/total"] == record.metrics["params/trainable"] == 12_104_750
    assert record.metrics["params/encoder"] == 11_176_512
    assert record.metrics["peak_memory_bytes"] > 1e8

    artifacts = tmp_path / "artifacts" / record.run_id
    found = {p.relative_to(artifacts).as_posix() for p in artifacts.rglob("*") if p.is_file()}
    layout = {"checkpoint/best.safetensors", "predictions/page.png", "result.json", "trial.json"}
    assert found == layout
    assert Trial.from_dict(json.loads((artifacts / "trial.json").read_text())) == trial
    assert json.loads((artifacts / "result.json").read_text()) == result.to_dict()
    assert not (tmp_path / "dual" / "last.pt").exists()

    network, meta = load_network(artifacts / "checkpoint/best.safetensors")
    assert (network.tasks, meta["key"], meta["image_px"]) == (("det", "seg"), trial.key, 64)
    best = min(result.history, key=lambda row: row["val/loss"])
    assert result.val["loss"] == best["val/loss"]
    assert result.score == pytest.approx((best["val/mAP"] + best["val/mIoU"]) / 2)


@pytest.mark.slow
def test_ten_epochs_equal_five_plus_resume_plus_five_on_a_real_network(bench: Bench) -> None:
    trial = bench.trial("mobilenet_v3_large/baseline/seg", epochs=10, plateau_patience=1)

    def interrupt(report: EpochReport) -> bool:
        if report.epoch == 6:
            raise KeyboardInterrupt
        return False

    whole, _ = bench.run(trial, "whole", predictions=False)
    with pytest.raises(KeyboardInterrupt):
        bench.run(trial, "parts", interrupt, predictions=False)
    interrupted = bench.tracker.runs("bench")[-1]
    assert interrupted.tags["sharedenc.state"] == "stopped"
    assert (bench.folder / "parts" / "last.pt").exists()
    parts, _ = bench.run(trial, "parts", predictions=False)
    assert whole.result is not None
    assert parts.result is not None

    def comparable(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in rows]

    assert comparable(parts.result.history) == comparable(whole.result.history)
    assert parts.result.test == whole.result.test
    files = [Path(result.checkpoint).read_bytes() for result in (parts.result, whole.result)]
    assert files[0] == files[1]


def test_a_frozen_swap_keeps_the_encoder_of_the_other_task(bench: Bench) -> None:
    source = bench.trial("resnet18/baseline/det", epochs=1)
    first, _ = bench.run(source, "source", test=False, predictions=False)
    assert first.result is not None
    parent = Path(first.result.checkpoint)
    trial = bench.trial("resnet18/swap-frozen/seg", parent=source.key, epochs=1)
    second, record = bench.run(trial, "swap", parent=parent, predictions=False)
    assert second.result is not None, second.traceback
    assert record.metrics["params/trainable"] == 136_746
    before, _ = read_checkpoint(parent)
    after, meta = read_checkpoint(Path(second.result.checkpoint))
    encoder = [name for name in before if name.startswith("encoder.")]
    assert len(encoder) == 120
    assert all(before[name].equal(after[name]) for name in encoder)
    assert meta["cell"] == "resnet18/swap-frozen/seg"


def test_a_trial_that_is_cut_keeps_its_state_and_no_artifacts(bench: Bench) -> None:
    trial = bench.trial("resnet18/share-frozen/seg", epochs=3)
    outcome, record = bench.run(trial, "cut", lambda report: report.epoch == 1)
    assert outcome.state == "stopped"
    assert outcome.result is not None
    assert outcome.result.test == {}
    assert (record.tags["sharedenc.state"], record.status) == ("stopped", "KILLED")
    assert not (bench.tracker.folder / record.run_id).exists()
    assert (bench.folder / "cut" / "last.pt").exists()


def test_failures_have_a_name_and_a_kind(bench: Bench, tmp_path: Path) -> None:
    exploding, record = bench.run(bench.trial("resnet18/baseline/seg", lr=1e30), "nan")
    assert (exploding.state, exploding.kind, exploding.exit_code) == ("failed", "code", 6)
    assert exploding.reason is not None
    assert "resnet18/baseline/seg, epoch 1" in exploding.reason
    assert record.tags["sharedenc.state"] == "failed"
    assert record.tags["sharedenc.reason"] == exploding.reason
    assert "NonFiniteLossError" in record.tags["sharedenc.traceback"]
    assert record.status == "FAILED"

    swap = bench.trial("resnet18/swap-bias/det", parent="0" * 64)
    (tmp_path / "broken").write_bytes(b"not a checkpoint")
    broken, record = bench.run(swap, "swap", parent=tmp_path / "broken")
    assert (broken.kind, record.tags["sharedenc.failure_kind"]) == ("data", "data")
    missing, _ = bench.run(swap, "swap")
    assert missing.reason is not None
    assert "resnet18/baseline/seg" in missing.reason

    other = Trial.from_dict(swap.to_dict() | {"data_digest": "1" * 64})
    wrong, _ = bench.run(other, "other")
    assert wrong.reason is not None
    assert "digest" in wrong.reason


def test_errors_are_sorted_by_whose_fault_they_are() -> None:
    assert failure_kind(MemoryError()) == "oom"
    assert failure_kind(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) == "oom"
    assert failure_kind(ConnectionResetError()) == "machine"
    assert failure_kind(CheckpointError("cut")) == "data"
    assert failure_kind(ZeroDivisionError()) == "code"


def test_scores_rank_by_the_cells_own_tasks() -> None:
    metrics = {"val/mAP": 0.2, "val/mIoU": 0.6, "val/loss": 9.0}
    cells = ("resnet18/baseline/det", "resnet18/baseline/seg", "resnet18/dual")
    found = [score(Cell.parse(cell), metrics, "val/") for cell in cells]
    assert found == pytest.approx([0.2, 0.6, 0.4])


def test_bfloat16_and_channels_last_stay_near_float32(tiny_pack: PackedDataset) -> None:
    recipe = Recipe.from_dict(SETTINGS)
    batch = next(train_batches(tiny_pack.split("train"), recipe, seed=0, epoch=1))
    outputs = {}
    for precision, layout in (("float32", "contiguous"), ("bfloat16", "channels_last")):
        chosen = Recipe.from_dict(SETTINGS | {"precision": precision, "memory_format": layout})
        numerics = resolve_numerics(chosen, "resnet18", "cpu", "2.14")
        network = place(build_network("resnet18", ["seg"], 5, seed=0), numerics, "cpu").train()
        threads = torch.get_num_threads()
        with applied(numerics), torch.no_grad():
            assert torch.get_num_threads() == 1
            outputs[precision] = forward(network, batch.images, numerics)["seg_logits"]
        assert torch.get_num_threads() == threads
    assert outputs["bfloat16"].dtype == torch.bfloat16
    assert outputs["bfloat16"].is_contiguous(memory_format=torch.channels_last)
    difference = (outputs["bfloat16"].float() - outputs["float32"]).std()
    assert 0 < difference < 0.1 * outputs["float32"].std()
