"""Storages: a folder, and an object store where one can be started."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedenc.errors import SpecError
from sharedenc.storage import FolderStorage, Storage, StorageError, open_storage
from tests.contracts.storage import StorageContract


class TestFolderStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path_factory: pytest.TempPathFactory) -> Storage:
        return open_storage(str(tmp_path_factory.mktemp("storage")))


class TestFileAddress(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path_factory: pytest.TempPathFactory) -> Storage:
        folder = tmp_path_factory.mktemp("with a space") / "not made yet"
        return open_storage(folder.as_uri())


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3-compatible server with a bucket `bucket`."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("no S3-compatible server is installed here: pip install 'moto[server]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                request = urllib.request.Request(f"{address}/bucket", method="PUT")
                with urllib.request.urlopen(request, timeout=5):
                    break
            except OSError:
                assert server.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(30)


class TestS3(StorageContract):
    @pytest.fixture
    def storage(self, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        storage = open_storage(f"s3://bucket/{uuid.uuid4().hex}?region=us-east-1")
        assert "?" not in storage.uri
        return storage

    def test_a_bucket_that_is_not_there_is_told(self, storage: Storage, tmp_path: Path) -> None:
        other = open_storage("s3://no-such-bucket/x?region=us-east-1")
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(StorageError, match="s3://no-such-bucket/x cannot be used") as caught:
            other.put(tmp_path / "file", "name")
        assert "planted-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://AKIAPLANTED:planted-secret@bucket/x", "a user or password"),
        ("s3://bucket/x?secret_key=planted-secret", "given with .secret_key"),
        ("s4://bucket", "Did you mean 's3'"),
    ],
)
def test_bad_addresses_are_told_without_their_secrets(uri: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        open_storage(uri)
    assert "planted-secret" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file cannot be used: .*(Not a directory|File exists)"):
        open_storage(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot be used"):
        open_storage(str(tmp_path / "file" / "below"))


def test_what_an_interrupted_writer_left_is_not_listed_and_goes_in_time(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "storage")
    (tmp_path / "local").write_bytes(b"x")
    storage.put(tmp_path / "local", "a/name")
    fresh, stale = (tmp_path / "storage" / "a" / f".name-{n}.part" for n in ("new", "old"))
    for part in (fresh, stale):
        part.write_bytes(b"cut")
    two_days_ago = time.time() - 2 * 86400
    os.utime(stale, (two_days_ago, two_days_ago))
    assert storage.list() == ["a/name"]
    storage.put(tmp_path / "local", "a/name")
    assert fresh.exists()
    assert not stale.exists()


def test_no_empty_folders_are_left(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "storage")
    (tmp_path / "local").write_bytes(b"x")
    storage.put(tmp_path / "local", "a/b/one")
    storage.put(tmp_path / "local", "a/two")
    storage.remove("a/b/one")
    assert [path.name for path in (tmp_path / "storage" / "a").iterdir()] == ["two"]
    storage.remove("a/two")
    assert list((tmp_path / "storage").iterdir()) == []
