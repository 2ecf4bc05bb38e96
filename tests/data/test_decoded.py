"""Decoded pictures beside a pack: the same pixels, whole or not there, and never of other data."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from sharedenc.cli import main
from sharedenc.data import decoded, packing
from sharedenc.data.batch import eval_batches, train_batches
from sharedenc.data.decoded import decode_pack, decoded_bytes, decoded_folder, find_decoded
from sharedenc.data.packed import PackedDataset, prepare
from sharedenc.errors import DataError
from sharedenc.spec import Recipe
from tests.data.small_sets import SIZE, coco_content, write_set

RECIPE = Recipe(batch_size=3, image_px=32)


@pytest.fixture
def pack(tmp_path: Path) -> PackedDataset:
    root = write_set(tmp_path / "set", train=coco_content(6))
    return prepare(root, tmp_path / "cache", progress=False)


def never(*_: object) -> np.ndarray:
    raise AssertionError("decoded")


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharedenc.data.packed.PackedSplit.decode", never)


def test_batches_are_the_same_to_the_bit_and_nothing_is_decoded(
    pack: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [
        *train_batches(pack.split("train"), RECIPE, seed=0, epoch=1),
        *eval_batches(pack.split("test"), RECIPE),
    ]
    assert decode_pack(pack, shown=False) == decoded_folder(pack.root)
    forbid_decoding(monkeypatch)
    again = PackedDataset.open(pack.root)
    assert again.digest == pack.digest
    after = [
        *train_batches(again.split("train"), RECIPE, seed=0, epoch=1, workers=2),
        *eval_batches(again.split("test"), RECIPE),
    ]
    for one, other in zip(before, after, strict=True):
        assert one.images.equal(other.images)
        assert one.image_ids == other.image_ids
        assert all(a.equal(b) for a, b in zip(one.boxes, other.boxes, strict=True))
        assert isinstance(one.masks, torch.Tensor)
        assert isinstance(other.masks, torch.Tensor)
        assert one.masks.equal(other.masks)


def test_the_cost_is_known_before_and_is_the_cost(pack: PackedDataset) -> None:
    expected = (6 + 3 + 3) * SIZE[0] * SIZE[1] * 3
    assert decoded_bytes(pack) == expected
    folder = decode_pack(pack, shown=False)
    assert sum(path.stat().st_size for path in folder.glob("*.pixels")) == expected


def test_a_second_call_finds_them(pack: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = decode_pack(pack, shown=False)
    forbid_decoding(monkeypatch)
    assert decode_pack(pack, shown=False) == folder


def test_too_small_a_disk_is_told_before_anything_is_written(
    pack: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: usage(10, 9, 110_000))
    with pytest.raises(DataError, match=r"take 111 kB, but .* has 110 kB free\. Free some space"):
        decode_pack(pack, shown=False)
    assert [path.name for path in pack.root.parent.iterdir() if path.is_dir()] == [pack.root.name]


def test_what_was_interrupted_leaves_nothing(
    pack: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(decoded, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode_pack(pack, shown=False)
    assert [path.name for path in pack.root.parent.iterdir() if path.is_dir()] == [pack.root.name]


@pytest.mark.parametrize("damage", ["cut", "missing", "no JSON", "other data", "other decoder"])
def test_damaged_or_foreign_ones_are_not_used_and_made_anew(
    pack: PackedDataset, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = decode_pack(pack, shown=False)
    pixels, listing = folder / "val.pixels", folder / decoded.LISTING
    good = pixels.read_bytes()
    content = json.loads(listing.read_text())
    if damage == "cut":
        pixels.write_bytes(good[:-1])
    elif damage == "missing":
        pixels.unlink()
    elif damage == "no JSON":
        listing.write_text("{")
    else:
        key = "digest" if damage == "other data" else "decoder"
        listing.write_text(json.dumps(content | {key: "another"}))
        pixels.write_bytes(bytes(len(good)))
    opened = PackedDataset.open(pack.root)
    assert str(folder) in caplog.text
    assert "not used" in caplog.text
    assert opened.split("val")[0].image.any()
    assert decode_pack(pack, shown=False) == folder
    assert pixels.read_bytes() == good
    assert json.loads(listing.read_text()) == content


def test_two_versions_of_opencv_on_one_cache_leave_each_other_alone(
    pack: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = decode_pack(pack, shown=False)
    assert ours.name == f"{pack.root.name}.decoded-{cv2.__version__}"
    files = {path: path.stat().st_ino for path in ours.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "__version__", "4.9.0")
        reading = PackedDataset.open(pack.root)
        assert find_decoded(pack.root, pack.digest) is None
        theirs = decode_pack(reading, shown=False)
        assert theirs != ours
        assert find_decoded(pack.root, pack.digest) == theirs
    assert decode_pack(pack, shown=False) == find_decoded(pack.root, pack.digest) == ours
    assert {path: path.stat().st_ino for path in ours.iterdir()} == files
    told = run("data", "prepare", "--data", pack.root)
    assert f"decoded pictures: {ours}\n" in told.stdout
    assert f"decoded by another OpenCV, of no use to this one: {theirs}\n" in told.stdout


def test_what_cannot_be_read_for_a_moment_is_not_made_anew(
    pack: PackedDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = decode_pack(pack, shown=False)
    files = {path: path.stat().st_ino for path in folder.iterdir()}

    def stale(*_: object, **__: object) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "read_text", stale)
    assert find_decoded(pack.root, pack.digest) is None
    assert "cannot be read now" in caplog.text
    with pytest.raises(OSError, match="Stale file handle"):
        decode_pack(pack, shown=False)
    assert {path: path.stat().st_ino for path in folder.iterdir()} == files


def test_a_pack_that_was_removed_leaves_no_trap(pack: PackedDataset, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    own = prepare(tmp_path / "set", tmp_path / "cache", progress=False, out=out)
    decode_pack(own, shown=False)
    shutil.rmtree(out)
    other = write_set(tmp_path / "other", train=coco_content(4))
    made = prepare(other, tmp_path / "cache", progress=False, out=out)
    assert len(made.split("train")) == 4
    sample = made.split("val")[1]
    assert np.array_equal(sample.image, made.split("val").decode(1))


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def test_the_command_says_the_cost_first(pack: PackedDataset, tmp_path: Path) -> None:
    told = run("data", "prepare", "--data", pack.root, "--decoded")
    assert told.exit_code == 0
    cost = f"Decoded pictures of fruit take 111 kB of disk in {decoded_folder(pack.root)}"
    assert cost in told.stderr
    assert str(decoded_folder(pack.root)) in told.stdout
    assert decoded_folder(pack.root).is_dir()
    again = run("data", "prepare", "--data", pack.root, "--decoded", "--json")
    assert json.loads(again.stdout)["decoded"] == str(decoded_folder(pack.root))
    assert json.loads(run("data", "prepare", "--data", pack.root, "--json").stdout)["decoded"]


def test_pixels_are_written_by_the_function_that_tests_can_break() -> None:
    assert decoded.append is packing.append
