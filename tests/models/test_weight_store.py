"""A weights file that only the driver has reaches a node through the storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharedenc.errors import WeightsError
from sharedenc.models.weight_store import fetch, publish
from sharedenc.storage import FolderStorage

DIGEST = "sha256:0123"


def test_a_file_that_is_here_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "own.pth"
    file.write_bytes(b"tensors")
    assert fetch(file, DIGEST, FolderStorage(tmp_path / "storage"), tmp_path / "cache") == file


def test_elsewhere_it_comes_from_the_storage_once(tmp_path: Path) -> None:
    file, storage = tmp_path / "own.pth", FolderStorage(tmp_path / "storage")
    file.write_bytes(b"tensors")
    publish(file, DIGEST, storage)
    publish(file, DIGEST, storage)
    file.unlink()
    found = fetch(file, DIGEST, storage, tmp_path / "cache")
    assert found.read_bytes() == b"tensors"
    assert found.is_relative_to(tmp_path / "cache")
    for name in storage.list("weights"):
        storage.remove(name)
    assert fetch(file, DIGEST, storage, tmp_path / "cache") == found


def test_a_file_that_nobody_has_is_named(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "storage")
    with pytest.raises(WeightsError, match=r"own\.pth are neither on this node nor in .*storage"):
        fetch(tmp_path / "own.pth", DIGEST, storage, tmp_path / "cache")
