"""Curves, predictions and provenance, from plain rows and from a real MLflow server."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mlflow import MlflowClient

from sharedenc.evaluation.layout import PageLayout, PagePhoto
from sharedenc.report.collect import StudyRows, TrialRow, collect, study_rows
from sharedenc.report.curves import MOST_POINTS, representative, shown_trials, thinned
from sharedenc.report.evidence import Evidence, gather
from sharedenc.report.photos import chosen_ids, cut, side_by_side
from sharedenc.report.provenance import provenance
from sharedenc.tracking import REUSED_FROM, MlflowTracker, Point
from tests.report.study import bench, grid, run, versions

COLOURS = {"truth": (40, 200, 40), "resnet18/dual": (200, 40, 40), "other": (40, 40, 200)}


def rows_of(runs: list[Any]) -> StudyRows:
    return study_rows("written", runs, [], [])


def trial(cell_seed: int = 0, **changes: Any) -> TrialRow:
    (row,) = rows_of([run("resnet18", "dual", seed=cell_seed)]).final
    return replace(row, **changes)


# Which curves, and how long ones become short.


def test_a_long_curve_keeps_its_ends_and_its_best_point() -> None:
    points = [(step, math.sin(step)) for step in range(1, 5001)]
    points[3332] = (3333, 9.0)
    points[1110] = (1111, -9.0)
    score, loss = thinned(points, "val/mAP"), thinned(points, "val/loss")
    for curve, best in ((score, (3333, 9.0)), (loss, (1111, -9.0))):
        assert MOST_POINTS - 1 <= len(curve) <= MOST_POINTS
        assert (curve[0], curve[-1]) == (points[0], points[-1])
        assert best in curve
        steps = [step for step, _ in curve]
        # Evenly: 4,999 steps in 198 gaps are 25.2 each.
        even = [step for step in steps if step != best[0]]
        assert {b - a for a, b in itertools.pairwise(even)} <= {25, 26}
    assert (1111, -9.0) not in score


def test_a_short_curve_is_kept_whole_but_for_what_is_no_number() -> None:
    points = [(2, 0.5), (1, 0.25), (3, math.nan), (4, math.inf), (2, 0.75)]
    assert thinned(points, "val/loss") == ((1, 0.25), (2, 0.75))


def test_a_cell_is_represented_by_its_best_finished_seed() -> None:
    weak, strong = trial(metrics={"score": 0.2}), trial(seed=1, metrics={"score": 0.4})
    failed = trial(seed=2, state="failed", metrics={"score": 0.9}, changed_ms=10**9)
    assert representative([weak, strong, failed]) == [strong]
    assert representative([failed]) == [failed]


def test_all_curves_of_a_small_study_and_one_seed_of_each_cell_of_a_large_one() -> None:
    runs = [row for seed in range(2) for row in grid(seed=seed)]
    trained = [
        replace(row, metrics={**row.metrics, "val/loss": 1.0, "score": row.seed or 0.0})
        for row in rows_of(runs).final
    ]
    assert shown_trials(trained[:60]) == (trained[:60], [])
    chosen, notes = shown_trials(trained)
    assert len(chosen) == 44
    assert {row.seed for row in chosen} == {1}
    assert "44 of 88 trials" in notes[0]
    # One that was skipped has no curve, and is not counted.
    assert shown_trials([trial(state="skipped", metrics={})]) == ([], [])


# Cutting pages.


def page(folder: Path, colour: tuple[int, int, int], tasks: tuple[str, ...], **more: Any) -> Path:
    """A page of three photos: the truth in its colour, each prediction in ``colour`` (RGB)."""
    ids, objects = more.get("ids", (7, 8, 9)), more.get("objects", (1, 0, 2))
    pixels = np.full((330, 220, 3), 255, np.uint8)
    photos = []
    for place, (number, count) in enumerate(zip(ids, objects, strict=True)):
        top = 110 * place
        pixels[top + 5 : top + 105, 5:105] = COLOURS["truth"]
        pixels[top + 5 : top + 105, 115:215] = colour
        truth, prediction = (5, top + 5, 100, 100), (115, top + 5, 100, 100)
        photos.append(PagePhoto(image_id=number, objects=count, truth=truth, prediction=prediction))
    folder.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(folder / "page.png"), pixels[:, :, ::-1])
    layout = PageLayout(width=220, height=330, tasks=tasks, split="test", photos=tuple(photos))
    (folder / "page.json").write_text(layout.to_json())
    return folder


def colour_of(jpeg: bytes) -> tuple[int, ...]:
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return tuple(round(float(value)) for value in pixels.mean(axis=(0, 1))[::-1])


def near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 3


def test_each_cells_tile_of_one_photo_stands_beside_the_truth(tmp_path: Path) -> None:
    pages = {
        "a/dual": page(tmp_path / "1", COLOURS["resnet18/dual"], ("det", "seg")),
        "a/baseline/det": page(tmp_path / "2", COLOURS["other"], ("det",)),
    }
    photos, notes = side_by_side({cell: cut(folder) for cell, folder in pages.items()})
    # Those with objects first, and then in the order of the page.
    assert [photo.image_id for photo in photos] == ["7", "8", "9"]
    assert notes == []
    for photo in photos:
        assert sorted(photo.truth) == ["both", "det"]
        assert near(colour_of(photo.truth["det"]), COLOURS["truth"])
        assert near(colour_of(photo.predictions["a/dual"]), COLOURS["resnet18/dual"])
        assert near(colour_of(photo.predictions["a/baseline/det"]), COLOURS["other"])


def test_large_tiles_are_made_small(tmp_path: Path) -> None:
    layout = PageLayout(
        width=640,
        height=320,
        tasks=("seg",),
        split="test",
        photos=(
            PagePhoto(image_id=1, objects=0, truth=(0, 0, 320, 160), prediction=(0, 0, 100, 50)),
        ),
    )
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (320, 640, 3), dtype=np.uint8)
    assert cv2.imwrite(str(tmp_path / "page.png"), noise)
    (tmp_path / "page.json").write_text(layout.to_json())
    tiles = cut(tmp_path)
    shapes = {
        name: cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape[:2]
        for name, jpeg in (("truth", tiles.truth[1]), ("prediction", tiles.predictions[1]))
    }
    assert shapes == {"truth": (112, 224), "prediction": (50, 100)}


def layout_of(objects: list[int], first: int = 0) -> PageLayout:
    photos = tuple(
        PagePhoto(
            image_id=first + place, objects=count, truth=(0, 0, 1, 1), prediction=(0, 0, 1, 1)
        )
        for place, count in enumerate(objects)
    )
    return PageLayout(width=1, height=1, tasks=("seg",), split="test", photos=photos)


def test_photos_with_objects_come_first_and_are_spread_over_the_page() -> None:
    assert chosen_ids([layout_of([1] * 8)]) == [0, 2, 4, 6]
    assert chosen_ids([layout_of([0, 0, 3, 0, 1])]) == [0, 1, 2, 4]
    # Of photos that differ between cells, those that most cells have.
    assert chosen_ids([layout_of([1, 1, 1]), layout_of([1, 1, 1]), layout_of([1], 50)]) == [0, 1, 2]
    assert chosen_ids([]) == []


def test_what_is_too_large_is_left_out_and_said(tmp_path: Path) -> None:
    pages = {
        f"cell {number}": cut(page(tmp_path / str(number), COLOURS["other"], ("seg",)))
        for number in range(4)
    }
    whole, _ = side_by_side(pages)
    one = sum(map(len, [*whole[0].truth.values(), *whole[0].predictions.values()]))
    photos, notes = side_by_side(pages, most_bytes=2 * one)
    assert len(photos) == 2
    assert "2 of 3 photos" in notes[0]
    ((photo,), notes) = side_by_side(pages, most_bytes=one - 1)
    assert list(photo.predictions) == ["cell 0", "cell 1", "cell 2"]
    assert "3 of 4 cells" in notes[0]


def test_what_is_no_page_is_told_with_its_reason(tmp_path: Path) -> None:
    folder = page(tmp_path, COLOURS["other"], ("seg",))
    assert cv2.imwrite(str(folder / "page.png"), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(ValueError, match="another size than its layout says"):
        cut(folder)
    (folder / "page.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="not a picture"):
        cut(folder)


# Provenance.


def told(rows: StudyRows, runs: list[Any]) -> dict[str, tuple[str, ...]]:
    return dict(provenance(rows, runs).rows)


def test_provenance_names_what_the_numbers_rest_on() -> None:
    software = {"torch": "2.14.0", "sharedenc": "1.0", "code": "abc"}
    runs = [
        run("resnet18", "dual", seed=0),
        run("resnet18", "dual", seed=1),
        run("resnet18", "baseline", task="seg", state="failed", kind="oom", reason="no memory\nx"),
    ]
    for place, found in enumerate(runs):
        tags = {
            **found.tags,
            "sharedenc.software": json.dumps(software | {"torch": f"2.14.{min(place, 1)}"}),
            "sharedenc.device_name": "NVIDIA H100",
            "sharedenc.attempt": "3" if place == 1 else "1",
            "sharedenc.content": json.dumps({"components": {"data": 1, "loop": 2}}),
        }
        params = {**found.params, "numerics.precision": "bfloat16", "weights": "none"}
        runs[place] = replace(found, tags=tags, params=params)
    parent_tags = {
        "sharedenc.kind": "study",
        "sharedenc.settings": json.dumps({"kind": "full-grid", "lr": {"resnet18": 2e-4}}),
        "sharedenc.invocation.2026-01-02T03:04:05Z": "sweep --data s3://me:secret@host/coco",
    }
    parent = replace(run("x", "dual"), run_id="p", tags=parent_tags, params={})
    timed = bench("resnet18 dual", 5.0, device="Orin", runtime="10.3", backend="tensorrt")
    rows = study_rows("written", [parent, *runs], versions(), [timed])
    found = told(rows, [parent, *runs])
    assert found["study"] == ("written (kind full-grid)",)
    assert found["data set"] == ("coco2017",)
    assert found["digest of the data"] == ("ab" * 32,)
    assert found["classes (20, without background)"][0].startswith("aeroplane, bicycle")
    assert found["invocations"] == ("2026-01-02T03:04:05Z: sweep --data s3://***@host/coco",)
    assert found["trials"] == ("2 done, 1 failed",)
    assert found["failed"] == ("resnet18/baseline/seg, seed 0 (oom): no memory",)
    assert found["retries"] == ("2 more attempts of 1 trial",)
    assert found["seeds"] == ("0 (2 trials)", "1 (1 trial)")
    assert found["learning rates"] == ("resnet18: 0.0002",)
    assert found["where the rates come from"] == ("given: resnet18=0.0002",)
    assert found["trained on"] == ("NVIDIA H100",)
    assert found["torch"] == ("2.14.1 (2 trials)", "2.14.0 (1 trial)")
    assert found["digest of the code"] == ("abc",)
    assert found["versions of the parts"] == ("data 1, loop 2",)
    assert found["numerics.precision"] == ("bfloat16",)
    assert found["timed on"] == ("Orin, 2 threads, tensorrt 10.3: 1 of 1 timings valid",)


def test_a_study_without_parent_and_with_old_trials_still_says_what_it_knows() -> None:
    runs = [replace(r, params={**r.params, "numerics.torch": "2.9"}) for r in grid()]
    found = told(rows_of(runs), runs)
    assert found["torch"] == ("2.9",)
    assert "invocations" not in found
    broken = [replace(r, tags={**r.tags, "sharedenc.content": "{"}) for r in runs]
    assert "versions of the parts" not in told(rows_of(broken), broken)


# On a real server.


def record(
    tracker: MlflowTracker, study: str, parent: str, seed: int = 0, cell: str = "resnet18/dual"
) -> str:
    """A finished trial of a cell with a curve of 300 epochs; its run id."""
    template = run("resnet18", "dual", seed=seed)
    tags = {**template.tags, "sharedenc.cell": cell, "sharedenc.study": study}
    written = tracker.child(study, parent, cell, tags)
    written.params(template.params)
    written.points([Point("val/mAP", epoch / 300, epoch, epoch) for epoch in range(1, 301)])
    written.metrics({**template.metrics, "score": 0.1 * (seed + 1)}, step=301)
    written.end("done")
    return str(written.run_id)


def upload(tracker: MlflowTracker, run_id: str, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        tracker.handle(run_id).artifact(folder / name, "predictions")


BOTH = ("page.json", "page.png")


def test_evidence_of_a_study_on_a_server(mlflow_uri: str, tmp_path: Path) -> None:
    study = 'evi"dence'
    tracker = MlflowTracker(mlflow_uri)
    parent = tracker.study(study, {"sharedenc.invocation.2026-01-01T00:00:00Z": "a command"})
    record(tracker, study, parent, seed=0)
    best = record(tracker, study, parent, seed=1)
    old = record(tracker, study, parent, cell="resnet18/baseline/det")
    record(tracker, study, parent, cell="resnet18/baseline/seg")
    broken = record(tracker, study, parent, cell="resnet18/share-bias/seg")
    other_study = tracker.study("elsewhere", {})
    source = record(tracker, "elsewhere", other_study)
    reused = record(tracker, study, parent, cell="densenet121/dual")
    tracker.tag(reused, {REUSED_FROM: source})
    page(tmp_path, COLOURS["resnet18/dual"], ("det", "seg"))
    upload(tracker, best, tmp_path, BOTH)
    upload(tracker, old, tmp_path, ("page.png",))
    upload(tracker, source, tmp_path, BOTH)
    spoilt = page(tmp_path / "spoilt", COLOURS["other"], ("seg",))
    (spoilt / "page.png").write_bytes(b"no picture")
    upload(tracker, broken, spoilt, BOTH)

    rows = collect(mlflow_uri, study)
    found = gather(mlflow_uri, rows)
    assert len(found.curves) == 6
    assert {curve.metric for curve in found.curves} == {"val/mAP"}
    assert {len(curve.points) for curve in found.curves} == {199}
    for curve in found.curves:
        assert (curve.points[0], curve.points[-1]) == ((1, 1 / 300), (300, 1.0))
    assert [photo.image_id for photo in found.photos] == ["7", "8", "9"]
    cells = {"resnet18/dual", "densenet121/dual"}
    assert all(set(photo.predictions) == cells for photo in found.photos)
    assert found.notes == (
        "No predictions of resnet18/baseline/det: an earlier version trained it, whose page does "
        "not say where each photo is.",
        "No predictions of resnet18/baseline/seg: the trial's files hold no page of pictures.",
        "No predictions of resnet18/share-bias/seg: its page is not a picture.",
    )
    # Made again, as while a sweep runs, it is the same.
    assert gather(mlflow_uri, rows) == found
    assert dict(found.provenance.rows)["invocations"] == ("2026-01-01T00:00:00Z: a command",)

    bare = gather(mlflow_uri, rows, predictions=False, curves=False)
    assert bare == Evidence(provenance=found.provenance)

    # A trial that somebody deletes meanwhile is left out.
    MlflowClient(mlflow_uri).delete_run(best)
    later = gather(mlflow_uri, rows)
    assert len(later.curves) == 5
    assert later.notes[0] == "1 trial was deleted in MLflow while the report was made."
    assert all(set(photo.predictions) == {"densenet121/dual"} for photo in later.photos)


def test_histories_come_one_by_one_from_a_server_that_has_no_bulk(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharedenc.report import evidence

    tracker = MlflowTracker(mlflow_uri)
    parent = tracker.study("one-by-one", {})
    for seed in range(2):
        record(tracker, "one-by-one", parent, seed=seed)
    rows = collect(mlflow_uri, "one-by-one")
    bulk = gather(mlflow_uri, rows, predictions=False)
    # As many rows as the answer may hold: there may be more.
    monkeypatch.setattr(evidence, "MOST_ROWS", 600)
    assert gather(mlflow_uri, rows, predictions=False) == bulk
    assert len(bulk.curves) == 2


def test_a_server_that_is_away_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = gather("http://127.0.0.1:9", rows_of(grid()))
    assert (found.curves, found.photos) == ((), ())
    assert "could not be read" in found.notes[0]
