"""Files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sharedenc.files import copy_atomic, file_sha256, link_atomic, remove_parts, write_atomic


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"o", memoryview(b"ld"))
    (tmp_path / "source").write_bytes(b"new")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    with pytest.raises(OSError, match="No space left"):
        copy_atomic(tmp_path / "source", path)
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["file", "source"]


def test_copies_and_digests(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    copy_atomic(source, tmp_path / "deep" / "copy")
    expected = hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert file_sha256(tmp_path / "deep" / "copy") == expected


def test_a_further_name_has_the_bytes_and_outlives_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = tmp_path / "source", tmp_path / "path"
    source.write_bytes(b"new")
    path.write_bytes(b"old")
    for _ in range(2):  # the second time both are one file already
        link_atomic(source, path)
        assert path.read_bytes() == b"new"
        assert sorted(os.listdir(tmp_path)) == ["path", "source"]
    assert source.stat().st_ino == path.stat().st_ino
    write_atomic(source, b"newer")
    assert path.read_bytes() == b"new"

    def none(*_: object) -> None:
        raise OSError(1, "no hard links here")

    monkeypatch.setattr(os, "link", none)
    link_atomic(source, path)
    source.unlink()
    assert path.read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["path"]


def test_what_is_left_of_writers_goes_and_nothing_else(tmp_path: Path) -> None:
    names = [".state-1-abc.part", ".best-1.part", "state-1.part", ".state-1-abc"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    remove_parts(tmp_path, "state-")
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])
