"""The grid added up: who calibrates, who trains together, what waits for what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import profile
from benchmarks.grid import (
    PARTS,
    Figures,
    Job,
    added_up,
    compare_trained,
    main,
    makespan_s,
    report,
    together,
)
from benchmarks.grid_parts import WAYS, Costs, Kind, compare
from benchmarks.protocol import Unequal
from sharedenc.data.packed import PackedDataset
from sharedenc.spec import Cell, Recipe
from sweeps.grid import full_grid

REFERENCE, FLOAT32, _ = WAYS
RESNET = full_grid(["resnet18"])


def job(name: str, seconds: float) -> Job:
    return Job((Cell.parse(name),), {"steps": seconds})


def test_of_the_44_cells_frozen_shares_go_together() -> None:
    groups = together(full_grid())
    assert len(groups) == 40
    pairs = [[cell.name for cell in group] for group in groups if len(group) > 1]
    assert pairs[0] == ["resnet18/share-frozen/det", "resnet18/share-frozen/seg"]
    assert len(pairs) == 4


def test_a_swap_waits_for_the_baseline_of_the_other_task() -> None:
    jobs = [
        job("resnet18/baseline/det", 5),
        job("resnet18/baseline/seg", 2),
        job("resnet18/swap-frozen/seg", 3),  # of the detection baseline
        job("resnet18/dual", 4),
    ]
    assert makespan_s(jobs, 1) == 14
    # One slot has 5 + 3, which nothing can shorten; the other 4 + 2.
    assert makespan_s(jobs, 2) == 8
    assert makespan_s(jobs, 9) == 8


def test_the_longest_remaining_path_starts_first() -> None:
    jobs = [
        job("resnet18/baseline/seg", 1),
        job("resnet18/share-bias/seg", 6),
        job("resnet18/swap-bias/det", 9),  # of the segmentation baseline
    ]
    # The short baseline first, for what follows it: 1 + 9 beside 6, instead of 6 + 1 + 9.
    assert makespan_s(jobs, 1) == 16
    assert makespan_s(jobs, 2) == 10


def figures(groups: Sequence[Sequence[Cell]]) -> Figures:
    costs = Costs({"step": 2.0, "validate": 1.0, "validate again": 0.25, "checkpoint": 0.5})
    return Figures(
        kinds={Kind.of(group): costs for group in groups},
        calibration={"resnet18": 0.1},
        data=0.01,
        scores={"val": 3.0, "test": 4.0},
        start=7.0,
    )


def test_the_reference_starts_and_calibrates_every_trial(tiny_pack: PackedDataset) -> None:
    recipe = Recipe(epochs=2, calibration_images=10)
    jobs = added_up(REFERENCE, RESNET, recipe, tiny_pack, figures([[c] for c in RESNET]))
    by_name = {job.cells[0].name: dict(job.seconds) for job in jobs}
    assert len(jobs) == 11
    # 12 training, 6 validation and 6 test pictures; 10 of the former calibrate.
    assert by_name["resnet18/baseline/det"] == pytest.approx(
        {
            "start": 7.0,
            "calibration": 1.0,
            "data": 0.24,
            "steps": 48.0,
            "validation": 7.5,
            "test": 6.0,
            "scores": 10.0,
            "checkpoint": 1.0,
        }
    )
    assert set(by_name["resnet18/dual"]) == set(PARTS)
    assert by_name["resnet18/swap-bias/seg"]["calibration"] == 0
    assert by_name["resnet18/swap-bias/seg"]["scores"] == 0
    assert sum(row["calibration"] for row in by_name.values()) == pytest.approx(7.0)
    assert sum(row["start"] for row in by_name.values()) == 77


def test_ours_calibrates_once_and_starts_a_process_per_slot(tiny_pack: PackedDataset) -> None:
    recipe = Recipe(epochs=2, calibration_images=10)
    groups = together(RESNET)
    jobs = added_up(FLOAT32, RESNET, recipe, tiny_pack, figures(groups))
    assert len(jobs) == 10
    assert sum(job.seconds["calibration"] for job in jobs) == pytest.approx(1.0)
    assert sum(job.seconds["start"] for job in jobs) == 7
    assert all(job.seconds["checkpoint"] == 0.5 for job in jobs)
    for slots in (2, 4):
        two = added_up(FLOAT32, RESNET, recipe, tiny_pack, figures(groups), slots=slots)
        started = [job.cells[0] for job in two if job.seconds["start"]]
        assert len(started) == slots
        assert all(cell.source is None for cell in started)
    given = added_up(FLOAT32, RESNET, recipe, tiny_pack, figures(groups), random_weights=False)
    assert sum(job.seconds["calibration"] for job in given) == 0


def test_losses_that_are_apart_are_no_result() -> None:
    compare([2.0, 4.0], [2.0001, 3.9998], 1e-4, "here")
    with pytest.raises(Unequal, match=r"here: 4\.002, reference 4\.0, limit 0\.0001"):
        compare([2.0, 4.0], [2.0, 4.002], 1e-4, "here")
    with pytest.raises(Unequal):
        compare([2.0], [float("nan")], 1e-4, "here")


ONE_CELL = ["--cells", "mobilenet_v3_large/share-frozen/*", "--image-px", "64"]


@pytest.mark.slow
def test_a_part_of_the_grid_is_measured_in_all_ways(tiny_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    small = ["--batch", "4", "--rounds", "2", "--epochs", "2"]
    assert main([*ONE_CELL, *small, "--data", str(tiny_dataset), "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [row["case"].rsplit(", ", 1)[1] for row in rows] == [
        f"{way}: {what}"
        for way in ("float32", "default")
        for what in ("CPU time", "scheduled wall on 2 slots", "CPU time of mobilenet_v3_large")
    ]
    for row in rows:
        assert row["ours"] > 0
    assert set(rows[0]["parts"]) == {"reference", "float32"}
    assert rows[0]["reference"] * 60 == pytest.approx(sum(rows[0]["parts"]["reference"].values()))


def told(said: str) -> list[str]:
    """Way and cell of what was trained, in this order."""
    return [line.split(":")[0] for line in said.splitlines() if " CPU and " in line]


def test_a_part_of_the_grid_is_trained_in_all_ways(
    tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ONE_CELL, "--real", "--data", str(tiny_dataset), "--json", "-"]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert [row["case"].rsplit(", ", 1)[1] for row in rows if "float32: " in row["case"]] == [
        "float32: CPU time",
        "one job after the other",
        "float32: scheduled wall on 2 slots",
        "float32: CPU time of mobilenet_v3_large",
    ]
    assert len(rows) == 8
    assert all(row["rounds"] == 1 for row in rows)
    assert told(said.err) == [
        f"{way} mobilenet_v3_large/share-frozen/{task}"
        for way in ("reference", "float32", "default")
        for task in ("det", "seg")
    ]
    assert rows[0]["check"].startswith("first epoch's train_loss compared to 0.03 (at most ")
    assert rows[4]["check"].startswith("first epoch's train_loss not compared (at most ")
    for row, way in ((rows[0], "float32"), (rows[4], "default")):
        assert set(row["found"]) == {f"mobilenet_v3_large/share-frozen/{t}" for t in ("det", "seg")}
        for cell in row["found"].values():
            assert set(cell) == {"reference", way}
            assert all(values["train_loss"] > 0 for values in cell.values())
        own = row["parts"][way]
        assert set(own) == {"calibration", *profile.PARTS}
        assert all(own[part] > 0 for part in ("calibration", "data", "encoder", "validation"))
        assert row["ours"] * 60 == pytest.approx(sum(own.values()))


def test_training_goes_on_where_an_earlier_call_ended(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.json"
    swap = ["--cells", "mobilenet_v3_large/baseline/seg", "mobilenet_v3_large/swap-frozen/det"]
    call = [*swap, "--image-px", "64", "--real", "--data", str(tiny_dataset), "--json", str(out)]
    assert main([*call, "--ways", "float32"]) == 0
    said = capsys.readouterr().err
    assert [line.split("/", 1)[1] for line in told(said)] == ["baseline/seg", "swap-frozen/det"]
    assert "no rows before all jobs of reference are there" in said
    assert json.loads(out.read_text()) == []
    # The last job's line is cut in half.
    journal = tmp_path / "rows.json.work" / "jobs.jsonl"
    whole = journal.read_text()
    journal.write_text(whole[: whole.index("\n") + 200])
    assert main([*call, "--ways", "reference,float32"]) == 0
    assert told(capsys.readouterr().err) == [
        "reference mobilenet_v3_large/baseline/seg",
        "reference mobilenet_v3_large/swap-frozen/det",
        "float32 mobilenet_v3_large/swap-frozen/det",
    ]
    rows = json.loads(out.read_text())
    assert len(rows) == 4
    journal.write_text(journal.read_text().replace('"code": "', '"code": "0', 1))
    assert main([*call, "--ways", "reference,float32"]) == 0
    said = capsys.readouterr().err
    assert told(said) == []
    assert "float32: 1 jobs were done by other code" in said
    again = json.loads(out.read_text())
    assert [row["ours"] for row in again] == [row["ours"] for row in rows]
    # Other settings: nothing of it counts.
    other = [*call, "--ways", "float32", "--epochs", "2"]
    assert main([*other, "--cells", swap[1]]) == 0
    said = capsys.readouterr().err
    assert len(told(said)) == 1
    assert "4 jobs have other settings" in said


def trained(loss: float, validation: float, wall_s: float = 1.0) -> Job:
    found = {"train_loss": loss, "val_loss": validation, "score": 0.1}
    cell = Cell.parse("resnet18/dual")
    return Job((cell,), {"rest": 1.0}, wall_s, {cell.name: found})


def test_trained_losses_that_are_apart_are_no_result() -> None:
    both = compare_trained(FLOAT32, [trained(2.0, 4.0)], [trained(2.01, 4.1)])
    assert both["resnet18/dual"]["float32"]["val_loss"] == 4.1
    with pytest.raises(Unequal, match=r"dual: train_loss 2\.07, reference 2\.0, limit 0\.03$"):
        compare_trained(FLOAT32, [trained(2.0, 4.0)], [trained(2.07, 4.0)])
    with pytest.raises(Unequal, match="val_loss"):
        compare_trained(FLOAT32, [trained(2.0, 4.0)], [trained(2.0, 4.5)])
    default = WAYS[2]
    compare_trained(default, [trained(2.0, 4.0)], [trained(2.2, 5.0)])
    with pytest.raises(Unequal, match="val_loss inf"):
        compare_trained(default, [trained(2.0, 4.0)], [trained(2.3, float("inf"))])
    rows = report({"reference": [trained(2.0, 4.0)], "default": [trained(2.2, 4.8)]}, "", 2, 1)
    assert rows[0]["check"] == (
        "first epoch's train_loss not compared (at most 0.1 apart), "
        "val_loss not compared (at most 0.2 apart)"
    )


def test_trained_jobs_are_scheduled_by_their_wall_time() -> None:
    assert makespan_s([trained(2.0, 4.0, wall_s=7.0)], 1) == 7.0
    assert makespan_s([job("resnet18/dual", 4)], 1) == 4.0


def test_ways_are_named_and_the_reference_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--ways", "reference,float16"])
    assert "no way float16; there are reference,float32,default" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--ways", "default"])
    assert "--ways without reference" in capsys.readouterr().err
