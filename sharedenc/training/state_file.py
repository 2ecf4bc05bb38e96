"""A trial's state as a file: what it takes to go on, behind the digest of its own bytes.

The name says how far it is (``state-<epochs done>-<steps of the next>-<best>.ckpt``), so that names
sort by progress on every machine, and which best network belongs to it, so that nobody has to read
a file to know what may go.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from sharedenc.files import replace_file

VERSION = 2
_HEADER = b"sharedenc state %d " % VERSION
_HEADER_SIZE = len(_HEADER) + 64 + 1
_NAME = re.compile(r"state-(\d{6})-(\d{8})-([0-9a-f]{16}|none)\.ckpt")
_BEST_NAME = re.compile(r"best-[0-9a-f]{16}\.safetensors")


class DamagedStateError(ValueError):
    """Bytes that are no whole state of this version."""


@dataclass(frozen=True, order=True)
class StateName:
    """``best`` is the start of the best network's SHA-256, empty while there is none."""

    epoch: int
    step: int
    best: str

    def __str__(self) -> str:
        return f"state-{self.epoch:06d}-{self.step:08d}-{self.best[:16] or 'none'}.ckpt"

    @property
    def best_file(self) -> str:
        """Name of the best network's file; empty while there is none."""
        return best_name(self.best) if self.best else ""

    @classmethod
    def parse(cls, name: str) -> StateName | None:
        """The inverse of `str`; None for the name of any other file."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        return cls(int(found[1]), int(found[2]), "" if found[3] == "none" else found[3])


def best_name(sha256: str) -> str:
    """Name of a best network's file while its trial trains."""
    return f"best-{sha256[:16]}.safetensors"


def is_best_name(name: str) -> bool:
    """Whether `best_name` makes this name."""
    return _BEST_NAME.fullmatch(name) is not None


class _Digesting:
    """A file to write to, and the digest of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace a file by tensors and plain values for `read_state`, or leave it untouched.

    They are serialised straight into the file and digested on the way; the digest is filled in
    before the file gets its name.
    """

    def write(file: IO[bytes]) -> None:
        file.write(_HEADER + b"0" * 64 + b"\n")
        content = _Digesting(file)
        torch.save(dict(state), content)  # type: ignore[arg-type]
        file.seek(len(_HEADER))
        file.write(content.sha256.hexdigest().encode())

    replace_file(path, write)


def read_state(path: Path) -> dict[str, Any]:
    """Return what `write_state` was given, tensors on the CPU. Runs no code that a file may hold.

    Raises:
        DamagedStateError: the bytes are cut, changed, or of another version.
    """
    data = path.read_bytes()
    header, content = data[:_HEADER_SIZE], memoryview(data)[_HEADER_SIZE:]
    if not header.startswith(_HEADER):
        raise DamagedStateError(f"it does not start as a state of version {VERSION}")
    if hashlib.sha256(content).hexdigest().encode() != header[len(_HEADER) : -1]:
        raise DamagedStateError("its bytes are not those that were written")
    return read_values(content)


def read_values(content: bytes | memoryview) -> dict[str, Any]:
    """Tensors and plain values of a torch file; raises DamagedStateError."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the reader anywhere
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedStateError(text) from error
    if not isinstance(state, dict):
        raise DamagedStateError("it holds no state")
    return state
