"""`jetson-agent evaluate`: the same figures as the sweep side's, by other libraries."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from jetson_agent import evaluate, scores
from jetson_agent.backends.base import Run
from jetson_agent.coco import find_annotations, label_map, read_annotations, rle_runs
from jetson_agent.decode import read_decoding
from jetson_agent.errors import AgentError, BackendError
from jetson_agent.evaluate import make_task, run_photos
from jetson_agent.images import nearest, network_input, read_photo, squash
from sharedenc.data.batch import IMAGENET_MEAN, normalise
from sharedenc.data.classes import ALIASES
from sharedenc.data.packed import PackedDataset, RawSample, prepare
from sharedenc.data.rasterise import rle_runs as their_rle_runs
from sharedenc.data.synthetic import write_synthetic
from sharedenc.data.transforms import eval_transform
from sharedenc.evaluation.detection import coco_ap
from sharedenc.export.accuracy import measure_accuracy
from sharedenc.spec import Recipe
from tests.agent.colours import CLASSES, IMAGE_PX, write_colour_network

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("mAP", "mAP50", "mIoU", "pixel_acc")
LABELS = ("background", *CLASSES.names)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set with crowd regions (each eighth photo) and photos of many sizes."""
    return write_synthetic(
        tmp_path_factory.mktemp("drawn") / "set", (3, 2, 24), seed=4, classes=CLASSES
    )


@pytest.fixture(scope="module")
def pack(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return prepare(drawn, cache=tmp_path_factory.mktemp("cache"), progress=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_network(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def expected(model: Path, pack: PackedDataset) -> dict[str, float]:
    """The sweep side's scores of the same file: torch's boxes, OpenCV's photos."""
    found = measure_accuracy(model.parent, [model.name], pack, shown=False)
    assert found is not None
    figures = dict(found.scores["float"])
    # Neither blind nor perfect: a slip in a rule would move them.
    assert figures["mAP50"] > 0.1
    assert 0.9 < figures["mIoU"] < 0.99
    return figures


@pytest.fixture
def run(model: Path) -> Run:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def agent(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jetson_agent", "evaluate", *map(str, arguments)]
    command += ["--backend", "onnxruntime", "--threads", "1"]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=240
    )


def score(model: Path, data: Path, run: Run, **more: Any) -> dict[str, Any]:
    task = make_task(model, data, precision="fp32", recipe="cpu", **more)
    return run_photos(task, run, lambda _done: None)


def test_the_scores_are_those_of_the_sweep_side(
    model: Path, drawn: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    done = agent(model, "--data", drawn, "--json", "--out", tmp_path / "out", "--min-score", "0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 24
    assert found["annotations"].endswith("annotations/test.json")
    for name in FIGURES:
        assert found["scores"][name] == pytest.approx(expected[name], abs=0.002)
    assert set(found["scores"]["IoU_class"]) == set(LABELS)
    assert set(found["scores"]["AP_class"]) == set(CLASSES.names)
    assert found["build_s"] > 0
    assert found["options"]["intra_op_threads"] == 1
    # What was found can be scored by anybody else's program too.
    truth = json.loads((drawn / "annotations" / "test.json").read_text())
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert coco_ap(truth, results).stats["AP"] == pytest.approx(expected["mAP"], abs=0.002)
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 24


def renamed(drawn: Path, out: Path, names: dict[str, str], ids: dict[int, int]) -> Path:
    """The test split in the layout of COCO 2017, with other names and ids of categories."""
    (out / "annotations").mkdir(parents=True)
    shutil.copytree(drawn / "images" / "test", out / "val2017")
    content = json.loads((drawn / "annotations" / "test.json").read_text())
    for row in content["categories"]:
        row["id"], row["name"] = ids[row["id"]], names.get(row["name"], row["name"])
    content["categories"].reverse()
    content["categories"].append({"id": 99, "name": "nobody asked"})
    content["annotations"].append({**content["annotations"][0], "id": 10**6, "category_id": 99})
    for row in content["annotations"]:
        row["category_id"] = ids.get(row["category_id"], row["category_id"])
    (out / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    (out / "annotations" / "captions_val2017.json").write_text("{}")
    return out


def test_classes_match_by_name_whatever_their_ids_and_spelling(
    drawn: Path, expected: dict[str, float], tmp_path: Path, run: Run
) -> None:
    names = ("aeroplane", "sofa", "tv/monitor")
    model = write_colour_network(tmp_path / "m.onnx", names=names)
    spelt = dict(zip(CLASSES.names, ("airplane", "couch", "tv"), strict=True))
    data = renamed(drawn, tmp_path / "coco", spelt, {1: 70, 2: 5, 3: 2**40})
    found = score(model, data, run)
    for name in FIGURES:
        assert found["scores"][name] == pytest.approx(expected[name], abs=0.002)
    assert set(found["scores"]["IoU_class"]) == {"background", *names}


def test_the_other_spellings_are_those_of_the_sweep_side() -> None:
    from jetson_agent import coco

    assert coco.ALIASES == ALIASES


def test_a_limit_takes_the_first_photos(
    model: Path, drawn: Path, pack: PackedDataset, run: Run
) -> None:
    theirs = measure_accuracy(model.parent, [model.name], pack, limit=5, shown=False)
    assert theirs is not None
    found = score(model, drawn, run, limit=5)
    assert found["images"] == 5
    for name in FIGURES:
        assert found["scores"][name] == pytest.approx(theirs.scores["float"][name], abs=0.002)


def test_truth_is_read_by_the_same_rules(drawn: Path, pack: PackedDataset) -> None:
    found = find_annotations(drawn, "test")
    assert found is not None
    ours, split = read_annotations(*found, LABELS), pack.split("test")
    assert [photo.image_id for photo in ours.photos] == split.ids
    crowds = 0
    for photo, sample in zip(ours.photos, split, strict=True):
        np.testing.assert_allclose([t.box for t in photo.things], sample.boxes, rtol=1e-6)
        assert [t.label for t in photo.things] == sample.labels.tolist()
        assert [t.crowd for t in photo.things] == sample.crowd.tolist()
        np.testing.assert_allclose([t.area for t in photo.things], sample.areas, rtol=1e-6)
        np.testing.assert_array_equal(label_map(photo), sample.label_map)
        crowds += int(sample.crowd.sum())
    assert crowds == 3


def odd_annotations(folder: Path) -> Path:
    """Objects that leave the photo, have no size, no outline, a point for a polygon, RLE masks."""
    from pycocotools import mask

    (folder / "annotations").mkdir(parents=True)
    (folder / "images" / "test").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "empty.jpg"):
        Image.new("RGB", (40, 30), (90, 90, 90)).save(folder / "images" / "test" / name)
    blob = np.zeros((30, 40), np.uint8, order="F")
    blob[5:20, 10:30] = 1
    packed = mask.encode(blob)["counts"].decode()
    square = [[2, 2, 20, 2, 20, 12, 2, 12]]
    rows: list[dict[str, Any]] = [
        {"bbox": [2, 2, 18, 10], "segmentation": square},
        {"bbox": [-5, 20, 20, 30], "segmentation": [[-5, 20, 15, 20, 15, 50, -5, 50]]},
        {"bbox": [10, 5, 20, 15], "segmentation": {"size": [30, 40], "counts": packed}},
        {"bbox": [1, 1, 0, 5], "segmentation": square},
        {"bbox": [30.5, 22.5, 5, 5], "segmentation": []},
        {"bbox": [32, 2, 6, 6], "segmentation": [[1, 2, 3, 4]], "area": 30},
        {"bbox": [50, 50, 6, 6], "segmentation": square},
        {
            "bbox": [0, 0, 40, 3],
            "iscrowd": 1,
            "segmentation": {"size": [30, 40], "counts": [0, 3, 27] + [0, 3, 27] * 39},
        },
    ]
    annotations = [
        {"id": at, "image_id": 7 + at % 2, "category_id": 1 + at % 3, **row}
        for at, row in enumerate(rows + rows[:3], start=1)
    ]
    content = {
        "images": [
            {"id": 7 + at, "file_name": name, "width": 40, "height": 30}
            for at, name in enumerate(("a.jpg", "b.jpg", "empty.jpg"))
        ],
        "annotations": annotations,
        "categories": [{"id": at, "name": n} for at, n in enumerate(CLASSES.names, start=1)],
    }
    (folder / "annotations" / "test.json").write_text(json.dumps(content))
    splits = {
        split: {"images": "images/test", "annotations": "annotations/test.json"}
        for split in ("train", "val", "test")
    }
    settings = {"name": "odd", **splits, "classes": list(CLASSES.names)}
    (folder / "data.yaml").write_text(json.dumps(settings))
    return folder


def test_odd_annotations_are_read_by_the_same_rules(tmp_path: Path) -> None:
    data = odd_annotations(tmp_path / "odd")
    split = prepare(data, cache=tmp_path / "cache", progress=False).split("test")
    found = find_annotations(data, None)
    assert found is not None
    ours = read_annotations(*found, LABELS)
    assert [photo.image_id for photo in ours.photos] == split.ids == [7, 8]
    for photo, sample in zip(ours.photos, split, strict=True):
        np.testing.assert_allclose([t.box for t in photo.things], sample.boxes)
        assert [t.crowd for t in photo.things] == sample.crowd.tolist()
        np.testing.assert_allclose([t.area for t in photo.things], sample.areas)
        np.testing.assert_array_equal(label_map(photo), sample.label_map)
        assert 255 in sample.label_map


def test_compressed_masks_are_read_as_pycocotools_writes_them() -> None:
    from pycocotools import mask

    rng = np.random.default_rng(0)
    for _ in range(20):
        blob = np.asfortranarray(rng.random((37, 53)) < rng.random(), np.uint8)
        text = mask.encode(blob)["counts"].decode()
        assert rle_runs(text) == their_rle_runs(text)
        assert sum(rle_runs(text)) == blob.size
    for damaged in ("P", "0~", "\n"):
        with pytest.raises(ValueError, match="compressed RLE mask"):
            rle_runs(damaged)


def raw_sample(image: Any) -> RawSample:
    return RawSample(
        image=image,
        label_map=None,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, np.bool_),
        areas=np.zeros(0, np.float32),
        image_id=0,
    )


@pytest.mark.parametrize("px", [96, 320])
def test_photos_are_decoded_and_resized_as_in_training(
    drawn: Path, tmp_path: Path, px: int
) -> None:
    rng = np.random.default_rng(0)
    made = tmp_path / "noise.jpg", tmp_path / "grey.jpg"
    Image.fromarray(rng.integers(0, 256, (777, 1203, 3), dtype=np.uint8)).save(made[0])
    Image.fromarray(rng.integers(0, 256, (60, 50), dtype=np.uint8)).save(made[1])
    paths = [*sorted((drawn / "images" / "test").glob("*.jpg"))[:8], *made]
    for path in paths:
        ours = read_photo(path, upright=False)
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        theirs = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flags)
        np.testing.assert_array_equal(ours, theirs)
        small = eval_transform(Recipe(image_px=px))(raw_sample(theirs)).image
        difference = np.abs(squash(ours, px).astype(int) - small.permute(1, 2, 0).numpy())
        assert difference.max() <= 1
        assert difference.mean() < 0.25


def test_the_input_is_normalised_as_in_training(model: Path, drawn: Path) -> None:
    metadata = onnxruntime.InferenceSession(str(model)).get_modelmeta().custom_metadata_map
    decoding = read_decoding(metadata, "m")
    assert decoding.mean == pytest.approx(IMAGENET_MEAN)
    image = read_photo(next((drawn / "images" / "test").glob("*.jpg")), upright=False)
    theirs = normalise(eval_transform(Recipe(image_px=IMAGE_PX))(raw_sample(image)).image[None])
    ours = network_input(image, decoding)
    assert ours.dtype == np.float32
    assert ours.shape == (1, 3, IMAGE_PX, IMAGE_PX)
    # One grey level is 0.0175 of the narrowest channel.
    assert np.abs(ours - theirs.numpy()).max() < 0.018


def test_label_maps_are_resized_as_in_training() -> None:
    exact = 0
    for side in (*range(1, 256), 333, 375, 427, 480, 500, 612, 640):
        for px in (96, 320):
            # The value of each pixel is its place, so that the result tells which one was taken.
            places = np.arange(side, dtype=np.float32)[None]
            flag = cv2.INTER_NEAREST_EXACT
            theirs = cv2.resize(places, (px, 1), interpolation=flag)[0].astype(int)
            ours = nearest(places, 1, px)[0].astype(int)
            # Where a centre falls on the border of two pixels, OpenCV rounds now up, now down.
            on_border = (2 * np.arange(px) + 1) * side % (2 * px) == 0
            np.testing.assert_array_equal(ours[~on_border], theirs[~on_border])
            assert np.abs(ours - theirs).max() <= 1
            exact += int(np.array_equal(ours, theirs))
    assert exact >= 500  # of 524


def photo_bytes(size: tuple[int, int], **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (230, 10, 10)).save(buffer, "JPEG", **more)
    return buffer.getvalue()


def test_plain_photos_give_predictions_and_no_scores(model: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "deeper").mkdir(parents=True)
    (photos / "red.jpg").write_bytes(photo_bytes((200, 100)))
    (photos / "deeper" / "cut.jpg").write_bytes(photo_bytes((200, 100))[:-40])
    (photos / "notes.txt").write_text("no photo")
    turned = Image.Exif()
    turned[274] = 6  # the camera was held upright: turn by 90 degrees
    (photos / "turned.jpg").write_bytes(photo_bytes((200, 100), exif=turned))
    done = agent(model, "--data", photos, "--json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["scores"] == {}
    assert found["not_scored"] == "the photos have no annotations"
    cut, red, turn = found["predictions"]
    assert "cut.jpg" in cut["error"]
    assert red["image"] == "red.jpg"
    assert red["mask_shares"] == {"red one": 1.0}
    assert red["detections"][0]["class"] == "red one"
    assert red["detections"][0]["score"] > 0.9
    boxes = np.array([row["box"] for row in red["detections"]])
    assert 100 < boxes[:, [0, 2]].max() <= 200
    assert boxes[:, [1, 3]].max() <= 100
    assert np.array([row["box"] for row in turn["detections"]])[:, [1, 3]].max() > 100
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == found["predictions"]
    with Image.open(tmp_path / "out" / "pictures" / "turned-2.png") as picture:
        assert picture.size == (100, 200)
        assert len(picture.getcolors(10**6) or []) > 3
    text = agent(model, "--data", photos).stdout
    assert "red.jpg: red one 1.00" in text
    assert "Not scored: the photos have no annotations." in text


def test_without_pycocotools_it_says_what_is_missing(
    model: Path, drawn: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores.importlib.util, "find_spec", lambda _name: None)
    found = score(model, drawn, run, limit=2)
    assert found["scores"] == {}
    assert "pip install pycocotools" in found["not_scored"]
    assert found["images"] == 2


def test_outputs_that_cannot_be_right_are_an_error_and_no_score(
    model: Path, drawn: Path, run: Run
) -> None:
    def broken(name: str, change: Callable[[Any], Any]) -> Run:
        return lambda inputs: {**run(inputs), name: change(run(inputs)[name])}

    with pytest.raises(BackendError, match=r"seg_logits has values that are not finite for .*jpg"):
        score(model, drawn, broken("seg_logits", lambda value: value * np.nan))
    with pytest.raises(BackendError, match="cls_logits has shape"):
        score(model, drawn, broken("cls_logits", lambda value: value[:, 1:]))
    with pytest.raises(BackendError, match="neither boxes nor masks"):
        score(model, drawn, lambda inputs: {"low": np.zeros(3)})


def test_a_wrong_engine_scores_worse(
    model: Path, drawn: Path, run: Run, expected: dict[str, float]
) -> None:
    def swapped(inputs: dict[str, Any]) -> dict[str, Any]:
        found = run(inputs)
        found["seg_logits"] = found["seg_logits"][:, [0, 2, 1, 3]]
        found["cls_logits"] = found["cls_logits"][..., [0, 2, 1, 3]]
        return found

    found = score(model, drawn, swapped)["scores"]
    assert found["mIoU"] < 0.6
    assert found["mAP50"] < expected["mAP50"] / 2


def test_what_cannot_be_done_is_told_before_anything_is_built(
    model: Path, drawn: Path, tmp_path: Path
) -> None:
    def refused(given: Path, data: Path, **more: Any) -> str:
        with pytest.raises(AgentError) as caught:
            make_task(given, data, precision="fp32", recipe="cpu", **more)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "neither annotations/*.json nor photos" in refused(model, tmp_path / "empty")
    assert "there is no folder" in refused(model, tmp_path / "absent")
    assert "no annotations of split 'night'; it has test, train, val" in refused(
        model, drawn, split="night"
    )
    other = write_colour_network(tmp_path / "cats.onnx", names=("cat", "dog", "cow"))
    assert "no class of the model is annotated: test.json has blue one" in refused(other, drawn)
    encoder = write_colour_network(tmp_path / "e.onnx", more={"sharedenc.graph": "encoder"})
    assert "encoder without heads" in refused(encoder, drawn)
    (tmp_path / "no.onnx").write_bytes(b"no model")
    assert "no.onnx is not an ONNX file" in refused(tmp_path / "no.onnx", drawn)
    for content in ("", "[]", '{"images": 3}', '{"images": [], "annotations": [{}]}', "[" * 10**5):
        data = tmp_path / "broken"
        (data / "annotations").mkdir(parents=True, exist_ok=True)
        (data / "annotations" / "test.json").write_text(content)
        assert "annotations/test.json" in refused(model, data)


def test_a_photo_that_does_not_fit_its_annotation_is_an_error(model: Path, tmp_path: Path) -> None:
    data = odd_annotations(tmp_path / "odd")
    Image.new("RGB", (30, 40)).save(data / "images" / "test" / "b.jpg")
    done = agent(model, "--data", data, "--split", "test")
    assert done.returncode == 1
    assert "b.jpg has 30x40 pixels, but its annotation says 40x30" in done.stderr
    assert "Traceback" not in done.stderr
    (data / "images" / "test" / "a.jpg").unlink()
    done = agent(model, "--data", data)
    assert done.returncode == 1
    assert "a.jpg cannot be read: No such file" in done.stderr


def test_what_a_data_set_asks_for_and_the_agent_does_not_do_is_told(
    model: Path, tmp_path: Path, run: Run
) -> None:
    data = odd_annotations(tmp_path / "odd")
    with (data / "data.yaml").open("a") as file:
        file.write("\nrules: {overlap: paint_small_last}\n")
    (warning,) = score(model, data, run)["warnings"]
    assert warning.startswith("rules in ")
    assert "the default rules do" in warning


def test_progress_comes_while_the_child_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "PROGRESS_S", 0.01)
    said: list[str] = []
    with evaluate._told(tmp_path / "progress", 9, said.append):
        for done in ("3", "7"):
            (tmp_path / "progress").write_text(done)
            for _ in range(1000):
                if any(text.startswith(done) for text in said):
                    break
                evaluate.threading.Event().wait(0.01)
    assert said == ["3 of 9 photos", "7 of 9 photos"]
