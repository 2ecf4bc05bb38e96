"""Files that are either whole or not there, and locks between the processes of a machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

PART = ".part"
"""What the name of a file that is being written ends with; it starts with a dot."""
CHUNK = 1 << 20


def write_atomic(path: Path, *content: bytes | memoryview) -> None:
    """Replace ``path`` by the pieces of ``content`` for good, or leave it untouched."""

    def write(file: IO[bytes]) -> None:
        for piece in content:
            file.write(piece)

    replace_file(path, write)


def copy_atomic(source: Path, path: Path) -> None:
    """Replace ``path`` by a copy of ``source`` for good, or leave it untouched."""
    with source.open("rb") as reader:
        replace_file(path, lambda file: shutil.copyfileobj(reader, file, CHUNK))


def link_atomic(source: Path, path: Path) -> None:
    """Replace ``path`` by a further name of ``source``'s bytes, or leave it untouched.

    For files that are only ever replaced as a whole. ``source`` is on the disk already; where a
    file system has no such names it is copied.
    """
    part = path.with_name(f".{path.name}-{os.getpid()}{PART}")
    try:
        os.link(source, part)
    except OSError:
        copy_atomic(source, path)
        return
    try:
        # Two names of one file are left alone by a rename: then there is nothing to replace.
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_file(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Let ``write`` fill a file beside ``path``, put it on the disk and rename it to ``path``.

    A crash at any point leaves the old file, or the new one, and at worst a ``.name-*.part``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's own entries on the disk: a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(folder: Path, stem: str = "") -> None:
    """Remove what interrupted writers of ``stem*`` left in a folder that nobody else writes."""
    for part in folder.glob(f".{stem}*{PART}"):
        part.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; it goes with its holder, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
