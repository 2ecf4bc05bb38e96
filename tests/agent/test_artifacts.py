from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from jetson_agent.artifacts import Artifacts, RefusedError
from jetson_agent.errors import ServerError
from jetson_agent.registry import MemoryRegistry, ModelVersion

VERSION = ModelVersion(model="m", version="1", run_id="r", source="", tags={})


class Source:
    """A registry that counts downloads."""

    def __init__(self, **files: bytes) -> None:
        self.registry = MemoryRegistry(
            files={("m", "1", name): content for name, content in files.items()}
        )
        self.downloads: list[str] = []
        download = self.registry.download

        def counted(version: ModelVersion, name: str, folder: Path) -> Path:
            self.downloads.append(name)
            return download(version, name, folder)

        self.registry.download = counted  # type: ignore[method-assign]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_downloaded_once(tmp_path: Path) -> None:
    source, artifacts = Source(a=b"aaaa"), Artifacts(tmp_path / "cache")
    for _ in range(2):
        path = artifacts.fetch(source.registry, VERSION, "a", digest(b"aaaa"))
        assert (path.name, path.read_bytes()) == ("a", b"aaaa")
    assert source.downloads == ["a"]
    assert artifacts.has("a", digest(b"aaaa"))


def test_what_is_not_what_was_registered_is_refused_and_not_kept(tmp_path: Path) -> None:
    source, artifacts = Source(a=b"evil"), Artifacts(tmp_path / "cache")
    with pytest.raises(RefusedError, match=f"sha256 of a is {digest(b'evil')}, but"):
        artifacts.fetch(source.registry, VERSION, "a", digest(b"good"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_file_that_has_rotted_is_fetched_again(tmp_path: Path) -> None:
    source, artifacts = Source(a=b"good"), Artifacts(tmp_path / "cache")
    artifacts.fetch(source.registry, VERSION, "a", digest(b"good")).write_bytes(b"g00d")
    path = artifacts.fetch(source.registry, VERSION, "a", digest(b"good"))
    assert path.read_bytes() == b"good"
    assert source.downloads == ["a", "a"]


def test_a_download_that_fails_or_was_cut_leaves_nothing(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "cache")
    with pytest.raises(ServerError):
        artifacts.fetch(Source().registry, VERSION, "a", digest(b"a"))
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "cache" / "part-1").mkdir()
    (tmp_path / "cache" / "part-1" / "a").write_text("half")
    Artifacts(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_least_recently_used_go_when_there_is_no_room(tmp_path: Path) -> None:
    contents = {name: name.encode() * 100 for name in "abcd"}
    source = Source(**contents)
    artifacts = Artifacts(tmp_path / "cache", limit_bytes=250)

    def fetch(name: str, age_s: float) -> Path:
        path = artifacts.fetch(source.registry, VERSION, name, digest(contents[name]))
        os.utime(path, (1e9 - age_s, 1e9 - age_s))
        return path

    a, b = fetch("a", 20), fetch("b", 30)
    # Used again, so younger than b.
    assert fetch("a", 10) == a
    fetch("c", 5)
    assert (a.exists(), b.exists()) == (True, False)
    # What the job at hand needs stays, whatever its size.
    artifacts.limit_bytes = 10
    d = fetch("d", 0)
    assert [p for p in (tmp_path / "cache").glob("*/*")] == [d]


def test_a_full_disk_empties_the_cache(tmp_path: Path) -> None:
    source, artifacts = Source(a=b"aaaa", b=b"bb"), Artifacts(tmp_path / "cache")
    for name, content in (("a", b"aaaa"), ("b", b"bb")):
        artifacts.fetch(source.registry, VERSION, name, digest(content))
    assert artifacts.evict(keep={digest(b"bb")}, everything=True) == 4
    assert artifacts.evict(keep=(), everything=True) == 2
