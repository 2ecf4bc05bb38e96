"""What must survive a machine: files by name in a folder that all nodes see, or an object store.

Credentials come from the environment, mounted files or the cloud's own metadata, never from the
address: an address with a password in it is refused, and no error repeats it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit

from sharedenc.errors import SharedencError, SpecError, check_choice
from sharedenc.files import CHUNK, PART, copy_atomic, replace_file, write_atomic

SCHEMES = ("file", "s3", "gs")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
"""Environment variables with the address of an S3-compatible store; the first one set counts."""
STALE_S = 24 * 3600.0
"""After this long the rest of an interrupted write is nobody's any more."""
_QUERY = {"region", "endpoint_override", "scheme", "tls_verify_certificates"}


class StorageError(SharedencError):
    """The storage cannot be reached, refuses, or is not the same place on every node."""

    exit_code = 9
    kind = "machine"


class Storage(Protocol):
    """Files by name, such as ``checkpoints/<key>/best``. Names are relative, with ``/``.

    Every implementation passes ``tests/contracts/storage.py``. All methods raise StorageError when
    the place cannot be reached or refuses.
    """

    @property
    def uri(self) -> str:
        """Its address, without credentials: fit for logs."""

    def put(self, local: Path, name: str) -> None:
        """Store a file under ``name``, replacing what is there: the new one whole, or the old."""

    def get(self, name: str, local: Path) -> bool:
        """Fetch into ``local``, whole or not at all; False when there is no such name."""

    def exists(self, name: str) -> bool: ...

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def list(self, folder: str = "") -> list[str]:
        """Names of all files below ``folder``, sorted; [] when there is no such folder."""


def open_storage(uri: str) -> Storage:
    """Open a folder (``/path``, ``file:///path``), ``s3://bucket/path`` or ``gs://bucket/path``.

    ``s3`` takes ``?region=`` and ``?endpoint_override=`` (or AWS_ENDPOINT_URL) for S3-compatible
    stores.

    Raises:
        SpecError: another kind of address, or one with credentials in it.
        StorageError: the folder cannot be made, or the bucket cannot be opened.
    """
    if "://" not in uri:
        return FolderStorage(Path(uri))
    parts = urlsplit(uri)
    check_choice("storage", parts.scheme, SCHEMES)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    unknown = set(parse_qs(parts.query, keep_blank_values=True)) - _QUERY
    if "@" in parts.netloc or unknown:
        what = "a user or password" if "@" in parts.netloc else f"?{', '.join(sorted(unknown))}"
        raise SpecError(
            f"storage {shown} is given with {what}. Credentials come from the environment "
            "(AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...); of settings it takes "
            f"{', '.join(sorted(_QUERY))}."
        )
    if parts.scheme == "file":
        return FolderStorage(Path(unquote(parts.path)))
    return ObjectStorage(uri, shown)


class FolderStorage:
    """A folder. On a cluster, every node must see it under the same path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()
        with _told(self.uri):
            self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def uri(self) -> str:
        return f"file://{quote(str(self.folder))}"

    def put(self, local: Path, name: str) -> None:
        target = self._path(name)
        with _told(self.uri):
            copy_atomic(local, target)
            for part in target.parent.glob(f".{target.name}-*{PART}"):
                if time.time() - part.stat().st_mtime > STALE_S:
                    part.unlink(missing_ok=True)

    def get(self, name: str, local: Path) -> bool:
        source = self._path(name)
        with _told(self.uri):
            if not source.is_file():
                return False
            copy_atomic(source, local)
            return True

    def exists(self, name: str) -> bool:
        with _told(self.uri):
            return self._path(name).is_file()

    def remove(self, name: str) -> None:
        path = self._path(name)
        with _told(self.uri):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the first one that is not empty ends it
            for folder in path.parents:
                if folder == self.folder:
                    break
                folder.rmdir()

    def list(self, folder: str = "") -> list[str]:
        base = self._path(folder) if folder else self.folder
        with _told(self.uri):
            return sorted(
                path.relative_to(self.folder).as_posix()
                for path in base.rglob("*")
                if path.is_file() and not (path.name.startswith(".") and path.suffix == PART)
            )

    def _path(self, name: str) -> Path:
        return self.folder / checked_name(name)


class ObjectStorage:
    """A bucket of S3 (or a store that speaks S3) or of Google Cloud, through Arrow."""

    def __init__(self, uri: str, shown: str) -> None:
        from pyarrow import fs  # type: ignore[import-untyped]

        self._shown = shown
        with _told(shown):
            self._fs, base = fs.FileSystem.from_uri(_with_endpoint(uri))
        self._base: str = base.rstrip("/")

    @property
    def uri(self) -> str:
        return self._shown

    def put(self, local: Path, name: str) -> None:
        place = self._place(name)
        size = local.stat().st_size
        with _told(self.uri):
            # An object is there once its stream is closed, and closing follows an error too: a
            # short one is therefore taken away again.
            with local.open("rb") as reader, self._fs.open_output_stream(place) as writer:
                try:
                    shutil.copyfileobj(reader, writer, CHUNK)
                finally:
                    writer.close()
                    stored = self._fs.get_file_info(place).size
                    if stored != size:
                        self._fs.delete_file(place)
            if stored != size:
                raise StorageError(
                    f"storage {self.uri} has {stored} bytes of {name} instead of {size}."
                )

    def get(self, name: str, local: Path) -> bool:
        place = self._place(name)

        def fill(file: Any) -> None:
            with self._fs.open_input_stream(place) as reader:
                shutil.copyfileobj(reader, file, CHUNK)

        with _told(self.uri):
            if not self.exists(name):
                return False
            replace_file(local, fill)
            return True

    def exists(self, name: str) -> bool:
        with _told(self.uri):
            return bool(self._fs.get_file_info(self._place(name)).is_file)

    def remove(self, name: str) -> None:
        if self.exists(name):
            with _told(self.uri):
                self._fs.delete_file(self._place(name))

    def list(self, folder: str = "") -> list[str]:
        from pyarrow import fs

        below = self._place(folder) if folder else self._base
        with _told(self.uri):
            found = self._fs.get_file_info(
                fs.FileSelector(below, allow_not_found=True, recursive=True)
            )
        return sorted(info.path.removeprefix(f"{self._base}/") for info in found if info.is_file)

    def _place(self, name: str) -> str:
        return f"{self._base}/{checked_name(name)}"


def checked_name(name: str) -> PurePosixPath:
    """A name as a relative path; anything that could lead elsewhere is a bug of the caller."""
    path = PurePosixPath(name)
    safe = bool(name) and not path.is_absolute() and ".." not in path.parts
    assert safe, f"bad name {name!r}"
    return path


def leave_mark(storage: Storage, folder: Path) -> str:
    """Store a small file (made in ``folder``); returns its name, for `require_mark` elsewhere."""
    name = f"marks/{uuid.uuid4().hex}"
    local = folder / name.replace("/", "-")
    write_atomic(local, b"seen")
    try:
        storage.put(local, name)
    finally:
        local.unlink(missing_ok=True)
    return name


def require_mark(storage: Storage, mark: str) -> None:
    """Raise StorageError unless this process sees the storage in which ``mark`` was left."""
    if not storage.exists(mark):
        raise StorageError(
            f"storage {storage.uri} is another place on {os.uname().nodename} than where the sweep "
            "was started. Give a folder that all nodes mount under the same path, or an s3:// or "
            "gs:// address."
        )


def _with_endpoint(uri: str) -> str:
    """Add the endpoint that the environment names, for a store that only speaks S3."""
    parts = urlsplit(uri)
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
    if parts.scheme != "s3" or not endpoint or "endpoint_override" in parse_qs(parts.query):
        return uri
    at = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    more = f"scheme={at.scheme}&endpoint_override={quote(at.netloc)}"
    return parts._replace(query=f"{parts.query}&{more}".lstrip("&")).geturl()


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn what the file system or the store raises into a `StorageError` of one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and not type(error).__module__.startswith("pyarrow"):
            raise
        text = re.sub(r"(?<=://)[^/\s@]+@", "***@", (str(error).splitlines() or [""])[0])
        raise StorageError(
            f"storage {uri} cannot be used: {text[:300]}. Check the address, the rights and the "
            "credentials in the environment."
        ) from error
