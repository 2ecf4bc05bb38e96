"""Small files of /proc and /sys, read so that nothing in them can raise."""

from __future__ import annotations

import contextlib
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

SMALL_BYTES = 1 << 16


def read_bytes(path: Path, limit: int = SMALL_BYTES) -> bytes:
    """At most `limit` bytes of a file, or nothing if it cannot be read."""
    parts = []
    try:
        # Neither a pipe nor a sensor that is busy (EAGAIN on some thermal zones) may block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    try:
        while limit > 0 and (block := os.read(descriptor, min(limit, 1 << 20))):
            parts.append(block)
            limit -= len(block)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
    return b"".join(parts)


def read_text(path: Path, limit: int = SMALL_BYTES) -> str:
    """The text of a file without NULs and outer blanks, or ``""`` if it cannot be read."""
    return read_bytes(path, limit).replace(b"\0", b"").decode(errors="replace").strip()


def read_int(path: Path) -> int | None:
    """A decimal number of at most 18 digits, or None for whatever else stands there."""
    found = re.fullmatch(r"[+-]?[0-9]{1,18}", read_text(path, 64))
    return int(found[0]) if found else None


def read_scaled(path: Path, factor: float, low: float, high: float) -> float | None:
    """A number times `factor`, or None if it is missing or outside `low` to `high`."""
    number = read_int(path)
    if number is None:
        return None
    value = number * factor
    return value if low <= value <= high else None


def matching(folder: Path, pattern: str) -> list[Path]:
    """Entries of `folder` by a shell pattern, numbers in their names in numerical order."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(folder) if fnmatchcase(name, pattern)]
    return [folder / name for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isascii() and part.isdigit() and len(part) < 19 else (-1, part)
        for part in re.split(r"([0-9]+)", name)
    ]
