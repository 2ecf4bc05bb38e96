"""Fetches the official files: COCO 2017, Pascal VOC 2007 and 2012, torchvision's weights.

A download goes to ``<name>.part`` and goes on where it stopped, also in a later run; it gets its
name once its size and, where one is published, its hash are right. Archives are unpacked member by
member, refusing every name that would leave the folder; zip members are checked by their CRC.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sharedenc.data.packing import disk_errors_are_told
from sharedenc.data.progress import amount, progress
from sharedenc.errors import DataError, SharedencError, WeightsError, check_choice

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT_S = 60.0
PAUSE_S = 2.0


@dataclass(frozen=True)
class Remote:
    """One official file. ``md5``: of the whole file; ``sha256_start``: first hex digits."""

    url: str
    md5: str | None = None
    sha256_start: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


def _torchvision(name: str) -> Remote:
    # torchvision's names carry the start of the file's SHA-256.
    start = name.rsplit("-", 1)[1].removesuffix(".pth")
    return Remote(f"https://download.pytorch.org/models/{name}", sha256_start=start)


DATA: dict[str, tuple[Remote, ...]] = {
    # COCO publishes no hashes; the archives' own CRCs are checked.
    "coco": (
        Remote("http://images.cocodataset.org/annotations/annotations_trainval2017.zip"),
        Remote("http://images.cocodataset.org/zips/val2017.zip"),
        Remote("http://images.cocodataset.org/zips/train2017.zip"),
    ),
    # MD5 sums as in torchvision.datasets.voc.
    "voc": (
        Remote(
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtrainval_06-Nov-2007.tar",
            md5="c52e279531787c972589f7e41ab4ae64",
        ),
        Remote(
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtest_06-Nov-2007.tar",
            md5="b6e924de25625d8de591ea690078ad9f",
        ),
        Remote(
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            md5="6cd6e144f989b92b3379bac3b3de84fd",
        ),
    ),
}

WEIGHTS: dict[str, Remote] = {
    "resnet18": _torchvision("resnet18-f37072fd.pth"),
    "mobilenet_v3_large": _torchvision("mobilenet_v3_large-5c1a4163.pth"),
    "efficientnet_v2_s": _torchvision("efficientnet_v2_s-dd5fe13b.pth"),
    "densenet121": _torchvision("densenet121-a639ec97.pth"),
}
"""torchvision's `DEFAULT` weights of each backbone."""


def fetch_data(
    which: str, out: Path, *, keep: bool = False, base_url: str | None = None, shown: bool = True
) -> Path:
    """Fetch and unpack a data set; what is there already is not fetched again.

    Args:
        which: A key of `DATA`.
        keep: Keep the archives after unpacking.
        base_url: Take the files from this folder on another server.

    Returns:
        The folder for `--data`.

    Raises:
        DataError: when a file cannot be had, is wrong, or does not fit on the disk.
    """
    check_choice("data set", which, tuple(DATA))
    out = Path(out)
    with disk_errors_are_told(out):
        out.mkdir(parents=True, exist_ok=True)
        for remote in DATA[which]:
            marker = out / f".{remote.name}.unpacked"
            if marker.exists():
                continue
            archive = download(remote, out, base_url=base_url, shown=shown)
            try:
                unpack(archive, out, shown=shown)
            except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
                archive.unlink()
                raise DataError(
                    f"{remote.name} is damaged ({error}) and was removed; run the command again"
                ) from error
            marker.touch()
            if not keep:
                archive.unlink()
    return out / "VOCdevkit" if which == "voc" else out


def fetch_weights(
    out: Path,
    backbones: Sequence[str] | None = None,
    *,
    base_url: str | None = None,
    shown: bool = True,
) -> dict[str, Path]:
    """Fetch torchvision's ImageNet weights of the given backbones (all by default).

    Raises:
        WeightsError: when a file cannot be had or its hash is wrong.
    """
    for backbone in backbones or ():
        check_choice("backbone", backbone, tuple(WEIGHTS))
    out = Path(out)
    found = {}
    with disk_errors_are_told(out):
        out.mkdir(parents=True, exist_ok=True)
        for backbone in backbones or tuple(WEIGHTS):
            remote = WEIGHTS[backbone]
            found[backbone] = download(
                remote, out, base_url=base_url, shown=shown, error=WeightsError
            )
    return found


def download(
    remote: Remote,
    out: Path,
    *,
    base_url: str | None = None,
    shown: bool = True,
    error: type[SharedencError] = DataError,
    pause_s: float = PAUSE_S,
) -> Path:
    """Fetch one file into a folder, going on from a part that is there.

    A server that breaks off is asked again for the rest, `ATTEMPTS` times without progress; one
    that knows no ranges is read from the beginning.

    Raises:
        DataError: (or ``error``) when the file cannot be had or is not the expected one; a file
            with a wrong hash is removed.
    """
    target, part = out / remote.name, out / f"{remote.name}.part"
    if target.exists():
        _check_hash(remote, target, error)
        return target
    url = remote.url if base_url is None else f"{base_url.rstrip('/')}/{remote.name}"
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _fetch_rest(url, part, remote.name, shown):
                break
            reason = "the server closed the connection early"
        except urllib.error.HTTPError as fault:
            with fault:
                if fault.code < 500:
                    raise error(
                        f"{url} cannot be fetched: HTTP {fault.code} {fault.reason}"
                    ) from None
                reason = f"HTTP {fault.code} {fault.reason}"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
        ) as fault:
            reason = str(getattr(fault, "reason", fault)) or type(fault).__name__
        now = part.stat().st_size if part.exists() else 0
        failures = 0 if now > before else failures + 1
        if failures >= ATTEMPTS:
            raise error(
                f"{url} cannot be fetched: {reason}. {amount(now)} lie in {part}; the same command "
                "goes on from there. Without a network, put the file there by hand."
            )
        time.sleep(pause_s * failures)
    _check_hash(remote, part, error)
    part.rename(target)
    return target


def _fetch_rest(url: str, part: Path, title: str, shown: bool) -> bool:
    """Append what is missing to ``part``; True when it is then complete."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "sharedenc"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            if answer.status != 206:
                have = 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length is not None else None
            _require_space(part.parent, total, have)
            with part.open("ab" if have else "wb") as file:
                got = have
                with progress(title, total, unit="bytes", shown=shown) as advance:
                    advance(have)
                    while chunk := answer.read(CHUNK):
                        file.write(chunk)
                        got += len(chunk)
                        advance(len(chunk))
            return total is None or got == total
    except urllib.error.HTTPError as fault:
        if fault.code != 416 or not have:
            raise
        # Nothing after our last byte: the part is complete, or longer than the file.
        with fault:
            size = re.fullmatch(r"bytes \*/(\d+)", fault.headers.get("Content-Range", ""))
        if size and int(size.group(1)) == have:
            return True
        part.unlink()
        return False


def _require_space(folder: Path, total: int | None, have: int) -> None:
    free = shutil.disk_usage(folder).free
    if total is not None and total - have > free:
        raise DataError(
            f"{folder} has {amount(free)} free, but {amount(total - have)} are still to come"
        )


def _check_hash(remote: Remote, path: Path, error: type[SharedencError]) -> None:
    for kind, expected in (("md5", remote.md5), ("sha256", remote.sha256_start)):
        if expected is None:
            continue
        digest = hashlib.new(kind, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        found = digest.hexdigest()
        if not found.startswith(expected):
            path.unlink()
            raise error(
                f"{remote.name} has the wrong {kind} ({found}, expected {expected}...) and was "
                "removed; run the command again, and if it comes back, the server's file changed"
            )


def unpack(archive: Path, out: Path, *, shown: bool = True) -> None:
    """Unpack a zip or tar archive into a folder.

    Raises:
        DataError: when a member's name would leave the folder or it is a link or device.
        zipfile.BadZipFile, tarfile.TarError, EOFError: when the archive is damaged.
    """
    if archive.suffix == ".zip":
        _unpack_zip(archive, out, shown)
    else:
        _unpack_tar(archive, out, shown)


def _unpack_zip(archive: Path, out: Path, shown: bool) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            mode = member.external_attr >> 16
            _require_safe(archive, member.filename, stat.S_ISLNK(mode))
        with _unpacking(archive, len(members), shown) as advance:
            for member in members:
                file.extract(member, out)
                advance(1)


def _unpack_tar(archive: Path, out: Path, shown: bool) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()
        for member in members:
            _require_safe(archive, member.name, not (member.isfile() or member.isdir()))
        with _unpacking(archive, len(members), shown) as advance:
            for member in members:
                file.extract(member, out, filter="data")
                advance(1)


@contextmanager
def _unpacking(archive: Path, count: int, shown: bool) -> Iterator[Callable[[int], None]]:
    with progress(f"unpacking {archive.name}", count, unit="files", shown=shown) as advance:
        yield advance


def _require_safe(archive: Path, name: str, link: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if link or path.is_absolute() or ".." in path.parts or ":" in name:
        what = "is a link or device" if link else "would leave the folder"
        raise DataError(f"{archive} is not safe to unpack: its member {name!r} {what}")
