"""Whether a finished trial's artifacts are there and are what was uploaded, by their bytes."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sharedenc.errors import TrackingError
from sharedenc.files import file_sha256, write_atomic
from sharedenc.tracking import REUSED_FROM, RunRecord, Tracker

CHECKPOINT = "checkpoint/best.safetensors"
SHA256 = "sharedenc.sha256"
MEMORY = "verified.json"


@dataclass
class Verifier:
    """Checks artifacts against the digests of their run, and remembers what it has read.

    Existence and size are looked up every time; bytes are read once per object and machine, and
    again when the size has changed.

    A run of version 0.1 has no digests. It is taken when its checkpoint can be read whole and
    says, in its own header, that it is of the key that is asked for.
    """

    tracker: Tracker
    folder: Path | None = None
    _memory: dict[str, tuple[str, int]] = field(default_factory=dict)
    _loaded: bool = False
    _new: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def problem(self, record: RunRecord) -> str:
        """Why the run's artifacts cannot stand for a trial of its key; empty when they can."""
        owner = record.tags.get(REUSED_FROM) or record.run_id
        expected = digests(record)
        names = list(expected) or [CHECKPOINT]
        try:
            sizes = self.tracker.files(owner, {str(Path(name).parent) for name in names})
        except TrackingError as error:
            return f"its artifacts cannot be listed: {error}"
        if expected and CHECKPOINT not in expected:
            return "it recorded no checkpoint"
        for name in names:
            if name not in sizes:
                return f"its artifact {name} is not in the store any more"
            wrong = self._check(owner, name, sizes[name], expected.get(name), record)
            if wrong:
                return wrong
        return ""

    def _check(
        self, owner: str, name: str, size: int, expected: str | None, record: RunRecord
    ) -> str:
        """What is wrong with one artifact; ``expected`` None: the header's key has to do."""
        seen = self._recall(owner, name)
        if seen is not None and seen[1] == size and expected in (seen[0], None):
            return ""
        with tempfile.TemporaryDirectory(prefix="sharedenc-verify-") as scratch:
            try:
                path = self.tracker.download(owner, name, Path(scratch))
            except TrackingError as error:
                return f"its artifact {name} cannot be read: {error}"
            found = file_sha256(path)
            if expected is None and header_key(path) != record.tags.get("sharedenc.key"):
                return f"it recorded no digest, and its artifact {name} does not name its key"
            if expected is not None and found != expected:
                return f"its artifact {name} has changed since (its sha256 is another one)"
            if path.stat().st_size == size:
                self._remember(owner, name, found, size)
        return ""

    def _recall(self, owner: str, name: str) -> tuple[str, int] | None:
        with self._lock:
            if not self._loaded:
                self._loaded = True
                self._memory = _read(self.folder)
            return self._memory.get(f"{owner}/{name}")

    def _remember(self, owner: str, name: str, sha256: str, size: int) -> None:
        with self._lock:
            self._memory[f"{owner}/{name}"] = (sha256, size)
            self._new = True

    def save(self) -> None:
        """Keep what has been read for the next invocation."""
        if self.folder is None or not self._new:
            return
        with self._lock:
            self._new = False
            # Another sweep of the same folder may have read others meanwhile.
            merged = _read(self.folder) | self._memory
            write_atomic(self.folder / MEMORY, json.dumps(merged).encode())


def digests(record: RunRecord) -> dict[str, str]:
    """SHA-256 of each artifact by path, as the run recorded it; empty when it did not."""
    try:
        values = json.loads(record.tags.get(SHA256, "{}"))
        return {str(name): str(value) for name, value in values.items()}
    except (ValueError, AttributeError):
        return {}


def header_key(path: Path) -> str | None:
    """The trial's key in a safetensors file's own description; None when there is none.

    The header (its length in eight bytes, then JSON with every tensor's place) is compared with
    the file's size, so that a file that was cut does not pass.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                return None
            header = json.loads(file.read(length))
        meta = json.loads(header.pop("__metadata__")["sharedenc"])
        ends = [entry["data_offsets"][1] for entry in header.values()]
        whole = 8 + length + max(ends, default=0) == path.stat().st_size
        return str(meta["key"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read(folder: Path | None) -> dict[str, tuple[str, int]]:
    if folder is None:
        return {}
    try:
        values: Mapping[str, list[object]] = json.loads((folder / MEMORY).read_text())
        return {name: (str(sha), int(str(size))) for name, (sha, size) in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
