"""Packs: what goes in comes out, the digest is the content's, and no half pack looks finished."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import pytest

from sharedenc.data import packed, packing
from sharedenc.data.classes import ClassList
from sharedenc.data.dataset import DataRules
from sharedenc.data.packed import PackedDataset, cache_dir, prepare
from sharedenc.errors import DataError, SpecError
from tests.data.small_sets import SIZE, box_object, coco_content, write_jpeg, write_set

FIG, PEAR, KIWI = 0, 7, 31


def pack(root: Path, cache: Path, **more: Any) -> PackedDataset:
    return prepare(root, cache, progress=False, **more)


def remains(cache: Path) -> list[str]:
    """Visible packs and unfinished folders; locks and pointers are neither."""
    packs = cache / "packs"
    return sorted(p.name for p in packs.iterdir() if p.is_dir()) if packs.exists() else []


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


def test_what_went_in_comes_out(tmp_path: Path) -> None:
    crowd = {"size": list(SIZE), "counts": [10, 30, SIZE[0] * SIZE[1] - 40]}
    objects = [
        box_object(0, PEAR, (4.5, 5, 20, 16), area=123.5),
        box_object(0, FIG, (0, 0, 9, 9), iscrowd=1, segmentation=crowd),
        box_object(2, KIWI, (30, 20, 10.25, 8)),
    ]
    root = write_set(tmp_path / "set", train=coco_content(3, objects))
    split = pack(root, tmp_path / "cache").split("train")
    assert (len(split), split.ids) == (2, [0, 2])
    sample = split[0]
    expected = cv2.imread(str(root / "train" / "0000.jpg"))
    assert np.array_equal(sample.image, expected[:, :, ::-1])
    assert sample.boxes.dtype == np.float32
    assert sample.boxes.tolist() == [[4.5, 5, 24.5, 21], [0, 0, 9, 9]]
    assert (sample.labels.tolist(), sample.crowd.tolist()) == ([2, 1], [False, True])
    assert sample.areas.tolist() == [123.5, 81]
    assert sample.label_map is not None
    assert sample.label_map.shape == SIZE
    assert (sample.label_map[10, 10], sample.label_map[12, 0]) == (2, 255)
    assert [item.image_id for item in split[-1:]] == [2]
    with pytest.raises(IndexError):
        split[2]


def test_ground_truth_is_the_annotations_by_label(tmp_path: Path) -> None:
    objects = [box_object(0, PEAR, (4.5, 5, 20, 16), area=99), box_object(1, KIWI, (1, 2, 3, 4))]
    objects += [box_object(1, FIG, (9, 9, 5, 5), iscrowd=1)]
    root = write_set(tmp_path / "set", {"ignore": ["kiwi"]}, test=coco_content(3, objects))
    truth = pack(root, tmp_path / "cache").split("test").ground_truth()
    assert truth["categories"] == [{"id": 1, "name": "fig"}, {"id": 2, "name": "pear"}]
    assert truth["images"][0] == {"id": 0, "width": SIZE[1], "height": SIZE[0]}
    found = [
        (a["image_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"])
        for a in truth["annotations"]
    ]
    assert found == [
        (0, 2, [4.5, 5, 20, 16], 99, 0),
        (1, 1, [1, 2, 3, 4], 12, 1),  # an ignore region counts for every class
        (1, 2, [1, 2, 3, 4], 12, 1),
        (1, 1, [9, 9, 5, 5], 25, 1),
    ]
    limited = pack(root, tmp_path / "cache").split("test").ground_truth(limit=1)
    assert len(limited["images"]) == len(limited["annotations"]) == 1


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    write_jpeg(root / "train" / "0001.jpg", grey=True)
    sample = pack(root, tmp_path / "cache").split("train")[1]
    assert sample.image.shape == (*SIZE, 3)
    assert (sample.image[..., 0] == sample.image[..., 2]).all()


def test_the_digest_is_the_contents_not_the_places(fruit: Path, tmp_path: Path) -> None:
    first = pack(fruit, tmp_path / "one")
    copy = tmp_path / "elsewhere"
    shutil.copytree(fruit, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    second = pack(copy, tmp_path / "two")
    assert first.digest == second.digest
    files = [(first.root / name, second.root / name) for name in os.listdir(first.root)]
    same = [a.read_bytes() == b.read_bytes() for a, b in files if a.name != packing.META]
    assert all(same)
    assert len(same) == 10


@pytest.mark.parametrize("what", ["picture", "box", "outline", "classes", "rules"])
def test_the_digest_follows_every_part_of_the_content(
    fruit: Path, tmp_path: Path, what: str
) -> None:
    before = pack(fruit, tmp_path / "cache").digest
    more: dict[str, Any] = {}
    if what == "picture":
        write_jpeg(fruit / "val" / "0001.jpg", seed=77)
    elif what == "box":
        write_set(fruit, test=coco_content(1, [box_object(0, FIG, (4, 5, 20, 17))]))
        write_set(tmp_path / "b", test=coco_content(1, [box_object(0, FIG, (4, 5, 20, 16))]))
        before = pack(tmp_path / "b", tmp_path / "cache").digest
    elif what == "outline":
        outline = [[4, 5, 24, 5, 24, 21]]
        changed = box_object(0, FIG, (4, 5, 20, 16), segmentation=outline)
        write_set(fruit, test=coco_content(1, [changed]))
        write_set(tmp_path / "b", test=coco_content(1, [box_object(0, FIG, (4, 5, 20, 16))]))
        before = pack(tmp_path / "b", tmp_path / "cache").digest
    elif what == "classes":
        more["classes"] = ClassList("x", ("pear", "fig", "kiwi"))
    else:
        more["rules"] = DataRules(overlap="paint_small_last")
    assert pack(fruit, tmp_path / "cache", **more).digest != before


def test_a_finished_pack_is_found_again_without_reading_pictures(
    fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pack(fruit, tmp_path / "cache")

    def never(*_: object, **__: object) -> str:
        raise AssertionError("built anew")

    monkeypatch.setattr("sharedenc.data.packed.build", never)
    again = pack(fruit, tmp_path / "cache")
    assert (again.root, again.digest) == (first.root, first.digest)
    assert pack(first.root, tmp_path / "cache").root == first.root
    (fruit / "train" / "0000.jpg").touch()
    with pytest.raises(AssertionError, match="built anew"):
        pack(fruit, tmp_path / "cache")


def test_nothing_is_written_into_the_source(fruit: Path, tmp_path: Path) -> None:
    def state() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in [fruit, *fruit.rglob("*")])

    before = state()
    for path in [*fruit.rglob("*"), fruit]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        pack(fruit, tmp_path / "cache")
    finally:
        for path in [fruit, *fruit.rglob("*")]:
            path.chmod(0o755)
    assert state() == before


def failing_after(monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    real, calls = packing.append, iter(range(10_000))

    def append(file: IO[bytes], data: bytes) -> None:
        if next(calls) >= count:
            raise error
        real(file, data)

    monkeypatch.setattr(packing, "append", append)


def test_a_full_disk_is_told_and_leaves_nothing(
    fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_after(monkeypatch, 5, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DataError, match=r"disk of .*cache/packs is full.*--cache-dir"):
        pack(fruit, tmp_path / "cache")
    assert remains(tmp_path / "cache") == []


def test_a_folder_without_permission_is_told(
    fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_after(monkeypatch, 0, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(DataError, match=r"no permission for .*choose a folder of your own"):
        pack(fruit, tmp_path / "cache")


def test_an_interrupted_build_leaves_nothing_that_looks_finished(
    fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            pack(fruit, tmp_path / "cache")
    assert remains(tmp_path / "cache") == []
    with monkeypatch.context() as patch:
        # As after SIGKILL: nobody cleans up.
        failing_after(patch, 5, KeyboardInterrupt())
        patch.setattr("sharedenc.data.packed.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            pack(fruit, tmp_path / "cache")
    left = remains(tmp_path / "cache")
    assert len(left) == 1
    with pytest.raises(DataError, match="no finished pack"):
        PackedDataset.open(tmp_path / "cache" / "packs" / left[0])
    finished = pack(fruit, tmp_path / "cache")
    assert remains(tmp_path / "cache") == [finished.root.name]


def build_in_process(root: Path, cache: Path, answers: Any) -> None:
    answers.put(pack(root, cache).digest)


def test_builders_in_several_processes_end_with_one_pack(fruit: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    args = (fruit, tmp_path / "cache", answers)
    processes = [context.Process(target=build_in_process, args=args) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
        process.close()
    assert len({answers.get() for _ in range(3)}) == 1
    answers.close()
    assert len(remains(tmp_path / "cache")) == 1


@pytest.mark.parametrize("damage", ["no end marker", "half", "few bytes", "no jpeg", "empty"])
def test_a_damaged_picture_is_named(fruit: Path, tmp_path: Path, damage: str) -> None:
    path = fruit / "val" / "0001.jpg"
    data = path.read_bytes()
    cut = {"no end marker": -2, "half": len(data) // 2, "few bytes": 3, "empty": 0}
    path.write_bytes(b"GIF?" * 40 if damage == "no jpeg" else data[: cut[damage]])
    with pytest.raises(DataError, match=r"val/0001.jpg \(image 1\)") as caught:
        pack(fruit, tmp_path / "cache")
    assert "BytesIO" not in str(caught.value)
    assert remains(tmp_path / "cache") == []


def test_bytes_after_the_end_of_a_picture_are_no_damage(fruit: Path, tmp_path: Path) -> None:
    path = fruit / "val" / "0001.jpg"
    path.write_bytes(path.read_bytes() + b"\0" * 50)
    assert len(pack(fruit, tmp_path / "cache").split("val")) == 3


def test_missing_pictures_and_wrong_sizes_are_told(fruit: Path, tmp_path: Path) -> None:
    write_jpeg(fruit / "val" / "0002.jpg", size=(SIZE[1], SIZE[0]))
    with pytest.raises(DataError, match=r"0002.jpg .* is 48x64 pixels.* 64x48. Its EXIF tag"):
        pack(fruit, tmp_path / "cache")
    (fruit / "val" / "0001.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 pictures do not exist: .*val/0001\.jpg"):
        pack(fruit, tmp_path / "cache")


def test_boxes_alone_switch_segmentation_off_and_say_so(tmp_path: Path) -> None:
    train = coco_content(2, [box_object(i, FIG, (1, 1, 9, 9), segmentation=[]) for i in (0, 1)])
    made = pack(write_set(tmp_path / "set", train=train), tmp_path / "cache")
    assert made.tasks == ("det",)
    assert any("boxes only" in warning for warning in made.warnings)
    assert made.split("train")[0].label_map is None


def test_classes_without_an_object_and_shared_pictures_are_warnings(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", test=coco_content(1, [box_object(0, FIG, (1, 1, 9, 9))]))
    shutil.copy(root / "train" / "0001.jpg", root / "test" / "0000.jpg")
    warnings = pack(root, tmp_path / "cache").warnings
    assert "the test split has no object of: pear, kiwi (left out of its means)" in warnings
    assert any("1 pictures are in both the train and the test split" in w for w in warnings)


def test_a_split_reads_alike_after_pickling_and_from_threads(tiny_pack: PackedDataset) -> None:
    split = tiny_pack.split("train")
    expected = [split[i].image.sum(dtype=np.int64) for i in range(len(split))]
    copy = pickle.loads(pickle.dumps(split))
    assert len(pickle.dumps(split)) < 100_000
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: copy[i].image.sum(dtype=np.int64), range(len(copy))))
    assert found == expected


def test_a_damaged_pack_is_refused_and_built_anew(fruit: Path, tmp_path: Path) -> None:
    made = pack(fruit, tmp_path / "cache")
    data = (made.root / "val.images").read_bytes()
    (made.root / "val.images").write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"is damaged .*delete it"):
        PackedDataset.open(made.root)
    index = (made.root / "val.npz").read_bytes()
    (made.root / "val.npz").write_bytes(index[:-30])
    with pytest.raises(DataError, match=r"is damaged .*delete it"):
        PackedDataset.open(made.root)
    again = pack(fruit, tmp_path / "cache")
    assert again.root == made.root
    assert (again.root / "val.images").read_bytes() == data
    # A trial may read the rest of it.
    aside = made.root.with_name(f"{made.root.name}.damaged")
    assert (aside / "val.images").read_bytes() == data[:-1]
    with pytest.raises(SpecError, match="split='dev' is not one of"):
        again.split("dev")


def test_a_pack_that_cannot_be_read_for_a_moment_is_not_built_anew(
    fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pack(fruit, tmp_path / "cache")
    before = {path: path.stat().st_ino for path in made.root.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", _no_more_files)
        patch.setattr("sharedenc.data.packed.build", _must_not_build)
        with pytest.raises(DataError, match=r"cannot be read now .*Too many open files"):
            pack(fruit, tmp_path / "cache")
        # Nor where another builder's pack turns out to be there already.
        building = tmp_path / "building"
        building.mkdir()
        with pytest.raises(DataError, match="cannot be read now"):
            packed._publish(building, made.root)
    assert {path: path.stat().st_ino for path in made.root.iterdir()} == before


def _no_more_files(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _must_not_build(*_: object, **__: object) -> None:
    raise AssertionError("a pack was built")


@pytest.mark.parametrize("file", ["val.images", "val.masks"])
def test_bytes_that_changed_on_the_disk_are_told_by_their_image(
    fruit: Path, tmp_path: Path, file: str
) -> None:
    made = pack(fruit, tmp_path / "cache")
    path = made.root / file
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=f"image 0 in .*{made.root.name} is damaged"):
        PackedDataset.open(made.root).split("val")[0]


def test_a_pack_can_go_to_a_folder_of_its_own(fruit: Path, tmp_path: Path) -> None:
    out = tmp_path / "packs" / "mine"
    made = pack(fruit, tmp_path / "cache", out=out)
    assert made.root == out
    assert not (tmp_path / "cache").exists()
    assert pack(fruit, tmp_path / "cache", out=out).digest == made.digest
    (fruit / "train" / "0000.jpg").touch()
    with pytest.raises(DataError, match="holds a pack of other data"):
        pack(fruit, tmp_path / "cache", out=out)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(DataError, match="holds something else"):
        pack(fruit, tmp_path / "cache", out=tmp_path / "used")


def test_the_cache_folder_is_chosen_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAREDENC_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir(tmp_path / "given") == tmp_path / "given"
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("SHAREDENC_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "sharedenc"


@pytest.mark.slow
def test_real_photos_pack_with_every_kind_of_annotation(shared_data: Path, tmp_path: Path) -> None:
    made = pack(shared_data / "coco_mini", tmp_path / "cache")
    assert made.tasks == ("det", "seg")
    train, test = made.split("train"), made.split("test")
    assert (len(train), len(made.split("val")), len(test)) == (273, 15, 192)
    assert test.object_counts()[1] > 0
    for split in (train, test):
        for i in range(0, len(split), 10):
            sample = split[i]
            assert sample.label_map is not None
            assert sample.image.shape[:2] == sample.label_map.shape
            assert set(np.unique(sample.label_map)) <= {0, 255, *sample.labels.tolist()}
