"""Whole trials on a dozen small pictures."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sharedenc.data.batch import train_batches
from sharedenc.models.build import build_network
from sharedenc.spec import Cell, Recipe, Trial, resolve_numerics
from sharedenc.training.checkpoint import load_network, read_checkpoint
from sharedenc.training.job import EpochReport, rank, score
from sharedenc.training.numerics import applied, forward, place
from tests.training.trials import SETTINGS, Bench, Stop, comparable

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset


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
    # Two epochs, their validation included, and the rest: start, test, pictures.
    assert 0 < 2 * record.metrics["epoch_s"] < record.metrics["seconds"]

    artifacts = tmp_path / "artifacts" / record.run_id
    found = {p.relative_to(artifacts).as_posix() for p in artifacts.rglob("*") if p.is_file()}
    pages = {"predictions/page.png", "predictions/page.json"}
    layout = {"checkpoint/best.safetensors", "result.json", "trial.json"} | pages
    assert found == layout
    assert Trial.from_dict(json.loads((artifacts / "trial.json").read_text())) == trial
    assert json.loads((artifacts / "result.json").read_text()) == result.to_dict()
    assert json.loads(record.tags["sharedenc.sha256"]) == {
        name: hashlib.sha256((artifacts / name).read_bytes()).hexdigest() for name in layout
    }
    # The lasting network and a small state that says that the trial is done.
    left = {path.name for path in (tmp_path / "dual").iterdir()}
    (state,) = (tmp_path / "dual").glob("state-*.ckpt")
    files = {"best.safetensors", "page.png", "page.json", "result.json", "trial.json"}
    assert left == files | {state.name}
    assert state.stat().st_size < 20_000

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
        bench.run(trial, "parts", interrupt, predictions=False, checkpoint_every="1epochs")
    interrupted = bench.tracker.runs("bench")[-1]
    assert interrupted.tags["sharedenc.state"] == "stopped"
    names = sorted(path.name for path in (bench.folder / "parts").glob("state-*"))
    assert [name[:21] for name in names] == ["state-000004-00000000", "state-000005-00000000"]
    parts, _ = bench.run(trial, "parts", predictions=False)
    assert whole.result is not None
    assert parts.result is not None

    assert comparable(parts.result.history) == comparable(whole.result.history)
    assert parts.result.test == whole.result.test
    files = [Path(result.checkpoint).read_bytes() for result in (parts.result, whole.result)]
    assert files[0] == files[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_trial_that_is_stopped_in_an_epoch_goes_on_to_the_same_bits(
    bench: Bench, workers: int
) -> None:
    trial = bench.trial("mobilenet_v3_large/baseline/seg", epochs=2)
    whole, _ = bench.run(trial, "whole", predictions=False)
    # An epoch has three steps and two validation batches; the seventh ask is in the second epoch.
    stopped, record = bench.run(trial, "parts", stop=Stop(7, "SIGTERM"), workers=workers)
    assert (stopped.state, stopped.reason, stopped.epochs_done) == ("stopped", "SIGTERM", 1)
    assert stopped.peak_memory_bytes > 1e8
    assert (record.tags["sharedenc.state"], record.status) == ("stopped", "KILLED")
    asked = Stop()
    parts, record = bench.run(
        trial, "parts", run_id=record.run_id, stop=asked, workers=workers, predictions=False
    )
    assert asked.asked == 10 - 6 + 2  # and two batches of the test split
    assert whole.result is not None
    assert parts.result is not None
    assert comparable(parts.result.history) == comparable(whole.result.history)
    assert parts.result.test == whole.result.test
    files = [Path(result.checkpoint).read_bytes() for result in (parts.result, whole.result)]
    assert files[0] == files[1]
    assert bench.rows(record) == {"val/loss": [1, 2], "score": [1, 2, 3], "test/mIoU": [3]}


def test_a_preempted_trial_goes_on_with_nothing_but_the_storage(
    bench: Bench, tmp_path: Path
) -> None:
    trial = bench.trial("resnet18/share-frozen/seg", epochs=2)
    places = {"storage": str(tmp_path / "storage"), "predictions": False}
    stop = Stop(8, "preempted: the machine is wanted")
    first, record = bench.run(trial, "here", stop=stop, **places)
    assert (first.state, first.epochs_done) == ("preempted", 1)
    asked = Stop()
    second, record = bench.run(trial, "there", run_id=record.run_id, stop=asked, **places)
    assert (second.state, asked.asked) == ("done", 10 - 7 + 2)
    assert bench.rows(record) == {"val/loss": [1, 2], "score": [1, 2, 3], "test/mIoU": [3]}
    third, _ = bench.run(trial, "yonder", lambda _: pytest.fail("trained again"), **places)
    assert third.result is not None
    assert second.result is not None
    assert third.result.test == second.result.test


def test_a_final_trial_takes_over_what_its_search_has_trained(bench: Bench) -> None:
    trial = bench.trial("resnet18/share-frozen/seg", epochs=2)
    search, record = bench.run(trial, "trial", test=False, predictions=False)
    assert bench.rows(record) == {"val/loss": [1, 2], "score": [1, 2, 3], "test/mIoU": []}
    final, other = bench.run(trial, "trial", lambda _: pytest.fail("trained again"))
    assert bench.rows(other) == {"val/loss": [1, 2], "score": [1, 2, 3], "test/mIoU": [3]}
    assert bench.tracker.history(other.run_id, "val/loss") == bench.tracker.history(
        record.run_id, "val/loss"
    )
    assert search.result is not None
    assert final.result is not None
    assert final.result.history == search.result.history
    assert (final.result.test != {}, search.result.test) == (True, {})
    told: list[int] = []
    bench.run(
        trial,
        "trial",
        lambda report: bool(told.append(report.epoch)),
        fresh=True,
        test=False,
        predictions=False,
    )
    assert told == [1, 2]


def test_no_row_is_lost_or_doubled_whatever_happens(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.trial("resnet18/share-frozen/seg", epochs=3)

    def die(report: EpochReport) -> bool:
        # The rows of three epochs are sent, the state of two is saved.
        if report.epoch == 3:
            raise OSError(5, "Input/output error")
        return False

    died, record = bench.run(trial, "t", die, checkpoint_every="2epochs", predictions=False)
    assert (died.state, died.kind, died.error) == ("failed", "machine", "OSError")
    assert died.epochs_done == 3
    assert bench.rows(record)["val/loss"] == [1, 2, 3]

    with monkeypatch.context() as patch:
        # The third epoch is trained again; the rows of the end are sent, the files are not.
        patch.setattr("sharedenc.training.member.upload", lambda *_: 1 / 0)
        failed, record = bench.run(trial, "t", run_id=record.run_id, predictions=False)
        assert failed.error == "ZeroDivisionError"
    done, record = bench.run(trial, "t", run_id=record.run_id, predictions=False)
    assert done.state == "done"
    assert bench.rows(record) == {"val/loss": [1, 2, 3], "score": [1, 2, 3, 4], "test/mIoU": [4]}
    assert len(bench.tracker.history(record.run_id, "params/total")) == 1
    assert done.result is not None
    assert record.metrics["score"] == done.result.score


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


def test_a_search_trial_keeps_no_artifacts_and_its_winner_is_the_final_trial(bench: Bench) -> None:
    trial = bench.trial("resnet18/share-frozen/seg", epochs=1)
    searched, record = bench.run(trial, "w", keep=False, predictions=False, test=False)
    assert searched.state == "done"
    assert bench.tracker.files(record.run_id) == {}
    told: list[int] = []
    final, record = bench.run(trial, "w", lambda report: told.append(report.epoch) is not None)
    assert (final.state, told) == ("done", [])
    assert "checkpoint/best.safetensors" in bench.tracker.files(record.run_id)
    assert "test/mIoU" in record.metrics


def test_a_trial_that_is_cut_keeps_its_state_and_no_artifacts(bench: Bench) -> None:
    trial = bench.trial("resnet18/share-frozen/seg", epochs=3)
    outcome, record = bench.run(trial, "cut", lambda report: report.epoch == 1)
    assert outcome.state == "stopped"
    assert outcome.result is not None
    assert outcome.result.test == {}
    assert (record.tags["sharedenc.state"], record.status) == ("stopped", "KILLED")
    assert not (bench.tracker.folder / record.run_id).exists()
    (state,) = (bench.folder / "cut").glob("state-*.ckpt")
    assert state.name.startswith("state-000001-00000000-")
    again, record = bench.run(trial, "cut", run_id=record.run_id, test=False, predictions=False)
    assert (again.state, again.epochs_done) == ("done", 3)
    assert bench.rows(record)["score"] == [1, 2, 3, 4]


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


def test_out_of_memory_names_a_batch_that_should_fit(bench: Bench) -> None:
    def exhaust(_: EpochReport) -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 900.00 GiB.")

    outcome, record = bench.run(bench.trial("resnet18/share-frozen/seg", epochs=1), "t", exhaust)
    assert (outcome.state, outcome.kind, outcome.error) == ("failed", "oom", "OutOfMemoryError")
    assert outcome.reason is not None
    assert outcome.reason.startswith("out of memory at batch size 4 and 64 px")
    assert record.tags["sharedenc.reason"] == outcome.reason
    assert record.tags["sharedenc.failure_kind"] == "oom"


def test_a_dual_is_ranked_by_its_distance_from_the_baselines() -> None:
    metrics = {"val/mAP": 0.3, "val/mIoU": 0.66}
    dual, seg = Cell.parse("resnet18/dual"), Cell.parse("resnet18/baseline/seg")
    # (0.3 / 0.2 - 1 + 0.66 / 0.6 - 1) / 2 = (0.5 + 0.1) / 2
    assert rank(dual, metrics, {"det": 0.2, "seg": 0.6}) == pytest.approx(30.0)
    assert rank(dual, {}, {"det": 0.2, "seg": 0.6}) == pytest.approx(-100.0)
    for baselines in ({}, {"det": 0.2}, {"det": 0.0, "seg": 0.6}):
        assert rank(dual, metrics, baselines) == pytest.approx(0.48)
    assert rank(seg, metrics, {"det": 0.2, "seg": 0.6}) == pytest.approx(0.66)


def test_reports_carry_score_rank_and_time(bench: Bench) -> None:
    reports: list[EpochReport] = []
    trial = bench.trial("resnet18/dual", epochs=1)
    more: dict[str, Any] = {"test": False, "predictions": False}
    before = time.time()
    bench.run(
        trial,
        "t",
        lambda report: bool(reports.append(report)),
        baselines={"det": 0.5, "seg": 0.5},
        **more,
    )
    (report,) = reports
    scores = report.metrics["val/mAP"], report.metrics["val/mIoU"]
    assert report.metrics["score"] == pytest.approx(sum(scores) / 2)
    assert report.rank == pytest.approx(100 * (sum(scores) - 1))
    assert report.at_ms is not None
    assert before <= report.at_ms / 1000 + 0.001


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
