"""Results on disk until the server has them: one file each, written atomically."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from jetson_agent.protocol import BenchResult, ProtocolError


class Outbox:
    """The results for one tracking server, in ``<state>/outbox/<digest of its address>/``."""

    def __init__(self, state: Path, tracking_uri: str) -> None:
        # Without user and password: a new password does not make another server.
        parts = urlsplit(tracking_uri)
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self.folder = state / "outbox" / hashlib.sha256(place.encode()).hexdigest()[:12]
        self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, result: BenchResult) -> Path:
        """Keep a result; when this returns, a power cut does not lose it."""
        path = self.folder / f"{result.key}.json"
        part = path.with_suffix(".part")
        with part.open("w") as stream:
            stream.write(result.to_json())
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return path

    def pending(self) -> Iterator[BenchResult]:
        """Results not yet sent; a file that cannot be read is set aside as ``*.bad``."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield BenchResult.from_json(path.read_text())
            except (ProtocolError, OSError, TypeError, UnicodeDecodeError):
                path.replace(path.with_suffix(".bad"))

    def sent(self, result: BenchResult) -> None:
        """Forget a result that the server has."""
        (self.folder / f"{result.key}.json").unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.json")))
