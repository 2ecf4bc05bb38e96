"""What every Storage does; inherited by the tests of each implementation."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sharedenc.storage import Storage, StorageError, leave_mark, require_mark


class StorageContract:
    """A subclass gives the fixture ``storage``: an empty one."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "local"
        path.write_bytes(b"\0content\xff")
        return path

    def test_what_is_put_comes_back(self, storage: Storage, file: Path, tmp_path: Path) -> None:
        storage.put(file, "a/b/c")
        assert storage.get("a/b/c", tmp_path / "new" / "folder" / "copy")
        assert (tmp_path / "new" / "folder" / "copy").read_bytes() == b"\0content\xff"
        assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["copy"]

    def test_a_second_put_replaces(self, storage: Storage, file: Path, tmp_path: Path) -> None:
        storage.put(file, "name")
        file.write_bytes(b"")
        storage.put(file, "name")
        assert storage.get("name", file)
        assert file.read_bytes() == b""
        assert storage.list() == ["name"]

    def test_what_is_not_there(self, storage: Storage, file: Path) -> None:
        assert not storage.get("nothing", file)
        assert file.read_bytes() == b"\0content\xff"
        assert not storage.exists("nothing")
        assert storage.list("nothing") == []
        storage.remove("nothing/at all")
        storage.put(file, "a/b")
        assert not storage.exists("a")

    def test_names_are_listed_below_a_folder(self, storage: Storage, file: Path) -> None:
        for name in ("one/b", "one/a/deep", "one more/x", "top"):
            storage.put(file, name)
        assert storage.list() == ["one more/x", "one/a/deep", "one/b", "top"]
        assert storage.list("one") == ["one/a/deep", "one/b"]
        assert storage.exists("one/a/deep")
        storage.remove("one/a/deep")
        assert not storage.exists("one/a/deep")
        assert storage.list("one") == ["one/b"]

    def test_a_file_that_cannot_be_read_leaves_the_old_one(
        self, storage: Storage, file: Path, tmp_path: Path
    ) -> None:
        storage.put(file, "name")
        with pytest.raises((StorageError, OSError)):
            storage.put(tmp_path / "missing", "name")
        assert storage.get("name", file)
        assert file.read_bytes() == b"\0content\xff"

    def test_a_reader_sees_the_old_or_the_new_and_nothing_between(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        contents = [bytes([value]) * 300_000 for value in (1, 2)]
        for value, content in enumerate(contents):
            (tmp_path / f"{value}").write_bytes(content)
        storage.put(tmp_path / "0", "name")
        seen: set[bytes] = set()

        def read() -> None:
            for _ in range(30):
                assert storage.get("name", tmp_path / "read")
                seen.add((tmp_path / "read").read_bytes())

        reader = threading.Thread(target=read)
        reader.start()
        turn = 0
        while reader.is_alive():
            turn += 1
            storage.put(tmp_path / str(turn % 2), "name")
        reader.join()
        assert seen
        assert seen <= set(contents)

    def test_the_same_place_is_told_from_another(
        self, storage: Storage, file: Path, tmp_path: Path
    ) -> None:
        mark = leave_mark(storage, tmp_path)
        require_mark(storage, mark)
        storage.remove(mark)
        with pytest.raises(StorageError, match=f"another place on {os.uname().nodename}"):
            require_mark(storage, mark)
        assert [path.name for path in tmp_path.iterdir()] == ["local"]
