"""Packs through a storage: once per node, whole, by digest."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sharedenc.data.pack_store import fetch, publish
from sharedenc.data.packed import PackedDataset, prepare
from sharedenc.errors import DataError
from sharedenc.storage import FolderStorage, StorageError


class Counting(FolderStorage):
    """Counts what goes in and out; fails at the n-th fetch."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.got: list[str] = []
        self.stored: list[str] = []
        self.fail_at = 0

    def get(self, name: str, local: Path) -> bool:
        self.got.append(name)
        if len(self.got) == self.fail_at:
            raise StorageError("the line is cut")
        return super().get(name, local)

    def put(self, local: Path, name: str) -> None:
        self.stored.append(name)
        super().put(local, name)


@pytest.fixture
def storage(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "storage")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_pack_is_stored_once_and_comes_back_to_the_byte(
    tiny_pack: PackedDataset, storage: Counting, tmp_path: Path
) -> None:
    assert publish(tiny_pack.root, storage) == tiny_pack.digest
    stored = len(storage.stored)
    assert stored == len(contents(tiny_pack.root)) + 1
    publish(tiny_pack.root, storage)
    assert len(storage.stored) == stored
    found = fetch(tiny_pack.digest, storage, tmp_path / "cache")
    assert found.parent == tmp_path / "cache" / "packs"
    assert found.name == tiny_pack.root.name
    assert contents(found) == contents(tiny_pack.root)
    got = len(storage.got)
    assert fetch(tiny_pack.digest, storage, tmp_path / "cache") == found
    assert len(storage.got) == got


def test_a_pack_that_was_built_here_is_not_fetched(
    tiny_dataset: Path, storage: Counting, tmp_path: Path
) -> None:
    built = prepare(tiny_dataset, cache=tmp_path / "cache", progress=False)
    assert fetch(built.digest, storage, tmp_path / "cache") == built.root
    assert storage.got == []


def test_one_of_many_fetches_and_the_others_wait(
    tiny_pack: PackedDataset, storage: Counting, tmp_path: Path
) -> None:
    publish(tiny_pack.root, storage)
    start = threading.Barrier(4)
    found: list[Path] = []

    def run() -> None:
        start.wait()
        found.append(fetch(tiny_pack.digest, storage, tmp_path / "cache"))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(storage.got) == len(set(storage.got)) == len(storage.stored)


def test_a_fetch_that_breaks_off_leaves_nothing_that_looks_finished(
    tiny_pack: PackedDataset, storage: Counting, tmp_path: Path
) -> None:
    publish(tiny_pack.root, storage)
    storage.fail_at = 4
    with pytest.raises(StorageError, match="the line is cut"):
        fetch(tiny_pack.digest, storage, tmp_path / "cache")
    packs = tmp_path / "cache" / "packs"
    assert [path for path in packs.iterdir() if path.suffix != ".lock"] == []
    # What a killed process leaves.
    (packs / f".fetching-{tiny_pack.digest[:24]}").mkdir()
    (packs / f".fetching-{tiny_pack.digest[:24]}" / "stray").write_text("cut")
    found = fetch(tiny_pack.digest, storage, tmp_path / "cache")
    assert contents(found) == contents(tiny_pack.root)


def test_a_damaged_copy_is_told_and_healed_by_the_next_driver(
    tiny_pack: PackedDataset, storage: Counting, tmp_path: Path
) -> None:
    publish(tiny_pack.root, storage)
    largest = max(storage.folder.rglob("*"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StorageError, match=r"is damaged \(train\.images\)"):
        fetch(tiny_pack.digest, storage, tmp_path / "cache")
    publish(tiny_pack.root, storage)
    found = fetch(tiny_pack.digest, storage, tmp_path / "cache")
    assert contents(found) == contents(tiny_pack.root)


def test_a_damaged_pack_in_the_cache_is_fetched_again(
    tiny_pack: PackedDataset, storage: Counting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tiny_pack.root, storage)
    found = fetch(tiny_pack.digest, storage, tmp_path / "cache")
    aside = found.with_name(f"{found.name}.damaged")
    for content in (b"", b"x"):
        (found / "val.images").write_bytes(content)
        assert fetch(tiny_pack.digest, storage, tmp_path / "cache") == found
        assert contents(found) == contents(tiny_pack.root)
        # A trial may read the rest of it.
        assert contents(aside) == contents(tiny_pack.root) | {"val.images": content}
        assert str(aside) in caplog.text


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_a_pack_that_cannot_be_read_for_a_moment_stays(
    tiny_pack: PackedDataset,
    storage: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    publish(tiny_pack.root, storage)
    found = fetch(tiny_pack.digest, storage, tmp_path / "cache")
    got, text = len(storage.got), os.strerror(number)
    opened = Path.open

    def refused(path: Path, *given: Any, **more: Any) -> Any:
        if path.name == "val.npz":
            raise OSError(number, text)
        return opened(path, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.raises(DataError, match=f"cannot be read now .*{text}.* left as it is") as told:
            fetch(tiny_pack.digest, storage, tmp_path / "cache")
    assert told.value.kind == "machine"  # so that a sweep tries again
    assert contents(found) == contents(tiny_pack.root)
    assert fetch(tiny_pack.digest, storage, tmp_path / "cache") == found
    assert len(storage.got) == got


def test_what_is_not_there_is_told(
    tiny_pack: PackedDataset, storage: Counting, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="has no pack ffffffffffffffff"):
        fetch("f" * 64, storage, tmp_path / "cache")
    with pytest.raises(DataError, match="no finished pack"):
        publish(tmp_path, storage)
    # Another pack under that digest's name.
    publish(tiny_pack.root, storage)
    (stored,) = (storage.folder / "packs").glob(f"*/{tiny_pack.digest}")
    stored.rename(stored.with_name("e" * 64))
    with pytest.raises(StorageError, match=f"gave pack {tiny_pack.digest[:16]} instead of eeee"):
        fetch("e" * 64, storage, tmp_path / "cache")
