"""Downloads, against a server on 127.0.0.1 that can break off, forget ranges and lie."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sharedenc.data.fetch import DATA, WEIGHTS, Remote, download, fetch_data, fetch_weights, unpack
from sharedenc.errors import DataError, SpecError, WeightsError

BODY = bytes(range(256)) * 2000


class Server(ThreadingHTTPServer):
    """Gives ``files``; ``cut`` answers are cut after so many bytes; notes the ranges asked for."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.errors: list[int] = []
        self.ranges = True
        self.asked: list[str | None] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    # The client waits for the promised length; closing the connection is the cut.
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        server = self.server
        server.paths.append(self.path)
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        body = server.files.get(self.path.rsplit("/", 1)[1])
        if body is None or server.errors:
            self.send_error(server.errors.pop(0) if body is not None else 404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if not server.ranges:
            start = 0
        if start >= len(body) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + server.cut.pop(0) if server.cut else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server: Server, out: Path, **more: str) -> Path:
    remote = Remote(f"{server.url}/folder/file.bin", **more)
    return download(remote, out, shown=False, pause_s=0.0)


def test_a_cut_answer_is_continued_by_range(server: Server, tmp_path: Path) -> None:
    server.files["file.bin"] = BODY
    server.cut = [100_000, 1]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=100001-"]
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    get(server, tmp_path)
    assert len(server.asked) == 3


def test_a_part_of_an_earlier_run_is_continued(server: Server, tmp_path: Path) -> None:
    server.files["file.bin"] = BODY
    (tmp_path / "file.bin.part").write_bytes(BODY[:7])
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=7-"]


def test_a_server_without_ranges_is_read_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.files["file.bin"] = BODY
    server.cut, server.ranges = [100_000], False
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-"]


@pytest.mark.parametrize("extra", [b"", b"more than the file"])
def test_a_complete_or_too_long_part_is_settled(
    server: Server, tmp_path: Path, extra: bytes
) -> None:
    server.files["file.bin"] = BODY
    (tmp_path / "file.bin.part").write_bytes(BODY + extra)
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_wrong_hash_is_an_error_and_the_file_is_removed(server: Server, tmp_path: Path) -> None:
    server.files["file.bin"] = BODY
    with pytest.raises(DataError, match=r"file.bin has the wrong md5 .*removed"):
        get(server, tmp_path, md5="0" * 32)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file.bin").write_bytes(b"something else")
    with pytest.raises(DataError, match="wrong sha256"):
        get(server, tmp_path, sha256_start=hashlib.sha256(BODY).hexdigest()[:8])
    assert list(tmp_path.iterdir()) == []
    good = hashlib.sha256(BODY).hexdigest()[:8]
    assert get(server, tmp_path, sha256_start=good, md5=hashlib.md5(BODY).hexdigest()).exists()


def test_server_errors_are_retried_and_a_missing_file_is_told_at_once(
    server: Server, tmp_path: Path
) -> None:
    server.files["file.bin"] = BODY
    server.errors = [503, 500]
    assert get(server, tmp_path).exists()
    assert len(server.asked) == 3
    with pytest.raises(DataError, match="HTTP 404"):
        download(Remote(f"{server.url}/other"), tmp_path, shown=False, pause_s=0.0)
    assert len(server.asked) == 4


def test_a_server_that_never_answers_leaves_the_part_and_says_so(
    server: Server, tmp_path: Path
) -> None:
    server.files["file.bin"] = BODY
    server.cut = [1000] + [0] * 20
    with pytest.raises(DataError, match=r"closed the connection early. 1 kB lie in .*goes on"):
        get(server, tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == BODY[:1000]


def test_too_little_disk_is_told_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["file.bin"] = BODY
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("sharedenc.data.fetch.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="1 kB free, but 512 kB are still to come"):
        get(server, tmp_path)


def zipped(members: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            if name == link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, data)
    return buffer.getvalue()


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for info, data in members:
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("a.zip", zipped({"ok": b"", "../out": b"x"})),
        ("a.zip", zipped({"/out": b"x"})),
        ("a.zip", zipped({"..\\out": b"x"})),
        ("a.zip", zipped({"out": b"/etc"}, link="out")),
        ("a.tar", tarred((tar_member("ok/../../out"), b"x"))),
        ("a.tar", tarred((tar_member("/out"), b"x"))),
        ("a.tar", tarred((tar_member("out", tarfile.SYMTYPE, "/etc"), b""))),
        ("a.tar", tarred((tar_member("out", tarfile.LNKTYPE, "../../x"), b""))),
        ("a.tar", tarred((tar_member("out", tarfile.FIFOTYPE), b""))),
    ],
)
def test_archives_cannot_write_elsewhere(tmp_path: Path, name: str, archive: bytes) -> None:
    (tmp_path / name).write_bytes(archive)
    (tmp_path / "into").mkdir()
    with pytest.raises(DataError, match="not safe to unpack"):
        unpack(tmp_path / name, tmp_path / "into", shown=False)
    assert {path.name for path in tmp_path.rglob("*")} == {name, "into"}


def test_a_data_set_is_fetched_unpacked_and_not_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    for remote in DATA["coco"]:
        server.files[remote.name] = zipped({f"{remote.name}.d/file": remote.name.encode()})
    server.cut = [20]
    assert fetch_data("coco", tmp_path, base_url=f"{server.url}/mirror/", shown=False) == tmp_path
    for remote in DATA["coco"]:
        assert (tmp_path / f"{remote.name}.d" / "file").read_text() == remote.name
        assert not (tmp_path / remote.name).exists()
    assert all(path.startswith("/mirror/") for path in server.paths)
    count = len(server.asked)
    fetch_data("coco", tmp_path, base_url=server.url, shown=False)
    assert len(server.asked) == count


def test_a_member_with_a_wrong_crc_is_found_and_the_archive_removed(
    server: Server, tmp_path: Path
) -> None:
    name = DATA["coco"][0].name
    server.files[name] = zipped({"file": b"precious data"}).replace(b"precious", b"PRECIOUS", 1)
    with pytest.raises(DataError, match=rf"{name} is damaged .*CRC.* was removed"):
        fetch_data("coco", tmp_path, base_url=server.url, shown=False)
    assert not (tmp_path / name).exists()
    assert not (tmp_path / f".{name}.unpacked").exists()


def test_voc_archives_are_checked_and_lie_in_one_devkit(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = tarred((tar_member("VOCdevkit/VOC2007/file"), b"x"))
    remote = Remote("https://example.org/voc.tar", md5=hashlib.md5(body).hexdigest())
    monkeypatch.setitem(DATA, "voc", (remote,))
    server.files["voc.tar"] = body
    folder = fetch_data("voc", tmp_path, keep=True, base_url=server.url, shown=False)
    assert (folder / "VOC2007" / "file").read_bytes() == b"x"
    assert (tmp_path / "voc.tar").exists()
    with pytest.raises(SpecError, match="Did you mean 'voc'"):
        fetch_data("vok", tmp_path)


def test_weights_with_a_wrong_hash_are_refused(server: Server, tmp_path: Path) -> None:
    server.files[WEIGHTS["resnet18"].name] = b"no weights"
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd.pth has the wrong sha256"):
        fetch_weights(tmp_path, ["resnet18"], base_url=server.url, shown=False)
    with pytest.raises(SpecError, match="Did you mean 'resnet18'"):
        fetch_weights(tmp_path, ["resnet81"], base_url=server.url)


def test_official_places_are_those_of_torchvision() -> None:
    from torchvision.datasets.voc import DATASET_YEAR_DICT
    from torchvision.models import get_model_weights

    from sharedenc.spec import BACKBONES

    for backbone, remote in WEIGHTS.items():
        assert remote.url == get_model_weights(backbone).DEFAULT.url
        assert remote.sha256_start is not None
        assert len(remote.sha256_start) == 8
    assert set(WEIGHTS) == {name for name, info in BACKBONES.items() if info.source == "builtin"}
    for remote, key in zip(DATA["voc"], ("2007", "2007-test", "2012"), strict=True):
        assert remote.url == DATASET_YEAR_DICT[key]["url"]
        assert remote.md5 == DATASET_YEAR_DICT[key]["md5"]
